"""Records: any content either loads or raises one clear error."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from v2v.checkpoint import (
    ClipUse,
    Model,
    ModelRecord,
    SignalUse,
    generator_of,
    load_model,
    read_model_record,
    save_model,
)
from v2v.data.store import (
    SCHEMA,
    AudioRecord,
    ClipRecord,
    FileRecord,
    FramesRecord,
    SignalRecord,
    SourceRecord,
    read_record,
)
from v2v.errors import CheckpointInvalid, RunConflict, StoreDamaged, UsageError, V2VError
from v2v.models import build_generator
from v2v.prediction.model import PointPredictor, ShapePCA
from v2v.prediction.predictor import PointsPredictor, PredictorRecord, load_predictor
from v2v.records import check_name
from v2v.records import read_record as read
from v2v.resume import Checkpoint, CheckpointRecord
from v2v.saved import FORMAT
from v2v.training.run import read_log, read_run
from v2v.training.state import Progress

FILE = FileRecord(bytes=3, sha256="0" * 64)
CLIP = ClipUse(
    name="a", source="a.mp4", sha256="0" * 64, fps="30000/1001", frames=40, trained=(0, 34),
    width=96, height=64, still=False,
)  # fmt: skip
STORE = ClipRecord(
    schema_version=SCHEMA, tool="test",
    source=SourceRecord(
        name="a.mp4", sha256="0" * 64, bytes=9, modified_ns=0, container="mp4", codec="h264",
        pixel_format="yuv420p", width=96, height=64, rotation=0, pixel_aspect="1", fps="25",
        variable_rate=False, frames=40, duration=1.6, audio={"codec": "aac", "rate": 48000},
    ),
    frames=FramesRecord(
        width=96, height=64, fps="25", count=40, start=0.0, box=(0, 0, 96, 64), shots=(0, 20),
        lost=(3,), settings={"size": None}, file=FILE,
    ),
    audio=AudioRecord(name="audio.m4a", codec="aac", offset=0.0, file=FILE),
    signals={
        "segmentation": SignalRecord(
            spec={"classes": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]], "instances": False},
            backend="labels", version="1", settings={}, coverage=0.5,
            files={"segmentation.mkv": FILE},
        ),
        "flow": SignalRecord(
            spec={"grid": [48, 32]}, backend="dis", version="1", settings={}, coverage=1.0,
            files={"flow.mkv": FILE},
        ),
    },
).model_dump(mode="json")  # fmt: skip
ARGUMENTS = {"name": "sequential", "channels": 3, "preset": "mobile", "scales": 1}
MODEL = ModelRecord(
    format=FORMAT, tool="test", task="pose", height=64, width=96, generator=ARGUMENTS, active=1,
    signals=(SignalUse(name="pose", channels=3, spec={"points": 75}),), clips=(CLIP,),
    training={"steps": 3, "settings": {"augment": {"scale": [1.0, 1.5]}}},
).model_dump(mode="json")  # fmt: skip
NETWORK = {"length": 6, "past": 4, "hidden": 4, "dropout": 0.0, "damping": 0.5}
PREDICTOR = PredictorRecord(
    signal="pose", network=NETWORK, clips=(CLIP,), training={"steps": 3},
    errors={"copy_last": {1: 0.5}},
).model_dump(mode="json")  # fmt: skip
RUN = {"format": 2, "tool": "test", "data": ["data/a"], "files": [{"frames.mp4": "0" * 64}]}
PROGRESS = {
    "step": 8, "window": 6, "frame": 0, "stage": 1, "seconds": 3.9, "lr_scale": 1.0, "rollbacks": 0,
    "bptt_steps": 1, "accumulate": 1, "recompute": False, "averaged": 8,
}  # fmt: skip
LOG = {
    "step": 8, "minutes": 0.1, "stage": 1, "size": [64, 112], "length": 2, "rate": 1e-5,
    "losses": {"total": 3.5, "l1": 0.25},
}  # fmt: skip


def _progress(path: Path) -> None:
    record = read(path, CheckpointRecord, CheckpointInvalid, hint="")
    Progress.read(record.progress, path)


def _predictor(path: Path) -> None:
    load_predictor(path.parent)


RECORDS: dict[str, tuple[Any, str, Callable[[Path], Any]]] = {
    "clip": (STORE, "clip.json", lambda path: read_record(path.parent)),
    "model": (MODEL, "model.json", lambda path: build(path.parent)),
    "predictor": (PREDICTOR, "predictor.json", _predictor),
    "run": (RUN, "run.json", lambda path: read_run(path.parent)),
    "checkpoint": ({"format": 1, "progress": PROGRESS}, "checkpoint.json", _progress),
    "log": (LOG, "log.jsonl", lambda path: list(read_log(path))),
}
HOSTILE = [
    -1, 0, 1, 2**31, 2**63, 10**12, 10**30, 10**5000, -(2**63), 0.5, 1e308, float("nan"),
    float("inf"), None, True, "x", "", "1e99999999", "1/0", "../../etc/passwd", "\0", "\ud800",
    [], {}, [1], [None], {"a": 1}, [[1, 2]], [0] * 300,
]  # fmt: skip


def build(folder: Path) -> None:
    """The generator of an accepted record must fit into memory."""
    with torch.device("meta"):
        generator = generator_of(read_model_record(folder), folder)
    assert sum(p.numel() for p in generator.parameters()) < 2e9


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_in(inner, (*path, key))


def write(path: Path, data: Any) -> None:
    """Write JSON, including integers of any length."""
    import sys

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        path.write_text(json.dumps(data) + "\n", "utf-8")
    finally:
        sys.set_int_max_str_digits(limit)


@pytest.fixture(scope="module")
def record_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each record, with the other files that its reader needs."""
    found = {}
    for name, (_, file, _reader) in RECORDS.items():
        found[name] = tmp_path_factory.mktemp(name) / file
    mean, basis = torch.rand(75, 2).numpy(), torch.zeros(3, 150).numpy()
    code = ShapePCA(mean, basis, torch.arange(33).numpy())
    PointsPredictor(PredictorRecord(**PREDICTOR), PointPredictor(**NETWORK), code).save(
        found["predictor"].parent
    )
    return found


@pytest.mark.parametrize("name", RECORDS)
def test_a_valid_record_is_read(name: str, record_paths: dict[str, Path]) -> None:
    data, _, reader = RECORDS[name]
    write(record_paths[name], data)
    reader(record_paths[name])


@pytest.mark.parametrize("name", RECORDS)
@settings(
    max_examples=120, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_one_hostile_value_is_one_clear_error(
    name: str, record_paths: dict[str, Path], data: st.DataObject
) -> None:
    whole, _, reader = RECORDS[name]
    spoiled = copy.deepcopy(whole)
    *parents, last = data.draw(st.sampled_from(list(paths_in(whole))))
    inner = spoiled
    for key in parents:
        inner = inner[key]
    value = data.draw(st.sampled_from([..., *HOSTILE]))
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    write(record_paths[name], spoiled)
    try:
        reader(record_paths[name])
    except V2VError as error:
        assert error.hint is not None and 10 < len(error.message) < 700
        assert str(record_paths[name].parent) in error.message


TEXTS = {
    "deep": "[" * 100_000, "deep objects": '{"a":' * 100_000, "empty": "", "list": "[]",
    "null": "null", "text": "hello", "number": "9" * 5000, "twice": "{} {}", "cut": '{"format": 1',
    "nan": '{"format": NaN}', "infinite": '{"format": -Infinity}', "bom": "\ufeff{}",
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in RECORDS if n != "log"])
def test_a_file_that_is_not_a_record_raises_a_clear_error(
    name: str, record_paths: dict[str, Path]
) -> None:
    _, _, reader = RECORDS[name]
    raws = [text.encode() for text in TEXTS.values()]
    for raw in [*raws, b"\xff\xfe\x00", json.dumps({}).encode("utf-16")]:
        record_paths[name].write_bytes(raw + b"\n")
        with pytest.raises(V2VError, match=record_paths[name].name) as caught:
            reader(record_paths[name])
        assert "Traceback" not in caught.value.message and len(caught.value.message) < 700


@pytest.mark.parametrize("kind", ["folder", "loop", "nowhere"])
def test_a_folder_or_broken_link_in_place_of_a_record(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "loop" else "gone")
    with pytest.raises(RunConflict, match=r"run\.json"):
        read_run(tmp_path)


def test_a_log_without_its_truncated_last_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    whole = json.dumps(LOG)
    path.write_text(f"{whole}\n{whole[:20]}")
    assert [(line, entry.step) for line, entry in read_log(path)] == [(whole, 8)]
    path.write_text(f"{whole}\n{whole[:20]}\n{whole}\n")
    with pytest.raises(RunConflict, match=r"log\.jsonl, line 2"):
        list(read_log(path))


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"shots": [0, 40]}, "shots"), ({"shots": [0, 20, 20]}, "shots"), ({"shots": []}, "shots"),
        ({"lost": [-1]}, "lost"), ({"box": [0, -1, 4, 4]}, "box"), ({"box": [0, 0, 0, 4]}, "box"),
        ({"fps": "1e9"}, "frames.fps"), ({"height": 2**31}, "frames.height"),
    ],
)  # fmt: skip
def test_values_that_contradict_the_clip_are_named(
    changes: dict[str, Any], field: str, record_paths: dict[str, Path]
) -> None:
    write(record_paths["clip"], {**STORE, "frames": {**STORE["frames"], **changes}})
    with pytest.raises(StoreDamaged, match=rf"clip\.json: .*{field}"):
        read_record(record_paths["clip"].parent)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"generator": {**ARGUMENTS, "scales": 10**12}}, "scales"),
        ({"generator": {**ARGUMENTS, "clips": 10**9}}, "clips"),
        (
            {"generator": {**ARGUMENTS, "background_plate": True, "prior": True, "past": "frames"}},
            "plate and prior",
        ),
        ({"generator": {**ARGUMENTS, "name": "pix2pix", "preset": "paper", "x": 1}}, "x"),
        ({"height": 2**31}, "height"), ({"height": 8192, "width": 8192}, "too large"),
        ({"active": 2}, "active is 2"), ({"signals": []}, "signals"),
        ({"training": {"settings": []}}, "scale"),
        ({"training": {"settings": {"augment": {"scale": [1, 9]}}}}, "scale"),
    ],
)  # fmt: skip
def test_an_oversized_or_inconsistent_model_is_refused(
    changes: dict[str, Any], expected: str, record_paths: dict[str, Path]
) -> None:
    write(record_paths["model"], {**MODEL, **changes})
    with pytest.raises(CheckpointInvalid, match=rf"model\.json: .*{expected}"):
        read_model_record(record_paths["model"].parent)


# ---------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a plate, poses and a style."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model_folder") / "model"
    arguments = {**ARGUMENTS, "background_plate": True, "past": "nothing", "compose": "blend"}
    record = ModelRecord.model_validate({**MODEL, "generator": arguments}, strict=False)
    points = torch.rand(2, 75, 3)
    points[0, 3] = torch.nan  # not visible
    statistics = {"0.frames": torch.tensor([0, 7]), "0.pose.points": points}
    save_model(
        folder, Model(record, build_generator(**arguments), {0: torch.rand(4, 64, 96)}, statistics)
    )
    load_model(folder)
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("file", ["generator", "plates"])
def test_nan_and_infinite_weights_are_refused(
    model_folder: Path, file: str, value: float, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    tensors[min(tensors)].view(-1)[-1] = value
    save_file(tensors, path)
    with pytest.raises(CheckpointInvalid, match=rf"{file}\.safetensors: .* NaN or infinite"):
        load_model(folder)


STATISTICS: dict[str, dict[str, torch.Tensor]] = {
    "infinite": {"0.pose.points": torch.full((2, 75, 3), torch.inf)},
    "another score": {"0.pose.points": torch.full((2, 75, 3), 7.0)},
    "another length": {"0.pose.points": torch.rand(3, 75, 3)},
    "another shape": {"0.pose.points": torch.rand(2, 74, 3)},
    "another type": {"0.pose.points": torch.rand(2, 75, 3).double()},
    "another signal": {"0.face.points": torch.rand(2, 478, 3)},
    "another clip": {"1.pose.points": torch.rand(2, 75, 3)},
    "frames outside": {"0.frames": torch.tensor([0, 40])},
    "frames twice": {"0.frames": torch.tensor([3, 3])},
    "no shares": {"0.pose.share": torch.zeros(256)},
    "no picture": {"0.style": torch.zeros(4, 8, 8)},
    "no class": {"clusters.x": torch.zeros(4, 8)},
    "no rows": {"clusters.3": torch.zeros(0, 8)},
}


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics_of_other_footage_are_refused(
    model_folder: Path, case: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    path = folder / "statistics.safetensors"
    save_file({**load_file(path), **STATISTICS[case]}, path)
    with pytest.raises(CheckpointInvalid, match=r"statistics\.safetensors: "):
        load_model(folder)


def test_a_model_without_its_plate_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "plates.safetensors").unlink()
    with pytest.raises(CheckpointInvalid, match=r"plates\.safetensors lacks the background"):
        load_model(folder)
    (folder / "plates.safetensors").symlink_to("plates.safetensors")
    with pytest.raises(CheckpointInvalid, match=r"plates\.safetensors is missing"):
        load_model(folder)


def adam(**changes: Any) -> dict[str, Any]:
    layer = torch.nn.Linear(2, 3)
    optimiser = torch.optim.Adam(layer.parameters(), betas=(0.5, 0.9))
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    state: dict[str, Any] = optimiser.state_dict()
    state["state"][0].update(changes)
    return state


@pytest.mark.parametrize(
    "state",
    [
        None, {}, [], {"state": {}, "param_groups": []}, adam(exp_avg=torch.zeros(7)),
        adam(exp_avg_sq=torch.full((3, 2), torch.nan)), adam(step=torch.zeros(3)),
        adam(exp_avg="x"), adam(more=torch.zeros(())),
    ],
    ids=range(9),
)  # fmt: skip
def test_adam_moments_of_other_weights_are_refused(state: Any, tmp_path: Path) -> None:
    from v2v.tensors import load_optimiser

    own = torch.optim.Adam(torch.nn.Linear(2, 3).parameters(), betas=(0.5, 0.9))
    with pytest.raises(CheckpointInvalid, match=r"optimisers\.pt does not fit"):
        load_optimiser(own, state, tmp_path)


def test_adam_moments_are_loaded_but_settings_are_not(tmp_path: Path) -> None:
    from v2v.tensors import load_optimiser

    own = torch.optim.Adam(torch.nn.Linear(2, 3).parameters(), betas=(0.5, 0.9))
    state = adam()
    state["param_groups"][0]["betas"] = (2.0, "x")
    load_optimiser(own, state, tmp_path)
    assert own.param_groups[0]["betas"] == (0.5, 0.9)
    first = own.param_groups[0]["params"][0]
    assert torch.equal(own.state[first]["exp_avg"], state["state"][0]["exp_avg"])


def test_progress_out_of_range_is_refused(tmp_path: Path) -> None:
    for changes in ({"step": -(2**63)}, {"lr_scale": 0.0}, {"bptt_steps": 99}, {"seconds": "1"}):
        checkpoint = Checkpoint({**PROGRESS, **changes}, {}, {})
        with pytest.raises(CheckpointInvalid, match=rf"progress\.{next(iter(changes))}: "):
            Progress.read(dict(checkpoint.progress), tmp_path)
    assert Progress.read({**PROGRESS, "of a later version": 1}, tmp_path)[0].step == 8


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        "", " ", ".", "..", "...", "../../x", "/absolute", "a/b/c", "a\\b", "a\nb", "a\tb",
        "a\x1b[31mb", "\0", "x" * 201, "ü" * 101, "-x", "--help", ".hidden", "x ", "\u202eevil",
        "\udcff",
    ],
)  # fmt: skip
def test_a_name_that_is_not_a_plain_folder_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name=.* cannot name a folder"):
        check_name(name)


@pytest.mark.parametrize("name", ["b", "Tänzer 2", "x.", "a:b", "~", "$HOME", "😀", "x" * 200])
def test_plain_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


def test_a_generator_of_a_package_that_is_not_installed_is_named(
    record_paths: dict[str, Path],
) -> None:
    write(record_paths["model"], {**MODEL, "generator": {"name": "absent", "channels": 3}})
    with pytest.raises(CheckpointInvalid, match=r"model\.json: generator: .*'absent'"):
        build(record_paths["model"].parent)
