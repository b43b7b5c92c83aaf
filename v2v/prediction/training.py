"""Train predictors of future signals, for `v2v train --task predict`.

`train_predictor` reads from top to bottom. Each of the two kinds of signal has a task: its network,
the loss of a step and a score. The score is the error relative to copying the last frame, so 1
means no gain. The untrained network is among the candidates for the best one.

Footage: the shots of the part that the model was trained on. Its last fifth is for validation.

    training | validation | held out, never seen

All randomness derives from the seed and the step number: a stopped run resumes from its checkpoint
and reproduces the same numbers.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from v2v.checkpoint import load_model
from v2v.config import Duration
from v2v.data.store import ClipStore
from v2v.errors import RunConflict
from v2v.files import remove_at_once
from v2v.prediction.labels import LabelTask
from v2v.prediction.measures import Extend, compare, constant_velocity, copy_last
from v2v.prediction.points import PointTask
from v2v.prediction.predictor import (
    PREDICTOR_FILE,
    PredictorRecord,
    load_predictor,
    renamed_weights,
)
from v2v.prediction.settings import OPERATIONAL, PredictSettings
from v2v.prediction.spans import clip_uses, find_spans, predicted_signal, validation_tracks
from v2v.prediction.task import Task
from v2v.progress import Reporter
from v2v.records import Count as Steps
from v2v.records import Plain, Record
from v2v.resume import CHECKPOINT_FILE, Checkpoint, as_progress, load_checkpoint, save_checkpoint
from v2v.tensors import load_optimiser, load_weights
from v2v.training.run import RunFolder
from v2v.training.stopping import GracefulStop


@dataclass(frozen=True)
class PredictorResult:
    """The outcome of a training. Errors are those of `v2v.prediction.measures.track_error`."""

    folder: Path
    signal: str
    steps: int
    best: int  # the step whose weights were kept
    minutes: float
    errors: dict[str, dict[int, float]]  # method -> frames ahead -> error, on the validation part
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [
            f"{self.folder}: predicts {self.signal}, {self.steps} updates in"
            f" {self.minutes:.1f} min, best after {self.best}"
        ]
        ahead = sorted({a for errors in self.errors.values() for a in errors})
        lines.append(f"{'frames ahead':<20}" + "".join(f"{a:>8}" for a in ahead))
        for method, errors in self.errors.items():
            cells = [f"{errors[a]:8.3f}" if a in errors else " " * 8 for a in ahead]
            lines.append(f"{method.replace('_', ' '):<20}" + "".join(cells))
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        return {
            "predictor": str(self.folder), "signal": self.signal, "steps": self.steps,
            "best": self.best, "minutes": round(self.minutes, 2), "errors": self.errors,
            "notes": list(self.notes),
        }  # fmt: skip


def train_predictor(
    settings: PredictSettings,
    clips: list[Path],
    run: Path,
    report: Reporter,
    *,
    overwrite: bool = False,
) -> PredictorResult:
    """Train a predictor for the signal of a run's model, or resume a stopped training.

    The predictor is written to the run's folder, beside the model. Raises `CheckpointInvalid` (no
    model), `SignalMissing`, `TooFewFrames`, `StoreConflict`, `RunConflict` (a predictor with other
    settings exists), the errors of opening stores, `DiskFull`, `NotWritable`; `KeyboardInterrupt`
    once a stopped run is saved.
    """
    # Signal and footage.
    model = load_model(run).record
    signal = predicted_signal(model)
    stores = [ClipStore.open(clip) for clip in clips]
    spans = find_spans(stores, model, signal, settings)

    with RunFolder(run):
        # Existing predictor and checkpoint.
        folder, saved = run / "predictor", run / "predictor.checkpoint"
        signature = _signature(settings, stores, signal)
        if overwrite:
            remove_at_once(saved)
        elif (folder / PREDICTOR_FILE).is_file() and not saved.exists():
            return _finished_result(folder, signature, report)

        # Networks, optimisers, resume.
        torch.manual_seed(settings.seed)  # initial weights
        task = (LabelTask if signal == "segmentation" else PointTask)(
            settings, model, stores, spans
        )
        trainer = _Trainer(settings, task, signature)
        if (saved / CHECKPOINT_FILE).is_file():
            trainer.restore(saved)
            report.note(f"resuming from step {trainer.step}")

        # Train.
        with GracefulStop() as stopping:
            stopped = trainer.loop(saved, stopping, report)
        if stopped:
            raise KeyboardInterrupt

        # Measure and write.
        task.network.load_state_dict(trainer.best)
        task.network.eval()
        predictor = task.predictor(PredictorRecord(signal=signal, network={}))
        methods: dict[str, Extend] = {
            "predictor": predictor.extend, "copy_last": copy_last,
            "constant_velocity": constant_velocity,
        }  # fmt: skip
        errors = compare(methods, *validation_tracks(spans, model))
        training = {
            "steps": trainer.step, "best": trainer.best_step, "score": trainer.best_score,
            "minutes": round(trainer.seconds / 60, 3), "signature": signature,
            "settings": settings.model_dump(mode="json"),
        }  # fmt: skip
        record = predictor.record.model_copy(
            update={"training": training, "errors": errors, "clips": clip_uses(stores, spans)}
        )
        predictor = replace(predictor, record=record)
        predictor.save(folder)
        remove_at_once(saved)
    return _result(folder, record)


class SavedPredictorProgress(Record):
    """The training progress as a checkpoint stores it."""

    step: Steps
    seconds: Duration
    best_step: Steps
    best_score: float | None  # None: not finite so far
    since: Steps
    signature: Plain


class _Trainer:
    """The training loop; its checkpoint holds all state that must survive a stop."""

    def __init__(self, settings: PredictSettings, task: Task, signature: dict[str, Any]) -> None:
        self.settings, self.task, self.signature = settings, task, signature
        self.adam = torch.optim.AdamW(
            task.network.parameters(), task.rate, weight_decay=task.weight_decay
        )
        self.step, self.seconds = 0, 0.0
        self.best = copy.deepcopy(task.network.state_dict())
        self.best_step, self.best_score = 0, math.inf
        self.since = 0  # evaluations without improvement

    def share(self) -> float:
        """The fraction of the budget that is used up."""
        budget = self.settings.budget
        if budget.minutes is not None:
            return self.seconds / 60 / budget.minutes
        return self.step / (budget.steps or self.task.steps)

    def loop(self, saved: Path, stopping: GracefulStop, report: Reporter) -> bool:
        """Train until the budget is used up or the score stalls. Returns whether it was stopped."""
        if not math.isfinite(self.best_score):
            self.evaluate()
        budget = self.settings.budget
        total = budget.steps or self.task.steps
        if budget.minutes is not None:
            total = max(round(60 * budget.minutes), 1)
        done = min(int(self.share() * total), total)
        report.start("predict", total, done)
        clock = written = time.monotonic()
        while self.share() < 1 and self.since < self.settings.patience:
            length = self.update()
            if self.step % self.settings.evaluate_every == 0 or self.share() >= 1:
                self.evaluate(counts=length == self.task.lengths[-1])
                report.describe(
                    "predict",
                    f"predict x{length}  step {self.step}  score {self.best_score:.3f}",
                )
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            if stopping.asked or now - written > self.settings.checkpoint_seconds:
                self.save(saved)
                written = now
            reached = min(int(self.share() * total), total)
            report.advance("predict", reached - done)
            done = reached
            if stopping.asked:
                return True
        report.finish("predict")
        return False

    def update(self) -> int:
        """Train one step. Returns the length of its rollouts."""
        task, share = self.task, min(self.share(), 1.0)
        # The longest rollouts are what inference needs, so they get the second half.
        last = len(task.lengths) - 1
        length = task.lengths[min(int(2 * share * last), last)]
        for group in self.adam.param_groups:
            group["lr"] = task.rate * (0.05 + 0.95 * math.cos(math.pi / 2 * share) ** 2)
        # Dropout uses torch, windows use numpy: both depend on the seed and the step alone.
        seeds = np.random.SeedSequence([self.settings.seed, self.step])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]) >> 2)
        task.network.train()
        self.adam.zero_grad()
        loss = task.loss(np.random.default_rng(seeds), length)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(task.network.parameters(), 1.0)
        if bool(torch.isfinite(norm)):
            self.adam.step()
        self.step += 1
        return length

    def evaluate(self, *, counts: bool = False) -> None:
        self.task.network.eval()
        with torch.inference_mode():
            score = self.task.score()
        if score < self.best_score:
            self.best = copy.deepcopy(self.task.network.state_dict())
            self.best_score, self.best_step, self.since = score, self.step, 0
        elif counts:
            self.since += 1

    def save(self, folder: Path) -> None:
        progress = {
            "step": self.step, "seconds": self.seconds, "best_step": self.best_step,
            "best_score": self.best_score if math.isfinite(self.best_score) else None,
            "since": self.since, "signature": self.signature,
        }  # fmt: skip
        modules = {"network": self.task.network.state_dict(), "best": self.best}
        save_checkpoint(folder, Checkpoint(progress, modules, {"adam": self.adam.state_dict()}))

    def restore(self, folder: Path) -> None:
        """Resume. Raises `RunConflict` for a checkpoint of other settings, `CheckpointInvalid`."""
        checkpoint = load_checkpoint(folder)
        progress = as_progress(SavedPredictorProgress, checkpoint.progress, folder)
        if progress.signature != self.signature:
            raise RunConflict(
                f"{folder} is a stopped training with other settings or clips",
                hint="use the same ones, or start again with --overwrite",
            )
        for name in ("best", "network"):
            weights = renamed_weights(checkpoint.modules.get(name, {}))
            load_weights(self.task.network, weights, folder)
        self.best = renamed_weights(checkpoint.modules["best"])
        load_optimiser(self.adam, checkpoint.optimisers.get("adam"), folder)
        self.step, self.seconds = progress.step, progress.seconds
        self.best_step, self.since = progress.best_step, progress.since
        self.best_score = math.inf if progress.best_score is None else progress.best_score


def _signature(settings: PredictSettings, stores: list[ClipStore], signal: str) -> dict[str, Any]:
    """The values that identify a training: signal, data and settings."""
    plain = settings.model_dump(mode="json")
    files = [f.sha256 for store in stores for f in store.record.signals[signal].files.values()]
    kept = {k: v for k, v in plain.items() if k not in OPERATIONAL}
    return {"signal": signal, "files": files, **kept}


def _finished_result(folder: Path, signature: dict[str, Any], report: Reporter) -> PredictorResult:
    record = load_predictor(folder).record
    _result(folder, record)
    if record.training.get("signature") != signature:
        raise RunConflict(
            f"{folder} holds a predictor that was trained with other settings or clips",
            hint="use the same ones, or train again with --overwrite",
        )
    report.note(f"{folder} is already trained; use --overwrite to train it again")
    return _result(folder, record)


def _result(folder: Path, record: PredictorRecord) -> PredictorResult:
    values = {name: record.training.get(name) for name in ("steps", "best", "minutes")}
    training = as_progress(_TrainingSummary, values, folder / PREDICTOR_FILE)
    return PredictorResult(
        folder=folder, signal=record.signal, steps=training.steps, best=training.best,
        minutes=training.minutes, errors=record.errors,
    )  # fmt: skip


class _TrainingSummary(Record):
    """The training values in a predictor's record."""

    steps: Steps
    best: Steps
    minutes: Duration
