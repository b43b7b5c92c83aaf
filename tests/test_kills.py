"""Commands that are killed and run again end like uninterrupted ones and leave nothing behind.

A process that has imported the program is forked for every run, so that a trial takes seconds. The
fork kills itself just before its n-th change of the file system, which covers the moments between
two renames, or after a given time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]

SERVER = """
import json, os, signal, sys
import v2v.evaluation.compare.compare, v2v.pipelines.demo, v2v.evaluation.evaluate
import v2v.pipelines.motion_transfer, v2v.evaluation.study.make, v2v.preprocess.run
import v2v.cli, v2v.training.loop, v2v.training.plot
from v2v.pipelines import demo
from v2v.pipelines.rendering.segments import SegmentedVideo
from v2v.preprocess import extractor, job, worker, flow, frames, pose, segmentation
from v2v.models import generator_settings as g

g.PRESETS["mobile"] = g.Architecture(16, 32, 1, 8, (16,), 1)
demo.SIZE, SegmentedVideo.SEGMENT = 64, 8
extractor.PART = job.PART = worker.PART = frames.PART = 16
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def run(argv, folder, log, at, after):
    os.chdir(folder)
    for number, path in ((0, os.devnull), (1, log), (2, log)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), number)
    changes = 0

    def watch(event, arguments):
        nonlocal changes
        if event in CHANGES or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            changes += 1
            if changes == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    if after:
        signal.setitimer(signal.ITIMER_REAL, after)  # SIGALRM ends it as SIGKILL does
    sys.argv = ["v2v", *argv]
    try:
        v2v.cli.main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    os.write(pipe[1], str(changes).encode())
    os._exit(code)


print("ready", flush=True)
for line in sys.stdin:
    pipe = os.pipe()
    child = os.fork()
    if child == 0:
        run(**json.loads(line))
    os.close(pipe[1])
    _, status = os.waitpid(child, 0)
    changes = os.read(pipe[0], 20).decode()
    os.close(pipe[0])
    print(json.dumps([os.waitstatus_to_exitcode(status), int(changes or 0)]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    code: int  # negative: the signal that ended it
    changes: int  # of the file system
    output: str


class Program:
    """Runs commands in forks of a process that has imported the program once."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "ready\n"

    def __call__(self, folder: Path, argv: str, *, at: int = 0, after: float = 0.0) -> Ended:
        """Run a command in a folder; kill it before change number `at`, or `after` seconds."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.log.write_bytes(b"")
        ask = {
            "argv": argv.split(), "folder": str(folder), "log": str(self.log), "at": at,
            "after": after,
        }  # fmt: skip
        self.server.stdin.write(json.dumps(ask) + "\n")
        self.server.stdin.flush()
        code, changes = json.loads(self.server.stdout.readline())
        return Ended(code, changes, self.log.read_text("utf-8", "replace"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = Program(tmp_path_factory.mktemp("kills") / "log")
    yield program
    program.server.communicate(timeout=30)  # closing its pipes ends it


TRAIN = (
    "train --task pose --data data/person --name b --size 64 --steps 4 -s schedule.lengths=[1,2]"
    " -s discriminator.width=8 -s discriminator.scales=1 -s output.preview_seconds=0.1"
    " -s output.checkpoint_minutes=0.002 -s output.preview_minutes=0.01"
)


@pytest.fixture(scope="module")
def base(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn dancer, two small videos, a store and a run."""
    folder = tmp_path_factory.mktemp("base")
    for argv in (
        "sample person -o . --seconds 0.9",
        "preprocess person.mp4 --signal pose --size 96",
        TRAIN,
        "transfer --source data/person --target-model b -o a.mp4",
        "transfer --source data/person --target-model b -o b.mp4 --crf 40",
    ):
        ended = program(folder, argv)
        assert ended.code == 0, f"{argv}: {ended.output}"
    return folder


@dataclass(frozen=True)
class Case:
    argv: str
    inputs: tuple[str, ...]
    same: tuple[str, ...] = ()  # patterns of files that must be equal, byte by byte
    loose: tuple[str, ...] = ()  # patterns of files that depend on timing
    trials: int = 2


RUN = ("runs/b/model", "runs/b/run.json", "runs/b/config.yaml")
CASES = {
    "preprocess": Case(
        "preprocess person.mp4 --signal flow --size 96", ("person.mp4",), ("data/person/*",)
    ),
    "adding a signal": Case(
        "preprocess data/person --signal flow", ("data/person",), ("data/person/*",)
    ),
    "train": Case(
        TRAIN, ("data/person",), ("runs/b/model/*.safetensors", "*/00000004/weights.safetensors"),
        ("*/checkpoints/*", "*/previews/*", "*/tensorboard/*"),
    ),
    "transfer": Case(
        # Lossless: on busy cores libx264 sometimes encodes the same frames to other bytes.
        "transfer --source data/person --target-model b -o out.mkv --codec ffv1 --compare",
        ("data/person", "runs/b/model"), ("out*.mkv",), trials=3,
    ),
    "evaluate": Case(
        "evaluate --model b --frames 4 --drift 0 --against copy", ("data/person", *RUN),
        ("runs/b/evaluation/report.*",), trials=1,
    ),
    "compare": Case("compare a.mp4 b.mp4 -o c.mp4", ("a.mp4", "b.mp4"), ("c.mp4",)),
    "study": Case("study a.mp4 b.mp4", ("a.mp4", "b.mp4"), (), ("study/clips/*",)),
    "plot": Case("plot runs/b -o curves.png", ("runs/b",), ("curves.png",), trials=1),
}  # fmt: skip


def fresh(case: Case, base: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in case.inputs:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy: Any = shutil.copytree if (base / name).is_dir() else shutil.copy2
        copy(base / name, target)
    return folder


def files(folder: Path, case: Case) -> dict[str, bytes | None]:
    """The names of all files, with the bytes of those that must be equal."""
    found: dict[str, bytes | None] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        exact = any(fnmatch(name, pattern) for pattern in case.same)
        if not path.is_dir() and (exact or not any(fnmatch(name, p) for p in case.loose)):
            found[name] = path.read_bytes() if exact else None
    return found


def left_over(folder: Path) -> list[str]:
    """Hidden files and folders, except locks."""
    hidden = [p for p in folder.rglob(".*") if p.name != ".lock"]
    return sorted(str(p.relative_to(folder)) for p in hidden)


@pytest.mark.parametrize("name", CASES)
def test_a_killed_command_run_again_ends_the_same(
    name: str, program: Program, base: Path, tmp_path: Path
) -> None:
    case, chance = CASES[name], random.Random(name)
    reference = fresh(case, base, tmp_path / "reference")
    uninterrupted = program(reference, case.argv)
    assert uninterrupted.code == 0 and left_over(reference) == [], uninterrupted.output
    whole = files(reference, case)
    assert not case.same or any(content is not None for content in whole.values())
    # One kill is among the last changes, when results are moved in place and cleaned up.
    last = max(uninterrupted.changes - 12, 1)
    moments = [chance.randint(last, uninterrupted.changes)]
    moments += [chance.randint(1, uninterrupted.changes) for _ in range(case.trials - 1)]
    for at in moments:
        folder = fresh(case, base, tmp_path / f"killed-at-{at}")
        killed = program(folder, case.argv, at=at)
        if chance.random() < 0.5:  # and once more, after a random time
            program(folder, case.argv, after=chance.uniform(0.05, 0.8))
        ended = program(folder, case.argv)
        where = (
            f"{name}, change {at} of {uninterrupted.changes} (exit {killed.code}): {ended.output}"
        )
        assert "Traceback" not in killed.output + ended.output, where
        # A result that was already complete is not overwritten.
        assert ended.code == 0 or (ended.code == 2 and "already" in ended.output), where
        assert files(folder, case) == whole, where
        assert left_over(folder) == [], where
        shutil.rmtree(folder)


def test_a_killed_demo_resumes(program: Program, tmp_path: Path) -> None:
    """The length of its training depends on timing, so files are not compared."""
    argv = "demo -o demo --seconds 1 --minutes 0.02"
    killed = program(tmp_path, argv, at=120)
    assert killed.code == -9 and not (tmp_path / "demo" / "demo.html").exists()
    ended = program(tmp_path, argv)
    assert ended.code == 0 and left_over(tmp_path) == [], ended.output
    for name in ("demo.mp4", "demo-compare.mp4", "demo.png", "demo.html"):
        assert (tmp_path / "demo" / name).stat().st_size
