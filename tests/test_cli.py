"""The commands, run as a user does: help, results, error messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from v2v import __version__, cli
from v2v.cli import _library_problem
from v2v.data.store import ClipStore
from v2v.video.write import VideoWriter


def v2v(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "v2v", *arguments], cwd=cwd, capture_output=True, text=True,
        env=os.environ | environment,
    )  # fmt: skip


def write_clip(path: Path, count: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    # Low contrast: detectors occasionally find a person in strong noise.
    texture = generator.integers(96, 160, (96, 160, 3), dtype=np.uint8)
    with VideoWriter(path, width=96, height=64, rate=Fraction(25)) as video:
        for i in range(count):
            video.write(np.ascontiguousarray(texture[i : i + 64, i : i + 96]))
    return path


def test_help_is_complete_and_loads_nothing_heavy(tmp_path: Path) -> None:
    shown = v2v("--help", cwd=tmp_path)
    assert shown.returncode == 0
    for command in ("preprocess", "doctor", "sample", "demo"):
        assert command in shown.stdout
        help_of = v2v(command, "--help", cwd=tmp_path).stdout
        assert f"v2v {command}" in help_of, f"{command} --help has no example"
    code = (
        "import sys, v2v.cli;"
        "print(sorted({'torch', 'cv2', 'mediapipe', 'av', 'numpy'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]"
    assert v2v("--version", cwd=tmp_path).stdout.strip() == f"v2v {__version__}"


@pytest.mark.slow
def test_several_clips_with_workers_and_json(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_clip(tmp_path / "clips" / f"{name}.mp4")
    run = v2v(
        "preprocess", "clips/*.mp4", "--signal", "flow", "--workers", "2", "--json", "--size", "48",
        cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert [Path(r["store"]) for r in results] == [Path("data/a"), Path("data/b")]
    assert all(r["made"] == ["flow"] and (r["width"], r["height"]) == (72, 48) for r in results)
    again = v2v("preprocess", "clips", "--signal", "flow", "--size", "48", cwd=tmp_path)
    assert again.returncode == 0 and "nothing left to do" in again.stdout


def test_the_table_names_the_preview(tmp_path: Path) -> None:
    """In any encoding of the terminal: this one lacks the ellipsis of the header."""
    write_clip(tmp_path / "a.mp4")
    run = v2v("preprocess", "a.mp4", "-S", "flow", cwd=tmp_path, PYTHONIOENCODING="iso-8859-1")
    assert run.returncode == 0, run.stderr
    assert "signals on ? of the frames" in run.stdout
    for part in ("12", "96x64", "flow 92%", "preview.mp4", "too few to train"):
        assert part in run.stdout
    assert "flow" in run.stderr and "12/12" in run.stderr  # the progress bars
    assert v2v("preprocess", "a.mp4", "-S", "flow", "-q", cwd=tmp_path).stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["preprocess", "missing.mp4"], 1, ["no such file: missing.mp4"]),
        (["preprocess", "a.mp3"], 1, ["did you mean a.mp4"]),
        (["preprocess", "notes.mp4"], 1, ["notes.mp4 cannot be read as a video"]),
        (["preprocess", "none*.mp4"], 1, ["no file matches none*.mp4"]),
        (["preprocess", "a.mp4", "--signal", "posee"], 2, ["'posee'", "did you mean 'pose'"]),
        (["preprocess", "a.mp4", "--crop", "head"], 2, ["'head'", "none, person"]),
        (["preprocess", "a.mp4", "--size", "big"], 2, ["--size big", "512x768"]),
        (["preprocess", "a.mp4", "-s", "pose.maxgap=1"], 2, ["pose.maxgap", "pose.max_gap"]),
        (["preprocess", "a.mp4", "--start", "9"], 2, ["--start 9", "0.48 s"]),
        (["preprocess", "a.mp4", "--start", "0.3", "--end", "0.1"], 2, ["is empty"]),
        (["preprocess", "a.mp4", "--fps", "fast"], 2, ["frames.fps", "29.97"]),
        (["preprocess", "a.mp4"], 1, ["no person found", "12 frames", "v2v doctor"]),
        (["preprocess", "a.mp4", "--crop", "person", "-o", "f"], 1, ["no person", "omit --crop"]),
        (["preprocess", "a.mp4", "-S", "flow", "-s", "flow.backend=raft-small", "-o", "r"], 1,
         ["raft_small_C_T_V2-01064c6d.pth", "curl", "flow.backend=dis"]),
        (["sample", "dog"], 2, ["'dog'", "person"]),
    ],
)  # fmt: skip
def test_user_errors_print_a_message(
    tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "notes.mp4").write_text("not a video at all")
    os.environ["TORCH_HOME"] = str(tmp_path / "torch")
    run = v2v(*arguments, cwd=tmp_path)
    printed = " ".join(run.stderr.split())
    assert run.returncode == code, printed
    assert "Traceback" not in printed
    for word in words:
        assert word in printed


def test_modules_of_the_same_names_in_the_working_directory_are_ignored(tmp_path: Path) -> None:
    """The installed command imports its own modules, not those in the working directory."""
    command = Path(sys.executable).with_name("v2v")
    if not command.exists():
        pytest.skip("the command is not installed")
    (tmp_path / "preprocess.py").write_text("raise SystemExit('the user's own')")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "preprocess.yaml").write_text("frames: [")
    run = subprocess.run(
        [command, "preprocess", "missing.mp4"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 1 and "no such file: missing.mp4" in run.stderr


def test_ctrl_c_stops_at_once_and_the_next_run_resumes(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", count=32)
    command = [sys.executable, "-m", "v2v", "preprocess", "a.mp4", "-S", "pose,flow"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "data" / "a" / ".work" / "frames").exists():
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    printed = run.communicate(timeout=20)[1]
    assert run.returncode == 130
    assert "run the same command again" in printed and "Traceback" not in printed
    assert v2v("preprocess", "a.mp4", "-S", "flow", cwd=tmp_path).returncode == 0
    assert len(ClipStore.open(tmp_path / "data" / "a")) == 32


@pytest.mark.slow
def test_ctrl_c_stops_all_workers(tmp_path: Path) -> None:
    """A terminal signals the whole process group: all processes end, no store looks finished."""
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", count=32)
    arguments = ["preprocess", "a.mp4", "b.mp4", "--workers", "2", "-S"]
    run = subprocess.Popen(
        [sys.executable, "-m", "v2v", *arguments, "pose,flow"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not any((tmp_path / "data").glob("*/.work/frames")):
        assert run.poll() is None
        time.sleep(0.01)
    began = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    printed = run.communicate(timeout=20)[1]
    assert run.returncode == 130
    assert "run the same command again" in printed and "Traceback" not in printed
    while alive_in_group(run.pid):
        assert time.monotonic() - began < 20, "a worker is still running"
        time.sleep(0.1)
    left = {path.name for path in (tmp_path / "data").glob("*/*")}
    assert left <= {".lock", ".work"}
    assert v2v(*arguments, "flow", cwd=tmp_path).returncode == 0
    assert [len(ClipStore.open(tmp_path / "data" / name)) for name in "ab"] == [32, 32]


def alive_in_group(group: int) -> list[str]:
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True)
    members = (line.split() for line in listed.stdout.splitlines())
    return [stat for pgid, stat in members if int(pgid) == group and not stat.startswith("Z")]


def test_an_interrupted_import_of_a_native_module_stops_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """numpy and others turn the interrupt into an ImportError."""

    class Exited(Exception):
        pass

    def leave(code: int) -> None:
        assert code == 130
        raise Exited

    def load() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy._core.multiarray failed to import") from None

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "app", load)
    monkeypatch.setattr(os, "_exit", leave)
    try:
        with pytest.raises(Exited):
            cli.main()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, before)
    assert "run the same command again" in capsys.readouterr().err


def test_sample_writes_footage(tmp_path: Path) -> None:
    run = v2v("sample", "person", "street", "--seconds", "0.4", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "samples_out" / "person.mp4").exists()
    assert len(list((tmp_path / "samples_out" / "street" / "labels").iterdir())) == 6


def test_a_missing_system_library_names_its_package() -> None:
    error = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    problem = _library_problem(error)
    assert problem is not None and "sudo apt install libgl1" in str(problem.hint)
    assert _library_problem(ImportError("No module named 'nothing'")) is None
