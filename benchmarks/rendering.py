"""Cost of rendering, as ratios within one run, since machines differ and may be shared.

python benchmarks/rendering.py                       all, on drawn footage
python benchmarks/rendering.py cost --size 256 --preset mobile --store data/dance

cost      time of a full render (decode, draw, generate, encode, with and without the comparison
          video) over that of the generator alone on the same signals in memory   (goal 1.15)
threads   speed of the generator alone on each number of threads, relative to one
memory    peak memory of rendering 5000 frames over that of 500 frames            (goal 1.2)

The weights are random: time does not depend on them. Render and generator run in turn, several
times; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

from v2v.runtime import cores, prepare_process

prepare_process()

import numpy as np
import torch

from v2v.checkpoint import ClipUse, Model, ModelRecord, SignalUse, save_model
from v2v.config import PreprocessSettings, load_config
from v2v.data.store import ClipStore, SignalRecord, file_record, write_record
from v2v.models import build_generator
from v2v.models.rollout import rollout
from v2v.pipelines.model import Appearance, LoadedModel
from v2v.pipelines.motion_transfer import MotionTransfer
from v2v.pipelines.rendering.rendering import Rendering
from v2v.preprocess.build import preprocess
from v2v.preprocess.extractor import write_arrays
from v2v.samples.person import frames as dancing
from v2v.saved import FORMAT
from v2v.signals.pose import NAMES
from v2v.types import Condition
from v2v.video.write import VideoWriter

REPEATS = 5
FRAMES = 240  # per timed render
RATE = Fraction(30)


def store_of(folder: Path, count: int, height: int, width: int) -> Path:
    """A store of `count` frames that repeat the drawn dancer, with synthetic poses."""
    footage = folder / f"{count}.mp4"
    drawn = list(dancing(count=60, height=height, width=width))
    with VideoWriter(footage, width=width, height=height, rate=RATE) as video:
        for i in range(count):
            video.write(drawn[i % len(drawn)])
    settings = load_config(PreprocessSettings, "preprocess", values={"preview.enabled": False})
    target = folder / f"store{count}"
    preprocess(footage, [], settings, output=target)
    random = np.random.default_rng(0)
    centers = random.uniform(0.2, 0.8, (len(NAMES), 2)) * (width, height)
    phase = np.arange(count)[:, None] / 9 + random.uniform(0, 6, len(NAMES))
    points = np.ones((count, len(NAMES), 3), np.float32)
    points[..., 0] = centers[:, 0] + 0.03 * width * np.sin(phase)
    points[..., 1] = centers[:, 1] + 0.03 * height * np.cos(phase)
    filled = np.zeros(points.shape[:2], np.bool_)
    write_arrays(target / "pose.npz", {"points": points, "filled": filled})
    record = ClipStore.open(target).record
    pose = SignalRecord(
        spec={}, backend="drawn", version="1", settings={}, coverage=1.0,
        files={"pose.npz": file_record(target / "pose.npz")},
    )  # fmt: skip
    write_record(target, record.model_copy(update={"signals": {"pose": pose}}))
    return target


def model_of(folder: Path, store: Path, preset: str, size: int) -> Path:
    """A run with a randomly initialised model for a store's poses."""
    opened = ClipStore.open(store)
    frames, source = opened.record.frames, opened.record.source
    height = round(size * max(frames.height / frames.width, 1) / 16) * 16
    width = round(size * max(frames.width / frames.height, 1) / 16) * 16
    scales = 1
    while size >> (scales - 1) > 128:
        scales += 1
    arguments = {"name": "sequential", "channels": 3, "preset": preset, "scales": scales}
    training = min(len(opened), 200)
    record = ModelRecord(
        format=FORMAT, tool="benchmark", task="pose",
        signals=(SignalUse(name="pose", channels=3, spec={}),),
        height=height, width=width, generator=arguments, active=None,
        clips=(
            ClipUse(
                name="clip", source=source.name, sha256=source.sha256, fps=frames.fps,
                frames=len(opened), trained=(0, training), width=frames.width, height=frames.height,
                still=False,
            ),
        ),
        training={},
    )  # fmt: skip
    points = opened.track("pose", 0, training).points  # type: ignore[attr-defined]
    statistics = {"0.pose.points": torch.from_numpy(np.ascontiguousarray(points)),
                  "0.frames": torch.arange(training)}  # fmt: skip
    run = folder / f"{preset}-{size}"
    save_model(run / "model", Model(record, build_generator(**arguments), {}, statistics))
    return run


def rendering_of(run: Path, store: Path, frames: int) -> Rendering:
    return MotionTransfer.from_pretrained(run)(store, end=(frames + 0.5) / float(RATE))


def generator_alone(trained: LoadedModel, conditions: list[Condition]) -> float:
    """Seconds to render from conditions in memory, without copying each frame to the CPU."""
    began = time.perf_counter()
    generator = trained.model.generator
    with (
        torch.inference_mode(),
        torch.autocast(trained.device.type, torch.bfloat16, enabled=trained.bf16),
    ):
        for output, _ in rollout(generator, conditions):
            frame = output.frame
    frame.float().cpu()
    return time.perf_counter() - began


def conditions_of(rendering: Rendering, count: int) -> list[Condition]:
    tracks = rendering.drive.tracks(0, count)
    made = rendering.trained.conditions(tracks, Appearance()).to(rendering.trained.device)
    return [made.map(lambda t, i=i: t[i : i + 1]) for i in range(count)]  # type: ignore[misc]


def cost(folder: Path, store: Path | None, preset: str, size: int) -> None:
    store = store or store_of(folder, FRAMES + 2, 384, 384)
    run = model_of(folder, store, preset, size)
    rendering = rendering_of(run, store, FRAMES)
    conditions = conditions_of(rendering, len(rendering))
    generator_alone(rendering.trained, conditions[:8])
    for compare in (False, True):
        alone, whole = [], []
        for _ in range(REPEATS):
            alone.append(generator_alone(rendering.trained, conditions))
            began = time.perf_counter()
            rendering.save(folder / "out.mp4", compare=compare, overwrite=True)
            whole.append(time.perf_counter() - began)
        full, bare = statistics.median(whole), statistics.median(alone)
        what = "with comparison" if compare else "without comparison"
        height, width = rendering.trained.size
        print(
            f"cost      {preset} at {width}x{height}, {what}: {full / bare:.2f} times the"
            f" generator ({full / len(rendering) * 1e3:.1f} over"
            f" {bare / len(rendering) * 1e3:.1f} ms per frame, {torch.get_num_threads()} threads,"
            f" {'bf16' if rendering.trained.bf16 else 'float32'})"
        )


def threads(folder: Path, store: Path | None, preset: str, size: int) -> None:
    store = store or store_of(folder, FRAMES + 2, 384, 384)
    rendering = rendering_of(model_of(folder, store, preset, size), store, 40)
    conditions = conditions_of(rendering, len(rendering))
    usual = torch.get_num_threads()
    times: dict[int, float] = {}
    for count in range(1, cores() + 1):
        torch.set_num_threads(count)
        generator_alone(rendering.trained, conditions[:8])
        took = [generator_alone(rendering.trained, conditions) for _ in range(3)]
        times[count] = statistics.median(took)
    torch.set_num_threads(usual)
    print("threads   " + ", ".join(f"{n}: {times[1] / t:.2f}" for n, t in times.items()))


def memory(folder: Path, preset: str) -> None:
    peaks = {}
    for count in (500, 5000):
        store = store_of(folder, count, 160, 96)
        run = model_of(folder, store, preset, 64)
        code = [sys.executable, __file__, "--one", str(run), str(store), str(folder / "m.mp4")]
        done = subprocess.run(code, check=True, capture_output=True, text=True)
        peaks[count] = int(done.stdout.split()[-1])
    print(
        f"memory    5000 frames over 500: {peaks[5000] / peaks[500]:.2f}"
        f" ({peaks[5000] / 1024:.0f} over {peaks[500] / 1024:.0f} MiB)"
    )


def one(run: str, store: str, out: str) -> None:
    """Render the whole store in this process and print its peak memory in KiB."""
    MotionTransfer.from_pretrained(run)(store).save(out, compare=True, overwrite=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=["cost", "threads", "memory"])
    parser.add_argument("--store", type=Path, help="a clip store with pose (default: drawn)")
    parser.add_argument("--preset", default="mobile")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for what in options.what:
            if what == "cost":
                cost(folder, options.store, options.preset, options.size)
            elif what == "threads":
                threads(folder, options.store, options.preset, options.size)
            elif what == "memory":
                memory(folder, options.preset)
            else:
                parser.error(f"unknown benchmark {what}: choose cost, threads or memory")


if __name__ == "__main__":
    main()
