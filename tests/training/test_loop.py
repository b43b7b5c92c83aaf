"""The training loop: reproducible, resumable, saves memory and reports clear errors."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_settings import SMALL

from v2v.checkpoint import load_model
from v2v.errors import (
    ConfigError,
    OutOfMemory,
    RunConflict,
    SignalMissing,
    StoreDamaged,
    TooFewFrames,
    TrainingDiverged,
    V2VError,
)
from v2v.progress import Silent
from v2v.resume import load_checkpoint
from v2v.training import run as run_module
from v2v.training.loop import train
from v2v.training.run import RunFolder, read_run
from v2v.training.settings import TrainSettings
from v2v.training.trainer import Trainer

Settings = Callable[..., TrainSettings]


class RecordingReporter(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Killed(BaseException):
    """Simulates SIGKILL: no clean-up runs."""


def run(settings: TrainSettings, store: Path, folder: Path, **options: Any) -> RecordingReporter:
    report = RecordingReporter()
    train(settings, [store], folder, report, **options)
    return report


def last_state(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run as one flat dict."""
    checkpoint = load_checkpoint(RunFolder(folder).saved()[-1])
    found: dict[str, Any] = {
        f"{module}/{k}": v for module, state in checkpoint.modules.items() for k, v in state.items()
    }
    for name, adam in checkpoint.optimisers.items():
        for number, moments in adam["state"].items():
            found |= {f"{name}/{number}/{k}": v for k, v in moments.items()}
        found[f"{name}/rates"] = torch.tensor([g["lr"] for g in adam["param_groups"]])
    plain = {k: v for k, v in checkpoint.progress.items() if k != "seconds"}
    return {**found, "progress": plain}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if torch.is_tensor(value) else value == second[name]
        assert same, f"{name} differs"


def losses(folder: Path) -> list[Any]:
    return [(e.step, e.losses) for e in RunFolder(folder).entries()]


@pytest.fixture(scope="module")
def uninterrupted(dance: Path, small_settings: Settings, tmp_path_factory: Any) -> Path:
    """An uninterrupted run: 8 updates over both sizes and windows of 1, 2 and 4 frames."""
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("straight") / "run"
    run(small_settings(8), dance, folder)
    return folder


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize(
    ("window", "saving"), [(0, "never"), (2, "every window"), (5, "every window"), (5, "never")]
)
def test_a_killed_run_resumes_bit_for_bit(
    window: int, saving: str, uninterrupted: Path, dance: Path, small_settings: Settings,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Weights, moving average, moments, schedule and data order are the same at every kill."""
    often = {"output.checkpoint_minutes": 1e-6 if saving == "every window" else 1e6}
    settings = small_settings(8, **often)
    original, seen = Trainer.window, []

    def killing(self: Trainer, *arguments: Any) -> Any:
        if len(seen) == window:
            raise Killed
        seen.append(1)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "window", killing)
        with pytest.raises(Killed):
            run(settings, dance, tmp_path / "run")
    run(settings, dance, tmp_path / "run")
    assert_same(last_state(tmp_path / "run"), last_state(uninterrupted))
    assert losses(tmp_path / "run") == losses(uninterrupted)


def test_moved_data_is_recognised(
    uninterrupted: Path, dance: Path, small_settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A run identifies its clips by their hashes, not by their paths."""
    first = Path(shutil.copytree(dance, tmp_path / "a"))
    original, seen = Trainer._update, []

    def interrupting(self: Trainer) -> None:
        seen.append(1)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(small_settings(8), first, tmp_path / "run")
    report = run(small_settings(8), first.rename(tmp_path / "b"), tmp_path / "run")
    assert any("resuming from step 3" in note for note in report.notes)
    assert_same(last_state(tmp_path / "run"), last_state(uninterrupted))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"] == [str(tmp_path / "b")]


def test_a_run_of_an_earlier_format_is_refused(
    uninterrupted: Path, dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1, "tool": "v2v 0.0.9"}))
    before = last_state(folder)
    with pytest.raises(RunConflict, match="earlier version of v2v .format 1, v2v 0.0.9"):
        run(small_settings(8), dance, folder)
    assert_same(last_state(folder), before)
    assert read_run(folder).data, "evaluation must still find its clips"


def test_other_data_in_the_same_place_is_refused(
    uninterrupted: Path, dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    path = folder / "run.json"
    record = json.loads(path.read_text())
    assert set(record["files"][0]) == {
        "frames.mp4", "pose.npz", "segmentation.mkv", "flow.mkv",
    }  # fmt: skip
    record["files"][0]["pose.npz"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(RunConflict, match="run with other settings: data"):
        run(small_settings(8), dance, folder)
    # Earlier versions stored only the path.
    del record["files"]
    path.write_text(json.dumps(record))
    run(small_settings(8), dance, folder)
    moved = Path(shutil.copytree(dance, tmp_path / "moved"))
    path.write_text(json.dumps(record))
    with pytest.raises(RunConflict, match="run with other settings: data"):
        run(small_settings(8), moved, folder)


def test_a_changed_byte_of_the_data_is_found_before_training(
    dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(dance, tmp_path / "a"))
    raw = bytearray((store / "pose.npz").read_bytes())
    raw[-1] ^= 1
    (store / "pose.npz").write_bytes(raw)
    with pytest.raises(StoreDamaged, match=r"pose\.npz was changed"):
        run(small_settings(8), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_uninterrupted_run_has_all_stages(uninterrupted: Path) -> None:
    """The tests above rely on this: sizes and lengths grow."""
    seen = {(e.size, e.length) for e in RunFolder(uninterrupted).entries()}
    assert {size for size, _ in seen} == {(32, 32), (64, 64)} or len(seen) >= 4, seen


@pytest.mark.parametrize(("update", "frame"), [(2, 0), (3, 2), (7, 2)])
def test_a_run_stopped_by_a_signal_resumes_exactly(
    update: int, frame: int, uninterrupted: Path, dance: Path, small_settings: Settings,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The stop comes at the end of a window or in the middle of one."""
    original, seen = Trainer._update, []

    def interrupting(self: Trainer) -> None:
        seen.append(1)
        if len(seen) == update:
            signal.raise_signal(signal.SIGTERM)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(small_settings(8), dance, tmp_path / "run")
    assert len(seen) == update, "only the current update is finished"
    assert load_checkpoint(RunFolder(tmp_path / "run").saved()[-1]).progress["frame"] == frame
    report = run(small_settings(8), dance, tmp_path / "run")
    assert any("resuming from step" in note for note in report.notes)
    assert_same(last_state(tmp_path / "run"), last_state(uninterrupted))


def test_another_seed_changes_the_losses(
    uninterrupted: Path, dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    run(small_settings(8, **{"loop.seed": 1}), dance, tmp_path / "run")
    assert losses(tmp_path / "run") != losses(uninterrupted)


def test_a_finished_run_stays_unchanged(
    uninterrupted: Path, dance: Path, small_settings: Settings
) -> None:
    before = last_state(uninterrupted)
    report = run(small_settings(8), dance, uninterrupted)
    assert any("already trained" in note for note in report.notes)
    assert_same(last_state(uninterrupted), before)


def test_the_model_is_the_moving_average_and_loads_without_extras(uninterrupted: Path) -> None:
    """It loads without MediaPipe, decord and the command line's libraries."""
    model, known = load_model(uninterrupted), last_state(uninterrupted)
    for key, value in model.generator.state_dict().items():
        assert torch.equal(value, known[f"ema/{key}"])
    assert model.record.signals[0].name == "pose" and model.record.clips[0].still
    points = model.statistics["0.pose.points"]
    assert points.shape[1:] == (75, 3)
    assert len(points) == model.record.clips[0].trained[1], "held-out poses must not be stored"
    code = (
        "import sys; blocked = ('mediapipe', 'decord', 'typer', 'v2v.preprocess')\n"
        "class Block:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in blocked or name.split('.')[0] in blocked: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from v2v.checkpoint import load_model\n"
        "print(load_model(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(uninterrupted)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    # The other process does not have the shrunken preset of the tests.
    assert "Model(pose" in done.stdout or "weights that do not match" in done.stderr, done.stderr


# ---------------------------------------------------------------- what one step does


def trainer(settings: TrainSettings, store: Path) -> Trainer:
    from v2v.training.fabric import launch
    from v2v.training.prepare import open_windows, plan_run

    windows = open_windows(settings, [store])
    training = Trainer(launch(settings), settings, windows, plan_run(settings, windows), Silent())
    training.progress.stage = len(training.plan.schedule) - 1
    return training


QUIET = {  # only the windows are random
    "discriminator_augment.probability": 0, "augment.past": {"noise": 0, "blur": 0, "colour": 0},
    "augment.drop": 0, "augment.jitter": 0,
}  # fmt: skip


def gradients(training: Trainer) -> dict[str, torch.Tensor]:
    stage = training.enter_stage()
    kept: dict[str, torch.Tensor] = {}

    def keep() -> None:
        for name, module in (("g", training.generator), ("d", training.discriminators)):
            for key, parameter in module.named_parameters():
                if parameter.grad is not None:
                    kept[f"{name}/{key}"] = parameter.grad.clone()
        training.progress.step += 1

    training._update = keep  # type: ignore[method-assign]
    training.window(next(training.batches(stage)))
    return kept


def test_accumulated_parts_give_the_gradients_of_the_whole_batch(
    dance: Path, small_settings: Settings
) -> None:
    whole = small_settings(**QUIET, **{"loop.updates": "window", "schedule.frames": 4})
    parts = small_settings(**QUIET, **{"loop.updates": "window", "schedule.frames": 4,
                                       "loop.accumulate": 2})  # fmt: skip
    first, second = gradients(trainer(whole, dance)), gradients(trainer(parts, dance))
    assert first.keys() == second.keys()
    for name, value in first.items():
        scale = max(float(value.abs().max()), 1e-6)
        assert (value - second[name]).abs().max() < 1e-2 * scale, name


def test_features_are_computed_once_per_chunk(
    dance: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real features are computed once, and the generator step leaves discriminators frozen."""
    training = trainer(small_settings(), dance)
    stage = training.enter_stage()
    batch = next(training.batches(stage))
    counted = {"perceptual": 0, "real": 0, "calls": 0}
    original = training.objective.perceptual.features
    monkeypatch.setattr(
        training.objective.perceptual, "features",
        lambda real: counted.update(perceptual=counted["perceptual"] + 1) or original(real),
    )  # fmt: skip

    def count(_: Any, arguments: tuple[Any, ...]) -> None:
        counted["calls"] += 1
        counted["real"] += arguments[1] is not None

    training.discriminators.register_forward_pre_hook(count)
    generator_step = training.objective.for_generator

    def watched(*arguments: Any, **named: Any) -> Any:
        assert not any(p.requires_grad for p in training.discriminators.parameters())
        return generator_step(*arguments, **named)

    monkeypatch.setattr(training.objective, "for_generator", watched)
    training.window(batch)
    chunks = stage.length // 2
    assert counted == {"perceptual": chunks, "real": chunks, "calls": 2 * chunks}


def test_only_the_new_scale_trains_while_the_lower_ones_are_frozen(
    dance: Path, small_settings: Settings
) -> None:
    training = trainer(small_settings(), dance)
    training.progress.stage = next(
        i for i, s in enumerate(training.plan.schedule) if s.freeze_lower
    )
    stage = training.enter_stage()
    before = {k: v.clone() for k, v in training.generator.state_dict().items()}
    batches = training.batches(stage)
    for _ in range(2):  # no gradient passes the new heads' last layer at first: it is zero
        training.window(next(batches))
    moved = {k.split(".")[0] + k.split(".")[1] for k, v in training.generator.state_dict().items()
             if not torch.equal(v, before[k])}  # fmt: skip
    assert moved == {"finer0", "heads1"}


@pytest.mark.parametrize("name", ["pix2pix", "pix2pixhd", "spade"])
def test_baselines_train_in_the_same_loop(
    name: str, dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    settings = small_settings(2, **{"generator.name": name, "schedule.lengths": [1]})
    run(settings, dance, tmp_path / "run")
    assert load_model(tmp_path / "run").record.generator["name"] == name


@pytest.mark.parametrize(
    "values, begins",
    [
        ({}, True),
        ({"generator.control_points": "off"}, False),
        ({"generator.compose": "none"}, False),
    ],
)
def test_control_points_are_used_by_default_and_can_be_disabled(
    values: dict[str, Any], begins: bool, dance: Path, small_settings: Settings
) -> None:
    training = trainer(small_settings(**values), dance)
    assert training.plan.generator["control_points"] is begins
    batch = next(training.batches(training.enter_stage()))
    assert (batch.control_points is not None) is begins


@pytest.mark.parametrize(
    "values, compose",
    [
        ({}, "condition"),
        ({"generator.references": "off"}, "blend"),
        ({"generator.compose": "both"}, "both"),
    ],
)
def test_the_past_is_blended_only_without_references(
    values: dict[str, Any], compose: str, dance: Path, small_settings: Settings
) -> None:
    assert trainer(small_settings(**values), dance).plan.generator["compose"] == compose


@pytest.mark.parametrize(
    "values, past",
    [
        ({}, "nothing"),
        ({"generator.control_points": "off"}, "signals"),
        ({"generator.background_plate": "off"}, "nothing"),
        ({"generator.background_plate": "off", "generator.references": "off"}, "frames"),
        ({"generator.compose": "none"}, "frames"),
        ({"generator.past": "signals"}, "signals"),
    ],
)
def test_past_inputs_depend_on_control_points_plate_and_references(
    values: dict[str, Any], past: str, dance: Path, small_settings: Settings
) -> None:
    training = trainer(small_settings(**values), dance)
    assert training.plan.generator["past"] == training.generator.past == past


@pytest.mark.parametrize(
    "values, flip",
    [({}, 0.5), ({"augment.flip": 0.0}, 0.0), ({"generator.references": "off"}, None)],
)
def test_flips_are_enabled_only_with_references(
    values: dict[str, Any], flip: float | None, dance: Path, small_settings: Settings
) -> None:
    training = trainer(small_settings(**values), dance)
    assert training.windows.augmentation is not None
    assert training.windows.augmentation.flip == flip


TEMPORAL = ["temporal_1", "temporal_3", "temporal_9"]


@pytest.mark.parametrize(
    "off", [["image"], ["image", "face"], TEMPORAL, ["image", *TEMPORAL, "face", "hands"]]
)
def test_discriminators_can_be_disabled(
    off: list[str], dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    settings = small_settings(3, **{f"losses.discriminators.{name}": 0 for name in off})
    run(settings, dance, tmp_path / "run")
    named = {key for _, found in losses(tmp_path / "run") for key in found}
    assert not [key for key in named for name in off if key.endswith("/" + name)]


# ---------------------------------------------------------------- errors


def test_nan_losses_roll_back_the_run_and_lower_the_rates(
    dance: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, broken = Trainer.window, []

    def breaking(self: Trainer, *arguments: Any) -> Any:
        found = original(self, *arguments)
        if self.progress.step >= 3 and not broken:
            broken.append(1)
            with torch.no_grad():
                next(self.generator.parameters()).fill_(float("nan"))
            found["total"] = torch.tensor(float("nan"))
        return found

    monkeypatch.setattr(Trainer, "window", breaking)
    report = run(small_settings(6), dance, tmp_path / "run")
    assert any("restored step 0, with the learning rates scaled by 0.5" in n for n in report.notes)
    end = last_state(tmp_path / "run")
    assert end["progress"]["lr_scale"] == 0.5
    assert all(v.isfinite().all() for v in end.values() if torch.is_tensor(v))
    steps = [e.step for e in RunFolder(tmp_path / "run").entries()]
    assert steps == sorted(set(steps)), "the log must not keep rolled-back updates"


def test_nan_weights_are_never_saved(
    dance: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient can be NaN although the losses are finite."""
    original, broken = Trainer.window, []

    def breaking(self: Trainer, *arguments: Any) -> Any:
        found = original(self, *arguments)
        if self.progress.step >= 3 and not broken:
            broken.append(1)
            with torch.no_grad():
                next(self.generator.parameters()).fill_(float("nan"))
        return found

    monkeypatch.setattr(Trainer, "window", breaking)
    settings = small_settings(6, **{"output.checkpoint_minutes": 1e-6})
    report = run(settings, dance, tmp_path / "run")
    assert any("the learning rates scaled by" in note for note in report.notes)
    for folder in RunFolder(tmp_path / "run").saved():
        weights = load_checkpoint(folder).modules
        assert all(v.isfinite().all() for state in weights.values() for v in state.values())


def test_a_run_that_diverges_repeatedly_ends(
    dance: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = {"total": torch.tensor(float("nan"))}
    monkeypatch.setattr(Trainer, "window", lambda self, *_: nan)
    # There are no updates here, so only the clock triggers a check of the losses.
    settings = small_settings(6, **{"output.checkpoint_minutes": 1e-6})
    with pytest.raises(TrainingDiverged, match="the last good checkpoint is") as caught:
        run(settings, dance, tmp_path / "run")
    assert "generator_rate" in (caught.value.hint or "")


def test_out_of_memory_reduces_the_load_and_reports_it(
    dance: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, tried = Trainer._window, []

    def hungry(self: Trainer, *arguments: Any) -> Any:
        tried.append(1)
        if len(tried) <= 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_window", hungry)
    report = run(small_settings(2, **{"schedule.frames": 4}), dance, tmp_path / "run")
    changes = [note for note in report.notes if note.startswith("out of memory")]
    assert [c.split(": ")[1].split(" from")[0] for c in changes] == [
        "batches are split into 2 parts", "batches are split into 4 parts",
        "gradients flow through 1 frame(s)",
    ]  # fmt: skip
    assert last_state(tmp_path / "run")["progress"]["bptt_steps"] == 1, (
        "a resumed run must keep the reduced load"
    )


def test_too_little_memory_for_a_single_frame_is_an_error(
    dance: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(self: Trainer, *_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(Trainer, "_window", hungry)
    with pytest.raises(OutOfMemory, match="single frame"):
        run(small_settings(2), dance, tmp_path / "run")


def test_a_run_with_other_settings_is_not_changed(
    uninterrupted: Path, dance: Path, small_settings: Settings
) -> None:
    before = last_state(uninterrupted)
    with pytest.raises(RunConflict, match=r"generator\.compose: 'auto' before, 'both' now"):
        run(small_settings(8, **{"generator.compose": "both"}), dance, uninterrupted)
    assert_same(last_state(uninterrupted), before)


def test_operational_settings_may_change(
    dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    run(small_settings(2), dance, tmp_path / "run")
    run(small_settings(4, **{"output.log_every": 2}), dance, tmp_path / "run")
    assert last_state(tmp_path / "run")["progress"]["step"] >= 4


def test_overwriting_starts_again(
    uninterrupted: Path, dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    run(small_settings(2), dance, tmp_path / "run")
    run(small_settings(8), dance, tmp_path / "run", overwrite=True)
    assert_same(last_state(tmp_path / "run"), last_state(uninterrupted))


@pytest.mark.parametrize("removed", [0, 1, 3, 100])
def test_a_kill_while_overwriting_leaves_a_run(
    removed: int, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill during or right after clearing, the same command starts over."""
    folder = tmp_path / "run"
    for name in ("checkpoints/00000002", "checkpoints/00000004", "model", "previews"):
        (folder / name).mkdir(parents=True)
    (folder / "checkpoints/00000004/checkpoint.json").touch()
    with RunFolder(folder) as run_folder:
        for name in ("checkpoints", "model", "previews"):
            (folder / name).rename(tmp_path / name)
        run_folder.begin(small_settings(2), [Path("data/a")], [{}])
        for name in ("checkpoints", "model", "previews"):
            (tmp_path / name).rename(folder / name)
    original, count = run_module.remove, [0]

    def remove(path: Path) -> None:
        if count[0] == removed:
            raise Killed
        count[0] += 1
        original(path)

    with monkeypatch.context() as patch, contextlib.suppress(Killed), RunFolder(folder) as killed:
        patch.setattr(run_module, "remove", remove)
        killed.clear()
        patch.setattr(run_module.OmegaConf, "to_yaml", lambda _: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):  # between the two files
            killed.begin(small_settings(4), [Path("data/b")], [{}])
    with RunFolder(folder) as again:
        assert again.exists and not again.saved(), "it would resume from a deleted checkpoint"
        again.clear()
        again.begin(small_settings(4), [Path("data/b")], [{}])
        assert {p.name for p in folder.iterdir()} == {".lock", "run.json", "config.yaml"}


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    left = [
        ".model.partial/model.json", ".predictor.checkpoint.old/checkpoint.json",
        "predictor.checkpoint/checkpoint.json", "checkpoints/.00000004.partial/weights.safetensors",
        "checkpoints/.00000002.old/checkpoint.json", "checkpoints/00000002/checkpoint.json",
        "checkpoints/.00000003.old/checkpoint.json", "previews/.00000004.mp4.partial",
        ".run.json.partial", ".config.yaml.partial", ".log.jsonl.partial", "run.json",
    ]  # fmt: skip
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with RunFolder(tmp_path):
        pass
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert there == {
        ".lock", "run.json", "predictor.checkpoint/checkpoint.json",
        "checkpoints/00000002/checkpoint.json", "checkpoints/00000003/checkpoint.json",
    }  # fmt: skip


def test_a_folder_that_is_not_a_run_is_not_changed(
    dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunConflict, match="nor a run of v2v"):
            run(small_settings(), dance, tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_in_place_of_the_run_folder_is_refused(
    dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("")
    for folder in (tmp_path / "run", tmp_path / "run" / "b"):
        with pytest.raises(RunConflict, match="a file is in its place"):
            run(small_settings(), dance, folder)


def test_two_processes_do_not_share_a_run(
    dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    with RunFolder(tmp_path / "run"), pytest.raises(RunConflict, match="another process"):
        run(small_settings(), dance, tmp_path / "run")


def test_a_missing_signal_names_the_command(
    dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(SignalMissing) as caught:
        run(small_settings(task="face"), dance, tmp_path / "run")
    assert f"v2v preprocess {dance} --signal face" in (caught.value.hint or "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "values, error, expected",
    [
        ({"data.size": 50}, ConfigError, "a multiple of"),
        ({"schedule.lengths": [128]}, TooFewFrames, "too few frames"),
        ({"generator.name": "unet"}, V2VError, "unknown generator 'unet'"),
        ({"generator.scales": 4}, ConfigError, "fewer scales"),
        ({"generator.background_plate": "on", "generator.prior": "on"}, ConfigError, "are both on"),
        (
            {"generator.control_points": "on", "generator.sequential": False},
            ConfigError,
            "set it to auto",
        ),
        ({"generator.past": "nothing", "generator.compose": "none"}, ConfigError, "no image"),
        ({"discriminator.layers": 5}, ConfigError, "discriminator.layers"),
    ],
)
def test_invalid_settings_are_reported_before_anything_is_written(
    values: dict[str, Any], error: type[V2VError], expected: str, dance: Path,
    small_settings: Settings, tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(error) as caught:
        run(small_settings(**values), dance, tmp_path / "run")
    assert expected in f"{caught.value.message} {caught.value.hint}"
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- several processes

TWO = """
import sys, json
from pathlib import Path
import torch
torch.set_num_threads(1)
from v2v.config import load_config
from v2v.models import generator_settings as g
from v2v.progress import Silent
from v2v.training.loop import train
from v2v.training.settings import TrainSettings
g.PRESETS["mobile"] = g.Architecture(16, 32, 1, 8, (16,), 1)
store, folder, values = sys.argv[1:]
settings = load_config(TrainSettings, "train", "train-pose", values=json.loads(values))
train(settings, [Path(store)], Path(folder), Silent())
"""


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(
    dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    """After one update, Adam's first moments are the gradients, times a constant."""
    values = {
        **SMALL, **QUIET, "schedule.lengths": [2], "schedule.frames": 4, "budget.steps": 1,
        "generator.scales": 1, "optimiser.clip": None, "task": "pose", "loop.device": "cpu",
    }  # fmt: skip
    script = tmp_path / "two.py"
    script.write_text(TWO)
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc-per-node", str(processes), str(script), str(dance),
                   str(tmp_path / f"by{processes}"), json.dumps(values)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_checkpoint(RunFolder(tmp_path / f"by{n}").saved()[-1]) for n in (1, 2))
    for name in ("g", "d"):
        states = one.optimisers[name]["state"], two.optimisers[name]["state"]
        assert states[0].keys() == states[1].keys()
        largest = max(float(moments["exp_avg"].abs().max()) for moments in states[0].values())
        for number, moments in states[0].items():
            first, second = moments["exp_avg"], states[1][number]["exp_avg"]
            # Some gradients, e.g. of a last bias, are sums of terms up to 1 that cancel: only
            # their rounding errors remain.
            scale = max(float(first.abs().max()), 1e-3 * largest)
            assert (first - second).abs().max() < 2e-3 * scale + 1e-8, (name, number)
