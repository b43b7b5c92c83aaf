"""Models and checkpoints on disk: complete or absent, and nothing that could run code."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from v2v.checkpoint import ClipUse, Model, ModelRecord, SignalUse, load_model, save_model
from v2v.data.background import Backgrounds, Mosaic
from v2v.errors import CheckpointInvalid, DiskFull, V2VError
from v2v.files import restore_replaced
from v2v.models import build_generator
from v2v.resume import Checkpoint, load_checkpoint, save_checkpoint
from v2v.saved import FORMAT
from v2v.signals.camera import CameraTrack
from v2v.tensors import read_tensors
from v2v.types import Condition, GeneratorState

ARCHITECTURE = {"name": "sequential", "channels": 3, "preset": "mobile", "scales": 2}


def model() -> Model:
    torch.manual_seed(0)
    generator = build_generator(**ARCHITECTURE)
    generator.active = 1  # type: ignore[assignment]
    clip = ClipUse(
        name="a", source="a.mp4", sha256="0" * 64, fps="25", frames=9, trained=(0, 8), width=64,
        height=64, still=True,
    )  # fmt: skip
    record = ModelRecord(
        format=FORMAT, tool="v2v test", task="pose", height=32, width=32,
        signals=(SignalUse(name="pose", channels=3, spec={}),),
        generator=ARCHITECTURE, active=1, clips=(clip,), training={"steps": 3},
    )  # fmt: skip
    statistics = {"0.frames": torch.tensor([0, 5]), "0.pose.points": torch.rand(2, 75, 3)}
    return Model(record, generator, {0: torch.rand(4, 32, 32)}, statistics)


def checkpoint(step: int = 7) -> Checkpoint:
    layer = torch.nn.Linear(2, 2)
    adam = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    adam.step()
    return Checkpoint({"step": step}, {"layer": layer.state_dict()}, {"adam": adam.state_dict()})


# ---------------------------------------------------------------- models


def test_a_saved_model_renders_the_same(tmp_path: Path) -> None:
    original = model()
    save_model(tmp_path / "model", original)
    loaded = load_model(tmp_path / "model")
    condition = Condition(signals=torch.rand(1, 3, 32, 32))
    state = GeneratorState.empty(condition)
    with torch.no_grad():
        original.generator.eval()
        before, after = (m.generator(condition, state).frame for m in (original, loaded))
    assert torch.equal(before, after)
    assert torch.equal(loaded.background_plates[0], original.background_plates[0])
    assert torch.equal(loaded.statistics["0.pose.points"], original.statistics["0.pose.points"])
    assert loaded.record == original.record and "pose" in repr(loaded)


def moving_background() -> Backgrounds:
    """The background of a panning camera, in the pixels of `model`."""
    matrices = np.tile(np.eye(3), (9, 1, 1))
    matrices[:, 0, 2] = -np.arange(9.0)
    residual = np.zeros(9, np.float32)
    residual[4] = np.nan
    track = CameraTrack(matrices, np.zeros(9, np.int64), residual, 32, 32)
    picture = np.random.default_rng(0).integers(0, 256, (32, 41, 4), np.uint8)
    return Backgrounds({0: Mosaic(picture, (0.0, -1.5), (0.5, 0.5))}, track)


def test_backgrounds_survive_saving_and_loading(tmp_path: Path) -> None:
    original = replace(model(), backgrounds={0: moving_background()})
    save_model(tmp_path / "model", original)
    found = load_model(tmp_path / "model").backgrounds[0]
    for frame in (None, 0, 4, 8):
        assert np.array_equal(found.of(frame), original.backgrounds[0].of(frame))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.homography", torch.zeros(4, 3, 3, dtype=torch.float64)),
        ("0.reference", torch.zeros(9, dtype=torch.int32)),
        ("0.residual", torch.full((9,), float("nan"))),
        ("0.0.picture", torch.zeros(0, 4, 4, dtype=torch.uint8)),
        ("0.0.place", torch.zeros(4, dtype=torch.float64)),
        ("7.reference", torch.zeros(9, dtype=torch.int64)),
    ],
)
def test_an_invalid_background_is_refused(name: str, value: torch.Tensor, tmp_path: Path) -> None:
    save_model(tmp_path / "model", replace(model(), backgrounds={0: moving_background()}))
    path = tmp_path / "model" / "backgrounds.safetensors"
    save_file({**load_file(path), name: value}, path)
    with pytest.raises(CheckpointInvalid, match="backgrounds.safetensors"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("recorded", [{"past": False}, {"plate": True}])
def test_a_model_with_an_incompatible_past_is_refused(
    recorded: dict[str, bool], tmp_path: Path
) -> None:
    original = model()
    old = original.record.model_copy(update={"generator": {**ARCHITECTURE, **recorded}})
    save_model(tmp_path / "model", Model(old, original.generator))
    with pytest.raises(CheckpointInvalid, match="earlier version"):
        load_model(tmp_path / "model")


def test_a_model_with_a_plate_and_a_recorded_past_is_loaded(tmp_path: Path) -> None:
    arguments = {**ARCHITECTURE, "background_plate": True, "past": "frames"}
    record = model().record.model_copy(update={"generator": arguments})
    save_model(
        tmp_path / "model", Model(record, build_generator(**arguments), model().background_plates)
    )
    assert load_model(tmp_path / "model").record == record


def test_a_model_with_earlier_argument_names_is_loaded(tmp_path: Path) -> None:
    arguments = {**ARCHITECTURE, "past": "nothing", "compose": "blend"}
    now = arguments | {"background_plate": True, "control_points": True}
    record = model().record.model_copy(update={"generator": now})
    plates = model().background_plates
    save_model(tmp_path / "model", Model(record, build_generator(**now), plates))
    path = tmp_path / "model" / "model.json"
    saved = json.loads(path.read_text())
    saved["generator"] = arguments | {"plate": True, "handles": True}
    path.write_text(json.dumps(saved))
    loaded = load_model(tmp_path / "model")
    assert loaded.record == record and loaded.generator.control_points


def test_a_run_folder_loads_its_model(tmp_path: Path) -> None:
    save_model(tmp_path / "run" / "model", model())
    assert load_model(tmp_path / "run").record.task == "pose"


def test_saving_replaces_the_old_model(tmp_path: Path) -> None:
    save_model(tmp_path / "model", model())
    bare = Model(model().record, model().generator)
    save_model(tmp_path / "model", bare)
    assert not load_model(tmp_path / "model").background_plates
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match=r"is not a model: it has no model\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("version, age", [(FORMAT + 1, "a newer"), (None, "another")])
def test_another_version_is_refused(tmp_path: Path, version: Any, age: str) -> None:
    save_model(tmp_path / "model", model())
    path = tmp_path / "model" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": version}))
    with pytest.raises(CheckpointInvalid, match=f"by {age} version"):
        load_model(tmp_path / "model")


def test_an_edited_record_names_the_field(tmp_path: Path) -> None:
    save_model(tmp_path / "model", model())
    path = tmp_path / "model" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "height": "tall"}))
    with pytest.raises(CheckpointInvalid, match="height"):
        load_model(tmp_path / "model")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", model())
    path = tmp_path / "model" / "model.json"
    record = json.loads(path.read_text())
    record["generator"]["preset"] = "base"
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointInvalid, match="weights that do not match its record"):
        load_model(tmp_path / "model")


# ---------------------------------------------------------------- untrusted files


class Evil:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Evil, "ran", True)


def test_a_pickle_as_weights_is_refused_under_any_name(tmp_path: Path) -> None:
    for name in ("generator.safetensors", "generator.pt"):
        for write in (
            lambda p: torch.save(Evil(), p),
            lambda p: p.write_bytes(pickle.dumps(Evil())),
        ):
            write(tmp_path / name)
            with pytest.raises(CheckpointInvalid, match="refused: it is a pickle"):
                read_tensors(tmp_path / name)
    assert not Evil.ran


@pytest.mark.parametrize("clips", range(1, 40))
def test_no_safetensors_header_is_mistaken_for_a_pickle(clips: int, tmp_path: Path) -> None:
    """A safetensors file begins with its header's length: 896 looks like a pickle's start."""
    background_plates = {str(n): torch.zeros(4, 8, 8) for n in range(clips)}
    save_file(background_plates, tmp_path / "plates.safetensors")
    assert len(read_tensors(tmp_path / "plates.safetensors")) == clips


def test_a_pickle_as_optimiser_state_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", checkpoint())
    torch.save({"adam": Evil()}, tmp_path / "c" / "optimisers.pt")
    with pytest.raises(CheckpointInvalid, match="holds more than tensors"):
        load_checkpoint(tmp_path / "c")
    assert not Evil.ran


@pytest.mark.parametrize("name", ["weights.safetensors", "optimisers.pt", "checkpoint.json"])
def test_a_truncated_file_is_a_clear_error(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path / "c", checkpoint())
    path = tmp_path / "c" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointInvalid) as caught:
        load_checkpoint(tmp_path / "c")
    assert str(tmp_path) in caught.value.message and caught.value.hint


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_restored_bit_for_bit(tmp_path: Path) -> None:
    saved = checkpoint()
    save_checkpoint(tmp_path / "c", saved)
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.progress == {"step": 7}
    for key, value in saved.modules["layer"].items():
        assert torch.equal(loaded.modules["layer"][key], value)
    before, after = (c.optimisers["adam"]["state"][0]["exp_avg"] for c in (saved, loaded))
    assert torch.equal(before, after)


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "c", checkpoint(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("v2v.resume.save_file", full)
    with pytest.raises(DiskFull):
        save_checkpoint(tmp_path / "c", checkpoint(2))
    assert load_checkpoint(tmp_path / "c").progress == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c"], "no partial folder may remain"


def test_torch_errors_of_a_full_disk_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(V2VError, match="disk is full"):
        save_checkpoint(tmp_path / "c", checkpoint())
    assert not list(tmp_path.iterdir())


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", checkpoint(1))
    (tmp_path / "c").rename(tmp_path / ".c.old")
    restore_replaced(tmp_path / "c")
    assert load_checkpoint(tmp_path / "c").progress == {"step": 1}


def test_a_kill_while_writing_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """A killed process leaves a hidden folder, which the next save removes."""
    save_checkpoint(tmp_path / "c", checkpoint(1))
    (tmp_path / ".c.partial").mkdir()
    (tmp_path / ".c.partial" / "weights.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path / "c").progress == {"step": 1}
    save_checkpoint(tmp_path / "c", checkpoint(2))
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
