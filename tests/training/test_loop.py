"""The loop: exact, resumable, frugal, and clear when something goes wrong."""

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

from v2v.checkpoint import load_checkpoint, load_model
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
from v2v.training import run as run_module
from v2v.training.loop import Trainer, train
from v2v.training.run import RunFolder, read_run
from v2v.training.settings import TrainSettings

Settings = Callable[..., TrainSettings]


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Killed(BaseException):
    """Stands for SIGKILL: nothing gets to tidy up."""


def run(settings: TrainSettings, store: Path, folder: Path, **options: Any) -> Heard:
    heard = Heard()
    train(settings, [store], folder, heard, **options)
    return heard


def final(folder: Path) -> dict[str, Any]:
    """Everything that a finished run knows, as one flat dict."""
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
def straight(dance: Path, small_settings: Settings, tmp_path_factory: Any) -> Path:
    """A run that nobody disturbs: 6 updates over both sizes and windows of 1, 2 and 4 frames."""
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("straight") / "run"
    run(small_settings(8), dance, folder)
    return folder


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize(
    ("window", "saving"), [(0, "never"), (2, "every window"), (5, "every window"), (5, "never")]
)
def test_a_killed_run_goes_on_bit_for_bit(
    window: int, saving: str, straight: Path, dance: Path, small_settings: Settings,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Weights, moving average, moments, schedule and data order, wherever it was killed."""
    often = {"output.checkpoint_minutes": 1e-6 if saving == "every window" else 1e6}
    settings = small_settings(8, **often)
    honest, seen = Trainer.window, []

    def killing(self: Trainer, *arguments: Any) -> Any:
        if len(seen) == window:
            raise Killed
        seen.append(1)
        return honest(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "window", killing)
        with pytest.raises(Killed):
            run(settings, dance, tmp_path / "run")
    run(settings, dance, tmp_path / "run")
    assert_same(final(tmp_path / "run"), final(straight))
    assert losses(tmp_path / "run") == losses(straight)


def test_data_that_was_moved_is_the_same_data(
    straight: Path, dance: Path, small_settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A run knows its clips by their hashes; what a store gained beside is no other data."""
    first = Path(shutil.copytree(dance, tmp_path / "a"))
    honest, seen = Trainer._update, []

    def interrupting(self: Trainer) -> None:
        seen.append(1)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        honest(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(small_settings(8), first, tmp_path / "run")
    heard = run(small_settings(8), first.rename(tmp_path / "b"), tmp_path / "run")
    assert any("going on from step 3" in note for note in heard.notes)
    assert_same(final(tmp_path / "run"), final(straight))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"] == [str(tmp_path / "b")]


def test_a_run_of_an_earlier_format_is_refused_by_name(
    straight: Path, dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "run"))
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1, "tool": "v2v 0.0.9"}))
    before = final(folder)
    with pytest.raises(RunConflict, match="earlier version of v2v .format 1, v2v 0.0.9"):
        run(small_settings(8), dance, folder)
    assert_same(final(folder), before)
    assert read_run(folder).data, "evaluation still finds its clips"


def test_other_data_in_the_same_place_is_refused(
    straight: Path, dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "run"))
    path = folder / "run.json"
    record = json.loads(path.read_text())
    assert set(record["files"][0]) == {
        "frames.mp4", "pose.npz", "segmentation.mkv", "flow.mkv",
    }  # fmt: skip
    record["files"][0]["pose.npz"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(RunConflict, match="run of other settings: data"):
        run(small_settings(8), dance, folder)
    # An earlier v2v noted the place only.
    del record["files"]
    path.write_text(json.dumps(record))
    run(small_settings(8), dance, folder)
    moved = Path(shutil.copytree(dance, tmp_path / "moved"))
    path.write_text(json.dumps(record))
    with pytest.raises(RunConflict, match="run of other settings: data"):
        run(small_settings(8), moved, folder)


def test_a_changed_byte_of_the_data_is_found_before_training(
    dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(dance, tmp_path / "a"))
    raw = bytearray((store / "pose.npz").read_bytes())
    raw[-1] ^= 1
    (store / "pose.npz").write_bytes(raw)
    with pytest.raises(StoreDamaged, match=r"pose\.npz is not the file that was written"):
        run(small_settings(8), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_stages_were_all_there(straight: Path) -> None:
    """What the tests above rest on: sizes and lengths did grow."""
    seen = {(e.size, e.length) for e in RunFolder(straight).entries()}
    assert {size for size, _ in seen} == {(32, 32), (64, 64)} or len(seen) >= 4, seen


@pytest.mark.parametrize(("update", "frame"), [(2, 0), (3, 2), (7, 2)])
def test_ctrl_c_saves_and_the_rest_follows_exactly(
    update: int, frame: int, straight: Path, dance: Path, small_settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At the end of a window and in the middle of one."""
    honest, seen = Trainer._update, []

    def interrupting(self: Trainer) -> None:
        seen.append(1)
        if len(seen) == update:
            signal.raise_signal(signal.SIGTERM)
        honest(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(small_settings(8), dance, tmp_path / "run")
    assert len(seen) == update, "the update at hand is finished, no more"
    assert load_checkpoint(RunFolder(tmp_path / "run").saved()[-1]).progress["frame"] == frame
    heard = run(small_settings(8), dance, tmp_path / "run")
    assert any("going on from step" in note for note in heard.notes)
    assert_same(final(tmp_path / "run"), final(straight))


def test_another_seed_is_another_run(
    straight: Path, dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    run(small_settings(8, **{"loop.seed": 1}), dance, tmp_path / "run")
    assert losses(tmp_path / "run") != losses(straight)


def test_a_finished_run_is_left_as_it_is(
    straight: Path, dance: Path, small_settings: Settings
) -> None:
    before = final(straight)
    heard = run(small_settings(8), dance, straight)
    assert any("trained already" in note for note in heard.notes)
    assert_same(final(straight), before)


def test_the_model_is_the_moving_average_and_loads_alone(straight: Path) -> None:
    """On a machine that has nothing but torch: no MediaPipe, no decord, no OpenCV even."""
    model, known = load_model(straight), final(straight)
    for key, value in model.generator.state_dict().items():
        assert torch.equal(value, known[f"ema/{key}"])
    assert model.record.signals[0].name == "pose" and model.record.clips[0].still
    points = model.statistics["0.pose.points"]
    assert points.shape[1:] == (75, 3)
    assert len(points) == model.record.clips[0].trained[1], "held-out poses are not remembered"
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
        [sys.executable, "-c", code, str(straight)], capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    # The tests' small network is not the preset that a stranger's process knows.
    assert "Model(pose" in done.stdout or "other weights" in done.stderr, done.stderr


# ---------------------------------------------------------------- what one step does


def trainer(settings: TrainSettings, store: Path) -> Trainer:
    from v2v.training.loop import launch
    from v2v.training.prepare import open_windows, plan_run

    windows = open_windows(settings, [store])
    made = Trainer(launch(settings), settings, windows, plan_run(settings, windows), Silent())
    made.progress.stage = len(made.plan.schedule) - 1
    return made


QUIET = {  # nothing at random but the windows themselves
    "discriminator_augment.probability": 0, "augment.past": {"noise": 0, "blur": 0, "colour": 0},
    "augment.drop": 0, "augment.jitter": 0,
}  # fmt: skip


def gradients(made: Trainer) -> dict[str, torch.Tensor]:
    stage = made.enter_stage()
    kept: dict[str, torch.Tensor] = {}

    def keep() -> None:
        for name, module in (("g", made.generator), ("d", made.discriminators)):
            for key, parameter in module.named_parameters():
                if parameter.grad is not None:
                    kept[f"{name}/{key}"] = parameter.grad.clone()
        made.progress.step += 1

    made._update = keep  # type: ignore[method-assign]
    made.window(next(made.batches(stage)))
    return kept


def test_a_batch_in_parts_gives_the_gradients_of_the_whole(
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


def test_nothing_is_computed_twice(
    dance: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of real frames once a chunk; no weight gradients of critics in the generator's
    step."""
    made = trainer(small_settings(), dance)
    stage = made.enter_stage()
    batch = next(made.batches(stage))
    counted = {"perceptual": 0, "real": 0, "judged": 0}
    honest = made.objective.perceptual.features
    monkeypatch.setattr(
        made.objective.perceptual, "features",
        lambda real: counted.update(perceptual=counted["perceptual"] + 1) or honest(real),
    )  # fmt: skip

    def count(_: Any, arguments: tuple[Any, ...]) -> None:
        counted["judged"] += 1
        counted["real"] += arguments[1] is not None

    made.discriminators.register_forward_pre_hook(count)
    generator_step = made.objective.for_generator

    def watched(*arguments: Any, **named: Any) -> Any:
        assert not any(p.requires_grad for p in made.discriminators.parameters())
        return generator_step(*arguments, **named)

    monkeypatch.setattr(made.objective, "for_generator", watched)
    made.window(batch)
    chunks = stage.length // 2
    assert counted == {"perceptual": chunks, "real": chunks, "judged": 2 * chunks}


def test_only_the_new_scale_learns_while_it_is_alone(dance: Path, small_settings: Settings) -> None:
    made = trainer(small_settings(), dance)
    made.progress.stage = next(i for i, s in enumerate(made.plan.schedule) if s.freeze_lower)
    stage = made.enter_stage()
    before = {k: v.clone() for k, v in made.generator.state_dict().items()}
    batches = made.batches(stage)
    for _ in range(2):  # the new heads' last layer starts at zero: nothing passes it at first
        made.window(next(batches))
    moved = {k.split(".")[0] + k.split(".")[1] for k, v in made.generator.state_dict().items()
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
def test_flow_begins_with_handles_where_it_is_wanted(
    values: dict[str, Any], begins: bool, dance: Path, small_settings: Settings
) -> None:
    made = trainer(small_settings(**values), dance)
    assert made.plan.generator["control_points"] is begins
    batch = next(made.batches(made.enter_stage()))
    assert (batch.control_points is not None) is begins


@pytest.mark.parametrize(
    "values, compose",
    [
        ({}, "condition"),
        ({"generator.references": "off"}, "blend"),
        ({"generator.compose": "both"}, "both"),
    ],
)
def test_the_past_is_blended_over_no_references(
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
def test_the_core_sees_of_the_past_what_nothing_else_tells(
    values: dict[str, Any], past: str, dance: Path, small_settings: Settings
) -> None:
    made = trainer(small_settings(**values), dance)
    assert made.plan.generator["past"] == made.generator.past == past


@pytest.mark.parametrize(
    "values, flip",
    [({}, 0.5), ({"augment.flip": 0.0}, 0.0), ({"generator.references": "off"}, None)],
)
def test_a_person_is_mirrored_beside_mirrored_references_only(
    values: dict[str, Any], flip: float | None, dance: Path, small_settings: Settings
) -> None:
    made = trainer(small_settings(**values), dance)
    assert made.windows.augmentation is not None
    assert made.windows.augmentation.flip == flip


TEMPORAL = ["temporal_1", "temporal_3", "temporal_9"]


@pytest.mark.parametrize(
    "off", [["image"], ["image", "face"], TEMPORAL, ["image", *TEMPORAL, "face", "hands"]]
)
def test_critics_can_be_left_out(
    off: list[str], dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    settings = small_settings(3, **{f"losses.discriminators.{name}": 0 for name in off})
    run(settings, dance, tmp_path / "run")
    named = {key for _, found in losses(tmp_path / "run") for key in found}
    assert not [key for key in named for name in off if key.endswith("/" + name)]


# ---------------------------------------------------------------- trouble


def test_numbers_that_are_none_take_the_run_back_and_slow_it(
    dance: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, broken = Trainer.window, []

    def breaking(self: Trainer, *arguments: Any) -> Any:
        found = honest(self, *arguments)
        if self.progress.step >= 3 and not broken:
            broken.append(1)
            with torch.no_grad():
                next(self.generator.parameters()).fill_(float("nan"))
            found["total"] = torch.tensor(float("nan"))
        return found

    monkeypatch.setattr(Trainer, "window", breaking)
    heard = run(small_settings(6), dance, tmp_path / "run")
    assert any("back to step 0, with 0.5 of the learning rates" in n for n in heard.notes)
    end = final(tmp_path / "run")
    assert end["progress"]["lr_scale"] == 0.5
    assert all(v.isfinite().all() for v in end.values() if torch.is_tensor(v))
    steps = [e.step for e in RunFolder(tmp_path / "run").entries()]
    assert steps == sorted(set(steps)), "the log forgets what was taken back"


def test_weights_that_are_no_numbers_are_never_saved(
    dance: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient may be none where the losses still were numbers."""
    honest, broken = Trainer.window, []

    def breaking(self: Trainer, *arguments: Any) -> Any:
        found = honest(self, *arguments)
        if self.progress.step >= 3 and not broken:
            broken.append(1)
            with torch.no_grad():
                next(self.generator.parameters()).fill_(float("nan"))
        return found

    monkeypatch.setattr(Trainer, "window", breaking)
    settings = small_settings(6, **{"output.checkpoint_minutes": 1e-6})
    heard = run(settings, dance, tmp_path / "run")
    assert any("of the learning rates" in note for note in heard.notes)
    for folder in RunFolder(tmp_path / "run").saved():
        weights = load_checkpoint(folder).modules
        assert all(v.isfinite().all() for state in weights.values() for v in state.values())


def test_a_run_that_diverges_again_and_again_ends(
    dance: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = {"total": torch.tensor(float("nan"))}
    monkeypatch.setattr(Trainer, "window", lambda self, *_: nan)
    # No update is made here, so nothing but the clock makes a check of the losses due.
    settings = small_settings(6, **{"output.checkpoint_minutes": 1e-6})
    with pytest.raises(TrainingDiverged, match="the last good checkpoint is") as caught:
        run(settings, dance, tmp_path / "run")
    assert "generator_rate" in (caught.value.hint or "")


def test_out_of_memory_holds_less_and_says_so(
    dance: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, tried = Trainer._window, []

    def hungry(self: Trainer, *arguments: Any) -> Any:
        tried.append(1)
        if len(tried) <= 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, *arguments)

    monkeypatch.setattr(Trainer, "_window", hungry)
    heard = run(small_settings(2, **{"schedule.frames": 4}), dance, tmp_path / "run")
    said = [note for note in heard.notes if note.startswith("out of memory")]
    assert [s.split(": ")[1].split(" from")[0] for s in said] == [
        "batches are cut into 2 parts", "batches are cut into 4 parts",
        "gradients flow through 1 frame(s)",
    ]  # fmt: skip
    assert final(tmp_path / "run")["progress"]["bptt_steps"] == 1, "a resumed run holds as little"


def test_too_little_memory_for_anything_is_an_error(
    dance: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(self: Trainer, *_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(Trainer, "_window", hungry)
    with pytest.raises(OutOfMemory, match="single frame"):
        run(small_settings(2), dance, tmp_path / "run")


def test_a_run_of_other_settings_is_not_touched(
    straight: Path, dance: Path, small_settings: Settings
) -> None:
    before = final(straight)
    with pytest.raises(RunConflict, match=r"generator\.compose: 'auto' before, 'both' now"):
        run(small_settings(8, **{"generator.compose": "both"}), dance, straight)
    assert_same(final(straight), before)


def test_how_a_run_is_run_may_change(dance: Path, small_settings: Settings, tmp_path: Path) -> None:
    run(small_settings(2), dance, tmp_path / "run")
    run(small_settings(4, **{"output.log_every": 2}), dance, tmp_path / "run")
    assert final(tmp_path / "run")["progress"]["step"] >= 4


def test_overwriting_starts_anew(
    straight: Path, dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    run(small_settings(2), dance, tmp_path / "run")
    run(small_settings(8), dance, tmp_path / "run", overwrite=True)
    assert_same(final(tmp_path / "run"), final(straight))


@pytest.mark.parametrize("removed", [0, 1, 3, 100])
def test_a_kill_while_overwriting_leaves_a_run(
    removed: int, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of clearing, or right after it, the same command starts over."""
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
    honest, count = run_module.remove, [0]

    def remove(path: Path) -> None:
        if count[0] == removed:
            raise Killed
        count[0] += 1
        honest(path)

    with monkeypatch.context() as patch, contextlib.suppress(Killed), RunFolder(folder) as killed:
        patch.setattr(run_module, "remove", remove)
        killed.clear()
        patch.setattr(run_module.OmegaConf, "to_yaml", lambda _: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):  # between the two files
            killed.begin(small_settings(4), [Path("data/b")], [{}])
    with RunFolder(folder) as again:
        assert again.exists and not again.saved(), "it would go on from what was thrown away"
        again.clear()
        again.begin(small_settings(4), [Path("data/b")], [{}])
        assert {p.name for p in folder.iterdir()} == {".lock", "run.json", "config.yaml"}


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
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


def test_a_folder_of_something_else_is_not_touched(
    dance: Path, small_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunConflict, match="no run of v2v"):
            run(small_settings(), dance, tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_in_the_run_s_place(dance: Path, small_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for folder in (tmp_path / "run", tmp_path / "run" / "b"):
        with pytest.raises(RunConflict, match="a file in its place"):
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
    "values, error, said",
    [
        ({"data.size": 50}, ConfigError, "a multiple of"),
        ({"schedule.lengths": [128]}, TooFewFrames, "too few frames"),
        ({"generator.name": "unet"}, V2VError, "unknown generator 'unet'"),
        ({"generator.scales": 4}, ConfigError, "fewer scales"),
        ({"generator.background_plate": "on", "generator.prior": "on"}, ConfigError, "are both on"),
        (
            {"generator.control_points": "on", "generator.sequential": False},
            ConfigError,
            "leave it at",
        ),
        ({"generator.past": "nothing", "generator.compose": "none"}, ConfigError, "no picture"),
        ({"discriminator.layers": 5}, ConfigError, "discriminator.layers=3"),
    ],
)
def test_bad_settings_are_said_before_anything_is_written(
    values: dict[str, Any], error: type[V2VError], said: str, dance: Path,
    small_settings: Settings, tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(error) as caught:
        run(small_settings(**values), dance, tmp_path / "run")
    assert said in f"{caught.value.message} {caught.value.hint}"
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- several processes

TWO = """
import sys, json
from pathlib import Path
import torch
torch.set_num_threads(1)
from v2v.config import load_config
from v2v.models import generator
from v2v.progress import Silent
from v2v.training.loop import train
from v2v.training.settings import TrainSettings
generator.PRESETS["mobile"] = generator.Architecture(16, 32, 1, 8, (16,), 1)
store, folder, values = sys.argv[1:]
settings = load_config(TrainSettings, "train", "train-pose", values=json.loads(values))
train(settings, [Path(store)], Path(folder), Silent())
"""


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
            # Some gradients are sums of what cancels, a last bias' for one, with terms as large
            # as 1: zero but for their rounding.
            scale = max(float(first.abs().max()), 1e-3 * largest)
            assert (first - second).abs().max() < 2e-3 * scale + 1e-8, (name, number)
