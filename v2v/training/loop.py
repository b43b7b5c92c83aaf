"""The training loop. `train` reads from top to bottom:

    processes, device, precision     lightning-fabric
    data                             windows of the clips, background plates
    networks, optimisers             generator, its moving average, discriminators
    resume                           from the newest checkpoint
    loop                             stage, window, log, checkpoint, preview
    finish                           the model

All randomness derives from the seed and the window number, so there is no random state to save: a
killed run resumes from its last checkpoint and reproduces the same numbers. A run that is asked to
stop does so after the current update, in the middle of a window if need be.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2v.progress import Reporter, Silent
from v2v.training.fabric import launch, with_budget
from v2v.training.log import LogWriter, TrainingBar
from v2v.training.prepare import files_used, open_windows, plan_run
from v2v.training.publish import publish
from v2v.training.run import RunFolder
from v2v.training.settings import TrainSettings
from v2v.training.stopping import GracefulStop
from v2v.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training run."""

    folder: Path
    model: Path
    steps: int
    minutes: float
    losses: dict[str, float]
    preview: Path | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "run": str(self.folder), "model": str(self.model), "steps": self.steps,
            "minutes": round(self.minutes, 2), "losses": self.losses,
            "preview": str(self.preview) if self.preview else None, "notes": list(self.notes),
        }  # fmt: skip


def train(
    settings: TrainSettings,
    clips: list[Path],
    folder: Path,
    report: Reporter,
    *,
    overwrite: bool = False,
) -> TrainingResult:
    """Train a model on clip stores in a run folder, or resume a stopped run.

    Raises `RunConflict`, `SignalMissing`, `TooFewFrames`, `TrainingDiverged`, `OutOfMemory`,
    `DiskFull` and what opening stores raises; `KeyboardInterrupt` once a stopped run is saved.
    """
    # Processes, device, precision.
    fabric = launch(settings)
    first = fabric.is_global_zero
    settings = with_budget(settings)

    # Data.
    windows = open_windows(settings, clips, report if first else None)
    plan = plan_run(settings, windows, world=fabric.world_size)
    notes = [*windows.notes, *plan.notes]

    # Networks, optimisers.
    trainer = Trainer(fabric, settings, windows, plan, report if first else Silent())
    with RunFolder(folder) if first else nullcontext(RunFolder(folder)) as run:
        if first:
            if overwrite:
                run.clear()
            run.begin(settings, clips, files_used(settings, windows))
            for note in notes:
                report.note(note)
        fabric.barrier()

        # Resume.
        checkpoint = run.latest()
        if checkpoint is not None:
            trainer.restore(checkpoint, run.checkpoints)
        progress = trainer.progress
        if first:
            run.rewind(progress.step)
            if progress.step and progress.share(settings.budget) >= 1:
                report.note(f"{folder} is already trained; increase the budget to train it further")
            elif progress.step:
                report.note(f"resuming from step {progress.step}")

        # Loop.
        log_writer = LogWriter(run, settings, first, progress.step)
        with GracefulStop() as stopping, log_writer:
            stopped = _loop(trainer, run, log_writer, stopping, report)
        fabric.barrier()  # no process leaves before the first has saved
        if stopped:
            raise KeyboardInterrupt

        # Finish.
        preview = None
        if first:
            preview = publish(trainer, run)
        fabric.barrier()
    return TrainingResult(
        folder=folder, model=run.model, steps=trainer.progress.step,
        minutes=trainer.progress.seconds / 60, losses=log_writer.last, preview=preview,
        notes=tuple(notes),
    )  # fmt: skip


def _loop(
    trainer: Trainer,
    run: RunFolder,
    log_writer: LogWriter,
    stopping: GracefulStop,
    report: Reporter,
) -> bool:
    """Train until the budget is used up. Returns whether it was stopped earlier."""
    settings, fabric = trainer.settings, trainer.fabric
    output, budget = settings.output, settings.budget
    first = fabric.is_global_zero
    if first and not run.saved():
        trainer.save(run)  # for rollbacks
    bar = TrainingBar(report if first else None, trainer)
    clock = time.monotonic()
    saved = previewed = trainer.progress.seconds

    stop = False
    while trainer.progress.share(budget) < 1 and not stop:
        stage = trainer.enter_stage()
        bar.announce(stage)
        for batch in trainer.batches(stage):
            losses = trainer.window(batch, stopping)

            # All processes use the clock and the stop flag of the first one: if they disagreed on
            # what is due, they would deadlock.
            trainer.progress.seconds += time.monotonic() - clock
            clock = time.monotonic()
            stop = stopping.asked
            if fabric.world_size > 1:
                trainer.progress.seconds, stop = fabric.broadcast((trainer.progress.seconds, stop))
            now = trainer.progress.seconds
            bar.advance(losses)
            over = trainer.progress.share(budget) >= 1 or stop
            save_due = over or now - saved > 60 * output.checkpoint_minutes
            preview_due = not over and now - previewed > 60 * output.preview_minutes

            # Log. Roll back from NaN or infinite values, so that only finite weights are saved.
            log_writer.add(losses)
            saving = save_due or preview_due
            if log_writer.due(trainer.progress) or saving:
                if not log_writer.finite(fabric) or (saving and not trainer.finite()):
                    trainer.roll_back(run, report)
                    log_writer.rewind(trainer.progress.step)
                    if stop and first:
                        trainer.save(run)  # stores the lower learning rates
                    break
                log_writer.write(trainer, stage)
            if save_due:
                saved = now
                if first:
                    trainer.save(run)
            if preview_due:
                previewed = now
                if first:
                    publish(trainer, run)
            if over or trainer.stage_is_over():
                break
    bar.done()
    return stop and trainer.progress.share(budget) < 1
