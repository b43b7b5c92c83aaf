"""Cost of preprocessing, as ratios within one run, since machines differ and may be shared.

python benchmarks/preprocessing.py                       all, on drawn footage
python benchmarks/preprocessing.py pose workers --clip dance.mp4

pose      v2v's pose at 1280x720 over a bare loop of decoding and MediaPipe     (goal 1.2)
workers   two clips in turn over two clips at a time                            (goal 1.3)
signals   all four signals in one pass over the sum of their bare loops         (goal 1.2)
memory    peak memory for a 10-minute clip over that for a 1-minute clip        (goal 1.25)
help      `v2v --help` in seconds, beside bare Python                           (goal 0.5 s)
drawing   a pose and a face at 512 px, in milliseconds                          (goal 2 ms)
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from v2v.runtime import prepare_process

prepare_process()  # also for the bare loops, to compare fairly

import av
import cv2
import mediapipe
import numpy as np

from v2v.config import PreprocessSettings, load_config
from v2v.preprocess.build import preprocess
from v2v.preprocess.detectors import detectors
from v2v.samples import face, person
from v2v.video.write import VideoWriter

REPEATS = 3


def settings(**values: Any) -> PreprocessSettings:
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    return load_config(PreprocessSettings, "preprocess", values=dotted)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(name: str, ours: Callable[[], object], bare: Callable[[], object]) -> None:
    """Print the median ratio; runs both in turn, so that load on the machine affects both."""
    ours(), bare()  # warm-up: excludes one-time loading
    pairs = [(timed(ours), timed(bare)) for _ in range(REPEATS)]
    ratios = [a / b for a, b in pairs]
    listed = ", ".join(f"{a:.2f}/{b:.2f}" for a, b in pairs)
    print(f"{name:<42} {statistics.median(ratios):.2f}   (seconds: {listed})", flush=True)


def frames_of(clip: Path) -> Iterator[np.ndarray]:
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def bare_pose(clip: Path) -> None:
    """Body and hands by MediaPipe's Holistic solution."""
    with mediapipe.solutions.holistic.Holistic(smooth_landmarks=False) as network:
        for frame in frames_of(clip):
            network.process(frame)


def bare_face(clip: Path) -> None:
    with mediapipe.solutions.face_mesh.FaceMesh(refine_landmarks=True) as network:
        for frame in frames_of(clip):
            network.process(frame)


def bare_segmentation(clip: Path) -> None:
    options = {"smooth_landmarks": False, "enable_segmentation": True, "smooth_segmentation": False}
    with mediapipe.solutions.pose.Pose(**options) as network:
        for frame in frames_of(clip):
            network.process(frame)


def bare_flow(clip: Path) -> None:
    """Forward and backward DIS at half size."""
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    previous = None
    for frame in frames_of(clip):
        small = cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        if previous is not None:
            method.calc(grey, previous, None), method.calc(previous, grey, None)
        previous = grey


def run_pose(clip: Path, work: Path) -> None:
    compare(
        "pose over bare decoding and MediaPipe",
        lambda: preprocess_fresh(clip, ["pose"], work / "pose"),
        lambda: bare_pose(clip),
    )


def preprocess_fresh(clip: Path, signals: list[str], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    preprocess(clip, signals, settings(), output=folder)


def run_signals(clip: Path, work: Path) -> None:
    def bare() -> None:
        for loop in (bare_pose, bare_face, bare_segmentation, bare_flow):
            loop(clip)

    names = ["pose", "face", "segmentation", "flow"]
    compare(
        "four signals over the sum of bare loops",
        lambda: preprocess_fresh(clip, names, work / "4"),
        bare,
    )


def run_workers(clip: Path, work: Path) -> None:
    clips = [work / f"{name}.mp4" for name in ("one", "two")]
    for copy in clips:
        shutil.copy(clip, copy)

    def command(workers: int) -> None:
        shutil.rmtree(work / "w", ignore_errors=True)
        arguments = ["preprocess", *map(str, clips), "-o", str(work / "w"), "-q"]
        v2v(*arguments, "--signal", "pose", "--workers", str(workers))

    compare("two clips in turn over two at a time", lambda: command(1), lambda: command(2))


def v2v(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "v2v", *arguments], check=True, stdout=subprocess.DEVNULL)


def run_memory(clip: Path, work: Path) -> None:
    """Face and flow: the signal with the most points, and one stored as video."""
    drawn = list(face.frames(count=90, height=192, width=192))
    peaks = {}
    for minutes in (1, 10):
        path = work / f"{minutes}min.mp4"
        write_looped(path, drawn, count=minutes * 60 * 30)
        if os.fork() == 0:  # peak memory is measured per process
            preprocess_fresh(path, ["face", "flow"], work / f"{minutes}")
            os._exit(0)
        _, status, usage = os.wait3(0)
        assert status == 0
        peaks[minutes] = usage.ru_maxrss / 1024
    print(
        f"{'peak memory, 10 minutes over 1':<42} {peaks[10] / peaks[1]:.2f}"
        f"   (MiB: {peaks[10]:.0f}/{peaks[1]:.0f})"
    )


def write_looped(path: Path, drawn: list[np.ndarray], *, count: int) -> None:
    """Write `count` frames: the drawn ones, forwards and backwards."""
    loop = drawn + drawn[-2:0:-1]
    height, width = drawn[0].shape[:2]
    with VideoWriter(path, width=width, height=height, rate=Fraction(30), crf=18) as video:
        for i in range(count):
            video.write(loop[i % len(loop)])


def run_help(clip: Path, work: Path) -> None:
    ours = min(timed(lambda: v2v("--help")) for _ in range(7))
    empty = min(timed(lambda: subprocess.run([sys.executable, "-c", ""])) for _ in range(7))
    print(f"{'v2v --help, seconds':<42} {ours:.2f}   (python itself: {empty:.2f})")


def run_drawing(clip: Path, work: Path) -> None:
    from v2v.signals.face import draw_face
    from v2v.signals.pose import draw_pose

    frame = next(person.frames(count=1, height=512, width=512))
    body = detectors().body(hands=True, mask=False, min_detection=0.5, min_tracking=0.5)
    with body, detectors().face(tracking=False) as face:
        found, mesh = body.find(frame), face.find(frame)
    assert found is not None and mesh is not None
    hands = [found.left_hand, found.right_hand]
    points = [found.points, *(np.zeros((21, 4)) if hand is None else hand for hand in hands)]
    pose = np.concatenate(points)[:, [0, 1, 3]].astype(np.float32)
    mesh = mesh[:, [0, 1, 3]]
    canvas = np.zeros((512, 512, 3), np.uint8)
    for name, draw, what in (("pose", draw_pose, pose), ("face", draw_face, mesh)):
        canvas[:] = 0
        draw(canvas, what)
        assert canvas.any(axis=2).mean() > 0.005, f"the {name} was not drawn"
        milliseconds = [1e3 * timed(lambda d=draw, w=what: d(canvas, w)) for _ in range(300)]
        print(f"{f'drawing a {name} at 512 px, ms':<42} {statistics.median(milliseconds):.2f}")


RUNS = {
    "drawing": run_drawing,
    "help": run_help,
    "pose": run_pose,
    "signals": run_signals,
    "workers": run_workers,
    "memory": run_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="*", choices=[*RUNS, []], help="benchmarks to run (default: all)"
    )
    parser.add_argument("--clip", type=Path, help="1280x720 footage of a person (default: drawn)")
    chosen = parser.parse_args()
    cores = os.cpu_count()
    print(f"{platform.machine()}, {cores} cores, Python {platform.python_version()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        clip = chosen.clip
        if clip is None and set(chosen.runs or RUNS) & {"pose", "signals", "workers"}:
            clip = work / "drawn.mp4"
            write_looped(clip, list(person.frames(count=120, height=720, width=1280)), count=600)
        for name in chosen.runs or RUNS:
            RUNS[name](clip, work)


if __name__ == "__main__":
    main()
