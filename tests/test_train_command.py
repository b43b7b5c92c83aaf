"""`v2v train` and `v2v plot` on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from v2v.progress import Silent

FAST = [
    "--size", "64", "-s", "generator.scales=1", "-s", "schedule.lengths=[1,2]",
    "-s", "discriminator.width=8", "-s", "discriminator.layers=2", "-s", "loop.threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn clip of one second, with pose only."""
    from v2v.config import PreprocessSettings, load_config
    from v2v.preprocess.build import preprocess
    from v2v.samples.clips import write_sample

    folder = tmp_path_factory.mktemp("command")
    video = write_sample("person", folder, seconds=1.0, report=Silent())
    settings = load_config(
        PreprocessSettings, "preprocess", values={"frames.size": 96, "preview.enabled": False}
    )
    preprocess(video, ["pose"], settings, output=folder / "data" / "person")
    return folder / "data" / "person"


def v2v(*arguments: object, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "v2v", *map(str, arguments)],
        cwd=where, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--task", "dance"], ["unknown task 'dance'", "face, pose, predict, street"]),
        (["--steps", "5", "--minutes", "1"], ["--steps and --minutes are both given"]),
        (["-s", "generator.presett=base"], ["unknown setting generator.presett",
                                            "did you mean generator.preset?"]),
        (["-s", "generator.preset=huge"], ["setting generator.preset cannot be 'huge'", "mobile"]),
        (["-s", "losses.flow=-1"], ["setting losses.flow cannot be -1"]),
        (["--config", "none.yaml"], ["no such config file"]),
        (["--name", "../../x"], ['--name "../../x" cannot name a folder']),
        (["-s", "generator.scales=50"], ["setting generator.scales cannot be 50"]),
    ],
)  # fmt: skip
def test_invalid_options(
    arguments: list[str], expected: list[str], store: Path, tmp_path: Path
) -> None:
    done = v2v("train", "--data", store, *arguments, where=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for text in expected:
        assert text in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_missing_store_is_reported(tmp_path: Path) -> None:
    done = v2v("train", "--data", "data/none", where=tmp_path)
    assert done.returncode == 1 and "is not a clip store" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_writes_nothing(store: Path, tmp_path: Path) -> None:
    done = v2v("train", "--data", store, *FAST, "--minutes", "3", "--dry-run", "--json",
               where=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [stage["length"] for stage in plan["stages"]] == [1, 2]
    assert sum(stage["minutes"] for stage in plan["stages"]) == pytest.approx(3, abs=0.05)
    assert plan["parameters"]["generator"] > 1e6 and plan["peak_memory_gb"] > 0.1
    assert all(stage["multiply_adds_a_frame"] > 1e7 for stage in plan["stages"])
    assert [stage["measured"] for stage in plan["stages"]].count(True) == 1
    assert plan["updates_measured"] >= 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_train_stop_resume_plot_and_load(store: Path, tmp_path: Path) -> None:
    """A user's workflow: train, Ctrl-C, the same command again, plot, load the model."""
    command = ["train", "--data", store, "--name", "b", *FAST, "--steps", "40"]
    process = subprocess.Popen(
        [sys.executable, "-m", "v2v", *map(str, command)], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    log = tmp_path / "runs" / "b" / "log.jsonl"
    for _ in range(1200):
        if log.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "run the same command again to resume" in stderr and "Traceback" not in stderr

    done = v2v(*command, "--json", where=tmp_path)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["steps"] >= 40 and (tmp_path / outcome["preview"]).stat().st_size > 1000
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] >= 40
    assert {"config.yaml", "run.json", "tensorboard", "checkpoints", "previews", "model"} <= {
        p.name for p in (tmp_path / "runs" / "b").iterdir()
    }

    assert v2v("plot", "runs/b", "-o", "curves.png", where=tmp_path).returncode == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

    again = v2v(*command, "-s", "generator.compose=both", where=tmp_path)
    assert again.returncode == 1 and "generator.compose: 'auto' before" in again.stderr

    code = "import v2v, sys; print(v2v.load_model('runs/b'), 'mediapipe' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert loaded.stdout.startswith("Model(pose, 64x"), loaded.stderr
    assert loaded.stdout.strip().endswith("False")


@pytest.mark.parametrize("budget, updates", [(1e6, 2), (0.0, 1)])
def test_a_dry_run_is_bounded(
    budget: float, updates: int, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the last stage takes too long, the first one is measured and scaled."""
    from v2v.config import load_config
    from v2v.training import estimate
    from v2v.training.settings import TrainSettings

    class RecordingReporter(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    settings = load_config(
        TrainSettings, "train", "train-pose", overrides=[*FAST[3::2], "data.size=64"],
        values={"budget.steps": 8, "schedule.frames": 1},
    )  # fmt: skip
    monkeypatch.setattr(estimate, "BUDGET", budget)
    result = estimate.estimate(settings, [store], RecordingReporter())
    assert [cost.measured for cost in result.stages] == [updates == 1, updates == 2]
    assert result.trials == updates
    assert [note for note in notes if note.startswith("measuring")][-1].startswith(
        f"measuring updates of stage {updates} of 2: "
    )
