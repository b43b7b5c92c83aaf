"""`v2v train --dry-run`: plan a run and estimate its cost without writing anything.

Sizes, parameters and multiply-adds are counted. Time and memory are measured with a few updates of
the last stage, the most expensive one, on this machine. If one such update would take too long, an
earlier stage is measured and the result is scaled by the number of pixels.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from v2v.models.cost import multiply_adds
from v2v.progress import Reporter, Silent
from v2v.training.fabric import launch, with_budget
from v2v.training.prepare import TrainingPlan, open_windows, plan_run
from v2v.training.schedule import Stage
from v2v.training.settings import TrainSettings
from v2v.training.trainer import Trainer
from v2v.types import REFERENCE_CHANNELS, Condition, GeneratorState

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class StageCost:
    stage: Stage
    minutes: float
    updates: int
    multiply_adds: int  # of the generator, per frame
    measured: bool  # whether its time was measured; otherwise it is scaled from another stage's


@dataclass(frozen=True)
class Estimate:
    """The plan of a run and its estimated cost."""

    task: str
    clips: tuple[str, ...]
    frames: int  # training frames of all clips
    plan: TrainingPlan
    parameters: dict[str, int]  # generator, discriminators
    stages: tuple[StageCost, ...]
    device: str
    precision: str
    gigabytes: float  # peak memory in the measured stage
    seconds: float  # per update of the last stage
    trials: int  # measured updates

    @property
    def minutes(self) -> float:
        return sum(cost.minutes for cost in self.stages)

    def as_json(self) -> dict[str, Any]:
        return {
            "task": self.task, "clips": list(self.clips), "frames": self.frames,
            "size": [self.plan.width, self.plan.height], "generator": self.plan.generator,
            "discriminators": self.plan.discriminators, "parameters": self.parameters,
            "device": self.device, "precision": self.precision,
            "peak_memory_gb": round(self.gigabytes, 2),
            "seconds_an_update": round(self.seconds, 4), "updates_measured": self.trials,
            "minutes": round(self.minutes, 1),
            "stages": [
                {
                    **cost.stage.as_json(), "minutes": round(cost.minutes, 2),
                    "updates": cost.updates, "multiply_adds_a_frame": cost.multiply_adds,
                    "measured": cost.measured,
                }
                for cost in self.stages
            ],
            "notes": list(self.plan.notes),
        }  # fmt: skip

    def render(self, console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("stage", "size", "frames x windows", "trained", "updates", "minutes",
                       "GMACs per frame"):  # fmt: skip
            table.add_column(column, justify="left" if column == "trained" else "right")
        for number, cost in enumerate(self.stages, 1):
            stage = cost.stage
            table.add_row(
                str(number), f"{stage.width}x{stage.height}", f"{stage.length} x {stage.batch}",
                "new scale" if stage.freeze_lower else "all scales", f"{cost.updates}",
                f"{cost.minutes:.1f}", f"{cost.multiply_adds / 1e9:.2f}",
            )  # fmt: skip
        console.print(table)
        generator, discriminators = self.parameters["generator"], self.parameters["discriminators"]
        console.print(
            f"{self.task}: {', '.join(self.clips)}; {self.frames} frames to train on\n"
            f"generator {self.plan.generator['name']} ({self.plan.generator['preset']})"
            f" {generator / 1e6:.2f} M parameters, discriminators {discriminators / 1e6:.2f} M\n"
            f"on {self.device} in {self.precision}: {self.seconds:.2f} s per update at full size,"
            f" peak memory {self.gigabytes:.1f} GB, {self.minutes:.0f} minutes in total",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        number = next(i for i, cost in enumerate(self.stages, 1) if cost.measured)
        rest = "; the other stages are scaled by their number of pixels" if self.stages[1:] else ""
        if number < len(self.stages):
            rest += "; later stages may need more memory"
        console.print(
            f"measured: {self.trials} update(s) of stage {number}{rest}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        for note in self.plan.notes:
            console.print(note, highlight=False, soft_wrap=True)


BUDGET = 20.0  # seconds for measuring, besides the first update of a stage


class _Deadline:
    """Stands in for `GracefulStop`: asks to leave the window once the time is up."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def asked(self) -> bool:
        return time.monotonic() > self.end


class DryRunTrainer:
    """Trains single updates of one stage at a time; starts in the last, most expensive stage."""

    def __init__(self, settings: TrainSettings, clips: list[Path]) -> None:
        self.settings = with_budget(settings)
        self.fabric = launch(self.settings)
        self.windows = open_windows(self.settings, clips)
        self.plan = plan_run(self.settings, self.windows, world=self.fabric.world_size)
        self.trainer = Trainer(self.fabric, self.settings, self.windows, self.plan, Silent())
        self.enter(len(self.plan.schedule) - 1)

    def enter(self, number: int) -> None:
        """Switch to a stage and discard an unfinished window."""
        self.number = number
        progress = self.trainer.progress
        progress.stage, progress.frame, self.trainer.left = number, 0, []
        self.stage = self.trainer.apply_stage()
        self._batches = self.trainer.batches(self.stage)

    def update(self, *, within: float | None = None) -> float:
        """Train on one window and return the mean seconds per update. The first ones warm up.

        Args:
            within: seconds after which the window is left, though not before its first update.
        """
        batch = next(self._batches)
        on_gpu = self.fabric.device.type == "cuda"
        deadline: Any = None if within is None else _Deadline(within)
        _synchronise(on_gpu)
        begin, before = time.perf_counter(), self.trainer.progress.step
        self.trainer.window(batch, deadline)
        _synchronise(on_gpu)
        self.updates = self.trainer.progress.step - before
        self.trainer.progress.frame, self.trainer.left = 0, []
        return (time.perf_counter() - begin) / self.updates

    def measure(self, report: Reporter, budget: float) -> float:
        """Measure the seconds per update in the last stage that fits into the budget."""
        begin = time.monotonic()
        last = len(self.plan.schedule) - 1
        if self.fabric.world_size > 1:  # the processes would have to leave at the same time
            self._announce(report)
            self.update()  # warms up
            return self.update()
        if last and self.fabric.device.type == "cpu":  # a GPU is fast at every size
            self.enter(0)
            self._announce(report)
            first = self.update(within=0)
            if time.monotonic() - begin > budget / 2:
                return first
            first, small = self.update(within=0), self._pixels_per_update(self.plan.schedule[0])
            self.enter(
                max(
                    number
                    for number, stage in enumerate(self.plan.schedule)
                    if number == 0
                    or first
                    * self._pixels_per_update(stage)
                    / small
                    * self._chunks_per_update(stage)
                    < budget / 2
                )
            )
        self._announce(report)
        warm_up = self.update(within=0)
        remaining = budget - (time.monotonic() - begin)
        return self.update(within=remaining) if remaining > warm_up else warm_up

    def _announce(self, report: Reporter) -> None:
        of = len(self.plan.schedule)
        report.note(f"measuring updates of stage {self.number + 1} of {of}: {self.stage}")

    def _pixels_per_update(self, stage: Stage) -> int:
        """Pixels rendered per update; generator, discriminators and losses scale with them."""
        chunk = min(self.settings.loop.bptt_steps, stage.length)
        return stage.height * stage.width * stage.batch * chunk

    def _chunks_per_update(self, stage: Stage) -> int:
        """Chunks of a window that are rendered before it can be left: those of one update."""
        if self.settings.loop.updates == "chunk":
            return 1
        return -(-stage.length // self.settings.loop.bptt_steps)

    def stages(self, seconds: float) -> list[StageCost]:
        """The cost of every stage, given the seconds per update of the current one."""
        settings, schedule = self.settings, self.plan.schedule
        macs = [_multiply_adds(self.trainer, stage) for stage in schedule]
        ends = [0.0, *(stage.until for stage in schedule)]
        shares = [end - begin for begin, end in pairwise(ends)]
        measured = self._pixels_per_update(self.stage)
        costs = []
        for number, (stage, share, count) in enumerate(zip(schedule, shares, macs, strict=True)):
            update = max(seconds * self._pixels_per_update(stage) / measured, 0.05 * seconds)
            if settings.budget.steps is not None:
                updates = round(settings.budget.steps * share)
                minutes = updates * update / 60
            else:
                assert settings.budget.minutes is not None
                minutes = settings.budget.minutes * share
                updates = round(minutes * 60 / update)
            costs.append(StageCost(stage, minutes, updates, count, number == self.number))
        return costs


def estimate(
    settings: TrainSettings, clips: list[Path], report: Reporter | None = None
) -> Estimate:
    """Plan a run and measure its most expensive stage that can be tried in half a minute.

    Raises the errors that training raises at its start.
    """
    report = report or Silent()
    report.note("opening the clips, building the networks")
    run = DryRunTrainer(settings, clips)
    seconds = run.measure(report, BUDGET)
    trials = run.updates
    report.note("counting multiply-adds")
    costs = run.stages(seconds)  # before the peak memory is read
    full = run._pixels_per_update(run.plan.schedule[-1]) / run._pixels_per_update(run.stage)
    trainer, device = run.trainer, run.fabric.device
    return Estimate(
        task=run.settings.task, clips=tuple(clip.name for clip in run.windows.clips),
        frames=sum(clip.train[1] - clip.train[0] for clip in run.windows.clips), plan=run.plan,
        parameters={
            "generator": sum(p.numel() for p in trainer.generator.parameters()),
            "discriminators": sum(p.numel() for p in trainer.discriminators.parameters()),
        },
        stages=tuple(costs), device=_device_name(device),
        precision=str(run.fabric._precision.precision),
        gigabytes=_peak_memory(device.type == "cuda"), seconds=seconds * full, trials=trials,
    )  # fmt: skip


def _multiply_adds(trainer: Trainer, stage: Stage) -> int:
    generator = trainer.generator
    if generator.grows:
        generator.active = stage.scale + 1
    size = (stage.height, stage.width)
    channels = trainer.windows.channels
    device = trainer.fabric.device
    generator.eval()
    condition = Condition(
        signals=torch.zeros(1, channels, *size, device=device),
        clip=torch.zeros(1, dtype=torch.int64, device=device),
        background_plate=torch.zeros(1, 4, *size, device=device),
        style=torch.zeros(1, 3, *size, device=device),
        instances=torch.zeros(1, 1, *size, dtype=torch.int64, device=device),
        control_points=torch.zeros(1, trainer.windows.control_points, 3, device=device),
        references=torch.zeros(
            1, trainer.windows.candidates, REFERENCE_CHANNELS, *size, device=device
        ),
    )
    return multiply_adds(generator, condition, GeneratorState.empty(condition))


def _synchronise(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def _peak_memory(on_gpu: bool) -> float:
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 1e9
    import resource  # unavailable on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"{device.type} ({torch.get_num_threads()} thread(s))"
        if device.type == "cpu"
        else device.type
    )
