"""Cost of training, as ratios within one run, since machines differ and may be shared.

python benchmarks/training.py                                  all, on drawn footage
python benchmarks/training.py loader floor --data data/dance --presets mobile,base --sizes 128,256

loader    frames per second of the loader over those of training                      (goal 3)
floor     time of an update over that of its multiply-adds at the measured speed of this
          machine's convolutions, and at that of its matrix products
threads   frames per second of training on all cores over those on one
updates   time of a window with an update after each chunk over that with a single update
machine   multiply-adds per second of matrix products and convolutions, float32 and bf16

Training is the last stage of `v2v train` at that size: four windows of 20 frames, an update after
each frame. A training frame passes through generator, discriminators and backward pass; a loader
frame comes with its signals, flow and masks, made in this process without workers. The loader's
goal is for 256 px on 2 cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from v2v.runtime import prepare_process

prepare_process()

import torch
from shared import draw_store, settings_of
from torch.utils.flop_counter import FlopCounterMode

from v2v.errors import V2VError
from v2v.pipelines.registry import tasks
from v2v.training.estimate import DryRunTrainer
from v2v.training.settings import TrainSettings
from v2v.types import Batch

REPEATS = 3
DRAWN = 120  # frames of drawn footage


@dataclass(frozen=True)
class Case:
    """One combination of preset and size."""

    data: Path
    task: str
    preset: str
    size: int
    overrides: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.preset} at {self.size} px"

    def settings(self, *more: str) -> TrainSettings:
        overrides = [f"generator.preset={self.preset}", *self.overrides, *more]
        return settings_of(self.task, self.size, overrides, budget__steps=10**9)


class Bench(DryRunTrainer):
    """A trainer in its last stage, with its windows."""

    def __init__(self, case: Case, *more: str) -> None:
        super().__init__(case.settings(*more), [case.data])
        self.index = 0

    @property
    def frames(self) -> int:
        """Number of frames in a batch of windows."""
        return self.stage.length * self.stage.batch

    def load(self) -> Batch:
        """The next batch, as the loader makes it."""
        own = range(self.index, self.index + self.stage.batch)
        self.index += self.stage.batch
        return self.windows.batch(own, self.stage.length, (self.stage.height, self.stage.width))

    def train(self, batch: Batch) -> None:
        self.trainer.window(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @property
    def precision(self) -> torch.dtype:
        mixed = "bf16" in str(self.fabric._precision.precision)
        return torch.bfloat16 if mixed else torch.float32


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def time_in_turn(*works: Callable[[], object], repeats: int = REPEATS) -> list[list[float]]:
    """Seconds of each function in `repeats` rounds, so that load on the machine affects all."""
    for work in works:
        work()  # warm-up: excludes one-time set-up
    rounds = [[timed(work) for work in works] for _ in range(repeats)]
    return [list(seconds) for seconds in zip(*rounds, strict=True)]


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios per round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def print_result(name: str, value: float, detail: str) -> None:
    print(f"{name:<44} {value:6.2f}   ({detail})", flush=True)


# ---------------------------------------------------------------- the sections


def run_loader(case: Case) -> None:
    bench = Bench(case)
    batch = bench.load()
    loads, trains = time_in_turn(bench.load, lambda: bench.train(batch))
    loader_rate, training_rate = (
        bench.frames / statistics.median(seconds) for seconds in (loads, trains)
    )
    print_result(
        f"{case}: loader over training", ratio(trains, loads),
        f"{loader_rate:.1f} over {training_rate:.2f} frames/s",
    )  # fmt: skip


def run_floor(case: Case) -> None:
    bench = Bench(case)
    batch = bench.load()
    bench.train(batch)
    with FlopCounterMode(display=False) as counter:
        bench.train(batch)
    work = counter.get_total_flops() / 2 / bench.frames  # multiply-adds per frame
    kind = bench.precision
    generator = sum(p.numel() for p in bench.trainer.generator.parameters())
    seconds, convolving, multiplying = time_in_turn(
        lambda: bench.train(batch), convolution(kind), product(kind)
    )
    each = [s / bench.frames for s in seconds]
    for name, times, amount in (
        ("convolutions", convolving, CONVOLUTION), ("matrix products", multiplying, PRODUCT),
    ):  # fmt: skip
        floor = [work * t / (TIMES * amount) for t in times]
        rate = TIMES * amount / statistics.median(times) / 1e9
        print_result(
            f"{case}: an update over its {name}",
            ratio(each, floor),
            f"{statistics.median(each):.3f} s per frame over {work / 1e9:.1f} GMACs at {rate:.0f}"
            f" GMAC/s in {str(kind).removeprefix('torch.')}; {generator / 1e6:.1f} M parameters",
        )


def run_threads(case: Case) -> None:
    bench = Bench(case)
    batch = bench.load()
    usual, maximum = torch.get_num_threads(), os.cpu_count() or 1
    if maximum == 1 or torch.cuda.is_available():
        print(f"{case}: skipped on a GPU or a single core")
        return

    def train(threads: int) -> Callable[[], None]:
        def work() -> None:
            torch.set_num_threads(threads)
            bench.train(batch)

        return work

    one, many = time_in_turn(train(1), train(maximum))
    torch.set_num_threads(usual)
    rates = [bench.frames / statistics.median(seconds) for seconds in (many, one)]
    print_result(
        f"{case}: {maximum} threads over one", ratio(one, many),
        f"{rates[0]:.2f} over {rates[1]:.2f} frames/s; v2v train uses {usual} by default",
    )  # fmt: skip


def run_updates(case: Case) -> None:
    """The cost of optimiser updates: the same window with many updates or with one."""
    chunk, window = (Bench(case, f"loop.updates={kind}") for kind in ("chunk", "window"))
    batch = chunk.load()
    each, once = time_in_turn(lambda: chunk.train(batch), lambda: window.train(batch))
    updates = -(-chunk.stage.length // chunk.settings.loop.bptt_steps)
    print_result(
        f"{case}: update per chunk over per window", ratio(each, once),
        f"{statistics.median(each):.2f} s with {updates} updates over {statistics.median(once):.2f}"
        " s with 1",
    )  # fmt: skip


# ---------------------------------------------------------------- the machine


SIDE, WIDTH, GRID = 1024, 256, 64
PRODUCT = SIDE**3  # multiply-adds
CONVOLUTION = 9 * WIDTH * WIDTH * GRID * GRID


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def product(kind: torch.dtype) -> Callable[[], None]:
    """A product of square matrices."""
    a, b = (torch.randn(SIDE, SIDE, device=device()).to(kind) for _ in range(2))
    return repeated(lambda: a @ b)


@cache
def convolution(kind: torch.dtype) -> Callable[[], None]:
    """A 3x3 convolution, 256 channels on 64x64, channels last: typical of the work."""
    x = torch.randn(1, WIDTH, GRID, GRID, device=device()).to(kind)
    x = x.to(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(WIDTH, WIDTH, 3, padding=1, device=device(), dtype=kind)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return repeated(lambda: layer(x))


TIMES = 10


def repeated(work: Callable[[], Any]) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        for _ in range(TIMES):
            work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def run_machine(case: Case) -> None:
    kinds = (torch.float32, torch.bfloat16)
    for name, make, amount in (
        ("matrix products", product, PRODUCT), ("convolutions", convolution, CONVOLUTION),
    ):  # fmt: skip
        slow, fast = time_in_turn(*(make(kind) for kind in kinds), repeats=7)
        rates = [TIMES * amount / statistics.median(seconds) / 1e9 for seconds in (fast, slow)]
        print_result(
            f"{name}: bf16 over float32", ratio(slow, fast),
            f"{rates[0]:.0f} over {rates[1]:.0f} GMAC/s",
        )  # fmt: skip


RUNS: dict[str, Callable[[Case], None]] = {
    "machine": run_machine,
    "loader": run_loader,
    "floor": run_floor,
    "threads": run_threads,
    "updates": run_updates,
}


def cases(chosen: argparse.Namespace, data: Path) -> Iterator[Case]:
    for size in chosen.sizes.split(","):
        for preset in chosen.presets.split(","):
            yield Case(data, chosen.task, preset, int(size), tuple(chosen.set))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="*", choices=[*RUNS, []], help="benchmarks to run (default: all)"
    )
    parser.add_argument("--data", type=Path, help="a clip store (default: drawn footage)")
    parser.add_argument("--task", choices=tasks(), default="pose")
    parser.add_argument(
        "--presets", default="mobile", help="comma-separated, of mobile, base and large"
    )
    parser.add_argument("--sizes", default="128,256", help="shorter sides (default: 128,256)")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    print(
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()},"
        f" {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), Python"
        f" {platform.python_version()}, torch {torch.__version__}",
        flush=True,
    )
    wanted = chosen.runs or list(RUNS)
    with tempfile.TemporaryDirectory() as folder:
        data = chosen.data
        if data is None and wanted != ["machine"]:
            print("drawing footage", flush=True)
            data = draw_store(Path(folder), chosen.task, seconds=DRAWN / 30)
        for name in wanted:
            every = list(cases(chosen, data))
            for case in every[:1] if name == "machine" else every:
                try:
                    RUNS[name](case)
                except V2VError as error:
                    print(f"{case}: {error.message}", file=sys.stderr)


if __name__ == "__main__":
    main()
