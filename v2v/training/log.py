"""What a training run writes and shows: log.jsonl, TensorBoard, and the progress bar."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from v2v.progress import Reporter
from v2v.training.run import RunFolder
from v2v.training.schedule import Stage
from v2v.training.settings import TrainSettings
from v2v.training.state import Progress
from v2v.training.trainer import Trainer


class LogWriter:
    """Writes the log and TensorBoard: means over the updates since the last entry."""

    def __init__(self, run: RunFolder, settings: TrainSettings, enabled: bool, step: int) -> None:
        self.run, self.every, self.enabled = run, settings.output.log_every, enabled
        self.last: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._writer: Any = None
        self.rewind(step)

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def due(self, progress: Progress) -> bool:
        return progress.step >= self._next

    def finite(self, fabric: Fabric) -> bool:
        """Whether all losses since the last entry are finite, in every process."""
        sums = torch.stack(list(self._sums.values())).sum() if self._sums else torch.zeros(())
        bad = (~torch.isfinite(sums)).float()
        if fabric.world_size > 1:
            bad = fabric.all_reduce(bad, reduce_op="sum")  # type: ignore[assignment]
        return not bool(bad.item())

    def rewind(self, step: int) -> None:
        """Discard unwritten losses and continue from `step`."""
        self._sums, self._counts = {}, {}
        self._next = (step // self.every + 1) * self.every
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write(self, trainer: Trainer, stage: Stage) -> None:
        progress = trainer.progress
        self._next = (progress.step // self.every + 1) * self.every
        self.last = {n: float(v) / self._counts[n] for n, v in self._sums.items()}
        self._sums, self._counts = {}, {}
        if not self.enabled or not self.last:
            return
        rate = trainer.rate(trainer.settings.optimiser.generator_rate)
        losses = {name: round(value, 6) for name, value in self.last.items()}
        self.run.log(
            {
                "step": progress.step, "minutes": round(progress.seconds / 60, 4),
                "stage": progress.stage, "size": [stage.width, stage.height],
                "length": stage.length, "rate": rate, "losses": losses,
            }
        )  # fmt: skip
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(  # type: ignore[no-untyped-call]
                str(self.run.folder / "tensorboard"), purge_step=progress.step
            )
        for name, value in self.last.items():
            self._writer.add_scalar(name, value, progress.step)
        self._writer.add_scalar("schedule/rate", rate, progress.step)
        self._writer.add_scalar("schedule/stage", progress.stage, progress.step)
        self._writer.flush()


class TrainingBar:
    """A progress bar over the whole run, in the unit of the budget: updates or seconds."""

    def __init__(self, report: Reporter | None, trainer: Trainer) -> None:
        self.report, self.trainer = report, trainer
        self.name = "train"
        self.described = 0.0
        budget = trainer.settings.budget
        self.units = budget.steps or round(60 * (budget.minutes or 0))
        self.at = self._share()
        if report is not None:
            report.start(self.name, self.units, self.at)

    def _share(self) -> int:
        share = self.trainer.progress.share(self.trainer.settings.budget)
        return min(int(share * self.units), self.units)

    def announce(self, stage: Stage) -> None:
        if self.report is not None:
            number, of = self.trainer.progress.stage + 1, len(self.trainer.plan.schedule)
            self.report.note(f"stage {number} of {of}: {stage}")

    def advance(self, losses: dict[str, Tensor]) -> None:
        if self.report is None:
            return
        now = self._share()
        self.report.advance(self.name, now - self.at)
        self.at = now
        if time.monotonic() - self.described < 0.5:  # reading a loss waits for the GPU
            return
        self.described = time.monotonic()
        stage = self.trainer.stage()
        total = float(losses["total"])
        self.report.describe(
            self.name,
            f"train {stage.width}x{stage.height} x{stage.length}"
            f"  step {self.trainer.progress.step}  loss {total:.2f}",
        )

    def done(self) -> None:
        if self.report is not None and self._share() >= self.units:
            self.report.finish(self.name)
