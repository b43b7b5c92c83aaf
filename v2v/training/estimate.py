"""`v2v train --dry-run`: what would be trained, and what it costs, without writing anything.

Sizes, parameters and multiply-adds are counted. Time and memory are measured: updates of the last
stage, which costs the most, are really made, on the machine that would do the rest. That is
bounded: where an update of the last stage would take too long, an earlier stage is measured, and
the rest follows from the number of pixels.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from v2v.models.generator import multiply_adds
from v2v.progress import Reporter, Silent
from v2v.training.loop import Trainer, launch, with_budget
from v2v.training.prepare import TrainingPlan, open_windows, plan_run
from v2v.training.schedule import Stage
from v2v.training.settings import TrainSettings
from v2v.types import REFERENCE_CHANNELS, Condition, GeneratorState

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class StageCost:
    stage: Stage
    minutes: float
    updates: int
    multiply_adds: int  # of the generator, for one frame
    measured: bool  # whether its time was; else it follows from another stage's


@dataclass(frozen=True)
class Estimate:
    """What a run would be."""

    task: str
    clips: tuple[str, ...]
    frames: int  # for training, of all clips
    plan: TrainingPlan
    parameters: dict[str, int]  # generator, critics
    stages: tuple[StageCost, ...]
    device: str
    precision: str
    gigabytes: float  # peak memory of a window of the measured stage
    seconds: float  # an update of the last stage
    trials: int  # updates that were measured

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
                       "GMACs a frame"):  # fmt: skip
            table.add_column(column, justify="left" if column == "trained" else "right")
        for number, cost in enumerate(self.stages, 1):
            stage = cost.stage
            table.add_row(
                str(number), f"{stage.width}x{stage.height}", f"{stage.length} x {stage.batch}",
                "the new scale" if stage.freeze_lower else "everything", f"{cost.updates}",
                f"{cost.minutes:.1f}", f"{cost.multiply_adds / 1e9:.2f}",
            )  # fmt: skip
        console.print(table)
        generator, discriminators = self.parameters["generator"], self.parameters["discriminators"]
        console.print(
            f"{self.task}: {', '.join(self.clips)}; {self.frames} frames to train on\n"
            f"generator {self.plan.generator['name']} ({self.plan.generator['preset']})"
            f" {generator / 1e6:.2f} M parameters, critics {discriminators / 1e6:.2f} M\n"
            f"on {self.device} in {self.precision}: {self.seconds:.2f} s an update at full size,"
            f" peak memory {self.gigabytes:.1f} GB, {self.minutes:.0f} minutes in all",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        number = next(i for i, cost in enumerate(self.stages, 1) if cost.measured)
        rest = "; the time of the others follows from their pixels" if self.stages[1:] else ""
        if number < len(self.stages):
            rest += "; later stages may take more memory"
        console.print(
            f"measured: {self.trials} update(s) of stage {number}{rest}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        for note in self.plan.notes:
            console.print(note, highlight=False, soft_wrap=True)


BUDGET = 20.0  # seconds that measuring takes, beside the first update of a stage


class _Deadline:
    """As `GracefulStop`: asks to leave a window once the time is over."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def asked(self) -> bool:
        return time.monotonic() > self.end


class DryRunTrainer:
    """A run that stands in one of its stages, to be tried; at first in the last and costliest."""

    def __init__(self, settings: TrainSettings, clips: list[Path]) -> None:
        self.settings = with_budget(settings)
        self.fabric = launch(self.settings)
        self.windows = open_windows(self.settings, clips)
        self.plan = plan_run(self.settings, self.windows, world=self.fabric.world_size)
        self.trainer = Trainer(self.fabric, self.settings, self.windows, self.plan, Silent())
        self.enter(len(self.plan.schedule) - 1)

    def enter(self, number: int) -> None:
        """Stand in a stage; a window that was left is forgotten."""
        self.number = number
        progress = self.trainer.progress
        progress.stage, progress.frame, self.trainer.left = number, 0, []
        self.stage = self.trainer.apply_stage()
        self._batches = self.trainer.batches(self.stage)

    def update(self, *, within: float | None = None) -> float:
        """Seconds of an update, over those of one window. The first ones warm up.

        Args:
            within: seconds after which the window is left, once an update is made.
        """
        batch = next(self._batches)
        on_gpu = self.fabric.device.type == "cuda"
        deadline: Any = None if within is None else _Deadline(within)
        _settle(on_gpu)
        begin, before = time.perf_counter(), self.trainer.progress.step
        self.trainer.window(batch, deadline)
        _settle(on_gpu)
        self.updates = self.trainer.progress.step - before
        self.trainer.progress.frame, self.trainer.left = 0, []
        return (time.perf_counter() - begin) / self.updates

    def measure(self, report: Reporter, budget: float) -> float:
        """Seconds of an update, in the last stage that can be tried within the budget."""
        begin = time.monotonic()
        last = len(self.plan.schedule) - 1
        if self.fabric.world_size > 1:  # processes would have to agree on when to leave
            self._announce(report)
            self.update()  # warms up
            return self.update()
        if last and self.fabric.device.type == "cpu":  # a GPU is quick at all sizes
            self.enter(0)
            self._announce(report)
            first = self.update(within=0)
            if time.monotonic() - begin > budget / 2:
                return first
            first, small = self.update(within=0), self._rendered(self.plan.schedule[0])
            self.enter(
                max(
                    number
                    for number, stage in enumerate(self.plan.schedule)
                    if number == 0
                    or first * self._rendered(stage) / small * self._inseparable(stage) < budget / 2
                )
            )
        self._announce(report)
        warming = self.update(within=0)
        left = budget - (time.monotonic() - begin)
        return self.update(within=left) if left > warming else warming

    def _announce(self, report: Reporter) -> None:
        of = len(self.plan.schedule)
        report.note(f"measuring updates of stage {self.number + 1} of {of}: {self.stage}")

    def _rendered(self, stage: Stage) -> int:
        """Pixels that an update renders: losses, critics and generator all grow with them."""
        chunk = min(self.settings.loop.bptt_steps, stage.length)
        return stage.height * stage.width * stage.batch * chunk

    def _inseparable(self, stage: Stage) -> int:
        """Chunks of a window that are rendered before it can be left."""
        if self.settings.loop.updates == "chunk":
            return 1
        return -(-stage.length // self.settings.loop.bptt_steps)

    def stages(self, seconds: float) -> list[StageCost]:
        """What every stage costs where an update of this one takes so many seconds."""
        settings, schedule = self.settings, self.plan.schedule
        macs = [_macs(self.trainer, stage) for stage in schedule]
        ends = [0.0, *(stage.until for stage in schedule)]
        shares = [end - begin for begin, end in pairwise(ends)]
        most = self._rendered(self.stage)
        costs = []
        for number, (stage, share, count) in enumerate(zip(schedule, shares, macs, strict=True)):
            update = max(seconds * self._rendered(stage) / most, 0.05 * seconds)
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
    """Plan a run and try its costliest stage, or the costliest that can be tried in half a minute.

    Raises what training would raise at its start.
    """
    report = report or Silent()
    report.note("opening the clips, building the networks")
    run = DryRunTrainer(settings, clips)
    seconds = run.measure(report, BUDGET)
    trials = run.updates
    report.note("counting multiply-adds")
    costs = run.stages(seconds)  # before the memory is read
    full = run._rendered(run.plan.schedule[-1]) / run._rendered(run.stage)
    trainer, device = run.trainer, run.fabric.device
    return Estimate(
        task=run.settings.task, clips=tuple(clip.name for clip in run.windows.clips),
        frames=sum(clip.train[1] - clip.train[0] for clip in run.windows.clips), plan=run.plan,
        parameters={
            "generator": sum(p.numel() for p in trainer.generator.parameters()),
            "discriminators": sum(p.numel() for p in trainer.discriminators.parameters()),
        },
        stages=tuple(costs), device=_device_name(device),
        precision=str(run.fabric._precision.precision), gigabytes=_peak(device.type == "cuda"),
        seconds=seconds * full, trials=trials,
    )  # fmt: skip


def _macs(trainer: Trainer, stage: Stage) -> int:
    generator: Any = trainer.generator
    if hasattr(generator, "active"):
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
    return multiply_adds(generator, condition, GeneratorState.nothing(condition))


def _settle(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def _peak(on_gpu: bool) -> float:
    if on_gpu:
        return torch.cuda.max_memory_allocated() / 1e9
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"{device.type} ({torch.get_num_threads()} thread(s))"
        if device.type == "cpu"
        else device.type
    )
