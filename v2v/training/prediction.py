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
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from v2v.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    ClipUse,
    ModelRecord,
    as_progress,
    load_checkpoint,
    load_model,
    load_optimiser,
    load_weights,
    save_checkpoint,
)
from v2v.config import Config, Duration, Positive, Unit
from v2v.data.store import ClipStore
from v2v.data.windows import trained_part
from v2v.errors import RunConflict, SignalMissing, StoreConflict, TooFewFrames, UsageError
from v2v.evaluation.prediction import Extend, compare, constant_velocity, copy_last
from v2v.files import remove_at_once
from v2v.models.predictor import (
    PAST_MAPS,
    LabelPredictor,
    LabelState,
    PointPredictor,
    ShapePCA,
    one_hot,
)
from v2v.progress import Reporter
from v2v.records import Count as Steps
from v2v.records import Plain, Record
from v2v.signals import Track
from v2v.signals.face import FaceTrack
from v2v.signals.flow import FlowTrack
from v2v.signals.pose import PoseTrack
from v2v.signals.segmentation import VOID, LabelTrack
from v2v.training.predictor import (
    ANCHORS,
    LEAST,
    MEMORY,
    PREDICTOR_FILE,
    SIGNALS,
    LabelsPredictor,
    PointsPredictor,
    Predictor,
    PredictorRecord,
    load_predictor,
    normalised,
    renamed_weights,
)
from v2v.training.run import RunFolder
from v2v.training.settings import Budget
from v2v.training.stopping import GracefulStop

__all__ = ["PredictorResult", "PredictSettings", "Predictor", "load_predictor", "train_predictor"]

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Size = Annotated[int, Field(ge=1, le=4096)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Lengths = Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
PIECE = 64  # label maps read at a time
MAX_VALIDATED = 24  # approximate number of windows per score
MEASURED = 150  # frames per shot that errors are measured on


class PointSettings(Config):
    steps: Count
    past: Annotated[int, Field(ge=LEAST, le=1024)]
    components: Size
    variance: Unit
    hidden: Size
    dropout: Part
    damping: Annotated[float, Field(gt=0, lt=1)]
    lengths: Lengths
    batch: Size
    rate: LearningRate
    weight_decay: Weight
    noise: Weight
    shift: Weight
    speed: Weight


class LabelSettings(Config):
    steps: Count
    size: Annotated[int, Field(ge=32, le=4096)]
    width: Annotated[int, Field(ge=1, le=1024)]
    embedding: Annotated[int, Field(ge=1, le=1024)]
    lengths: Lengths
    batch: Size
    rate: LearningRate
    weight_decay: Weight
    balance: Unit
    flow: Weight
    occlusion: Weight


class PredictSettings(Config):
    hold_out: Annotated[float, Field(ge=0, le=0.9)]
    validation: Annotated[float, Field(gt=0, le=0.5)]
    patience: Count
    evaluate_every: Count
    checkpoint_seconds: Positive
    seed: Annotated[int, Field(ge=0, lt=1 << 62)]
    device: str
    points: PointSettings
    labels: LabelSettings
    budget: Budget


OPERATIONAL = {"budget", "checkpoint_seconds", "device"}  # settings that a resumed run may change


@dataclass(frozen=True)
class PredictorResult:
    """The outcome of a training. Errors are those of `v2v.evaluation.prediction.track_error`."""

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
    signal = _signal(model)
    stores = [ClipStore.open(clip) for clip in clips]
    spans = _spans(stores, model, signal, settings)

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
        errors = compare(methods, *_validation_tracks(spans, model))
        training = {
            "steps": trainer.step, "best": trainer.best_step, "score": trainer.best_score,
            "minutes": round(trainer.seconds / 60, 3), "signature": signature,
            "settings": settings.model_dump(mode="json"),
        }  # fmt: skip
        record = predictor.record.model_copy(
            update={"training": training, "errors": errors, "clips": _clip_uses(stores, spans)}
        )
        predictor = replace(predictor, record=record)
        predictor.save(folder)
        remove_at_once(saved)
    return _result(folder, record)


# ---------------------------------------------------------------- footage


@dataclass(frozen=True)
class Span:
    """A shot, or the part of it in the training footage."""

    store: ClipStore
    start: int
    stop: int
    target: int  # first validation frame; `stop` if there is none


def _signal(model: ModelRecord) -> str:
    names = [use.name for use in model.signals]
    if len(names) != 1 or names[0] not in SIGNALS:
        raise UsageError(
            f"the model is driven by {' and '.join(names)}, which cannot be predicted",
            hint=f"use a model that is driven by one of {', '.join(SIGNALS)}",
        )
    return names[0]


def _spans(
    stores: list[ClipStore], model: ModelRecord, signal: str, settings: PredictSettings
) -> list[Span]:
    """The shots of the training footage; the end of each clip is for validation."""
    if not stores:
        raise UsageError("no clip to train on", hint="name one or more clip stores")
    known = {use.sha256: use.trained for use in model.clips}
    spans = []
    for store in stores:
        record = store.record.signals.get(signal)
        if record is None:
            raise SignalMissing(
                f"{store.folder} has no {signal} (it has: {', '.join(store.signals) or 'none'})",
                hint=f"add it with: v2v preprocess {store.folder} --signal {signal}",
            )
        classes = model.signals[0].spec.get("classes")
        if record.spec.get("classes") != classes:
            raise StoreConflict(
                f"the classes of {signal} in {store.folder} differ from the model's",
                hint="preprocess both with the same backend and classes, with --overwrite",
            )
        own = known.get(store.record.source.sha256)
        begin, end = trained_part(len(store), settings.hold_out)
        if own is not None and own[1] <= len(store):
            begin, end = own
        target = end - max(round((end - begin) * settings.validation), 1)
        for a, b in store.shots:
            start, stop = max(a, begin), min(b, end)
            if stop - start > LEAST:
                spans.append(Span(store, start, stop, min(max(target, start), stop)))
    trained = max((s.target - s.start for s in spans), default=0)
    checked = any(s.stop > max(s.target, s.start + LEAST) for s in spans)
    if trained <= LEAST or not checked:
        raise TooFewFrames(
            f"too few frames: training needs {LEAST + 1} in a row, and validation one more after"
            f" {LEAST}; the longest training shot has"
            f" {max((s.stop - s.start for s in spans), default=0)}",
            hint="use longer footage, or hold out less (-s hold_out=0.05)",
        )
    return spans


def _validation_tracks(spans: list[Span], model: ModelRecord) -> tuple[list[Track], list[int]]:
    """The tracks that errors are measured on, and the first validation frame in each."""
    tracks, targets = [], []
    for span in spans:
        start, stop = max(span.start, span.target - MEMORY), min(span.stop, span.target + MEASURED)
        track = span.store.track(model.signals[0].name, start, stop)
        # Errors are fractions of pixels: they hardly change at the model's size.
        tracks.append(
            track.scaled(model.width, model.height) if isinstance(track, LabelTrack) else track
        )
        targets.append(span.target - start)
    return tracks, targets


def _clip_uses(stores: list[ClipStore], spans: list[Span]) -> tuple[ClipUse, ...]:
    uses = []
    for store in stores:
        own = [span for span in spans if span.store is store]
        trained = (
            min((s.start for s in own), default=0), max((s.stop for s in own), default=0)
        )  # fmt: skip
        frames, source = store.record.frames, store.record.source
        uses.append(
            ClipUse(
                name=store.folder.name,
                source=source.name,
                sha256=source.sha256,
                fps=frames.fps,
                frames=frames.count,
                trained=trained,
                width=frames.width,
                height=frames.height,
                still=False,
            )  # fmt: skip
        )
    return tuple(uses)


# ---------------------------------------------------------------- the loop


class Task(ABC):
    """How to train a predictor of one kind of signal."""

    network: nn.Module
    lengths: tuple[int, ...]  # rollout lengths in frames, from the start to the end of training
    steps: int  # if no budget is given
    rate: float
    weight_decay: float

    @abstractmethod
    def loss(self, random: np.random.Generator, length: int) -> Tensor: ...

    @abstractmethod
    def score(self) -> float:
        """Validation error relative to copying the last frame."""

    @abstractmethod
    def predictor(self, record: PredictorRecord) -> Predictor: ...


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


# ---------------------------------------------------------------- points


class PointTask(Task):
    """Pose and face: rollouts of states, scored by the distance of the points."""

    def __init__(
        self,
        settings: PredictSettings,
        model: ModelRecord,
        stores: list[ClipStore],
        spans: list[Span],
    ) -> None:
        own = settings.points
        self.own = own
        self.lengths, self.steps = own.lengths, own.steps
        self.rate, self.weight_decay = own.rate, own.weight_decay
        signal = model.signals[0].name
        tracks = [
            cast(PoseTrack | FaceTrack, s.store.track(signal, s.start, s.stop)) for s in spans
        ]
        points = [normalised(track) for track in tracks]
        learned = [p[: s.target - s.start] for p, s in zip(points, spans, strict=True)]
        learned = [p for p in learned if np.isfinite(p).any()]
        if not learned:
            raise SignalMissing(
                f"no training frame has a {signal}",
                hint="check preview.mp4 of the clips; use footage that shows it for longer",
            )
        self.code = ShapePCA.fit(
            learned, ANCHORS[signal], components=own.components, variance=own.variance
        )
        self.arguments = {
            "length": self.code.length, "past": own.past, "hidden": own.hidden,
            "dropout": own.dropout, "damping": own.damping,
        }  # fmt: skip
        self.network: PointPredictor = PointPredictor(**self.arguments)  # type: ignore[arg-type]

        # All shots in one table; a window is a shot and its newest known frame.
        states = [self.code.encode(self.code.complete(p))[0] for p in points]
        self.states = torch.from_numpy(np.concatenate(states))
        self.present = torch.from_numpy(np.concatenate([t.present() for t in tracks])).float()
        ends = np.cumsum([len(s) for s in states])
        self.first = ends - [len(s) for s in states]
        self.target = self.first + [s.target - s.start for s in spans]
        self.stop = ends
        seen = [s[: span.target - span.start] for s, span in zip(states, spans, strict=True)]
        steps = [np.diff(s, axis=0) for s in seen if len(s) > 1]
        self.network.learn_range(
            torch.from_numpy(np.concatenate(seen)), torch.from_numpy(np.concatenate(steps))
        )
        size = float(torch.exp(self.network.centre[points[0].shape[2]]))
        weight = torch.from_numpy(self.code.weight())
        weight[: points[0].shape[2]] /= size
        self.weight = weight
        self.usual = self._mean_distances(max(self.lengths))

    def _starts(self, length: int, *, validating: bool = False) -> NDArray[np.int64]:
        """[N, 2] shot and newest known frame of all windows with `length` frames after it."""
        rows = [np.empty((0, 2), np.int64)]
        for shot, (first, target, stop) in enumerate(
            zip(self.first, self.target, self.stop, strict=True)
        ):
            low, high = first + LEAST - 1, (stop if validating else target) - length
            low = max(low, target - 1) if validating else low
            newest = np.arange(low, high)
            rows.append(np.stack([np.full_like(newest, shot), newest], axis=1))
        return np.concatenate(rows)

    def _mean_distances(self, longest: int) -> Tensor:
        """[L] mean distance of the points from their position 1 to L frames earlier."""
        usual = []
        for length in range(1, longest + 1):
            starts = self._starts(length)
            if not len(starts):
                break
            newest = torch.from_numpy(starts[:, 1])
            moved = self._distance(self.states[newest + length], self.states[newest])
            usual.append(float(moved.mean()))
        return torch.tensor(usual).clamp(min=1e-5)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return ((a - b) * self.weight).square().sum(dim=-1).add(1e-10).sqrt()

    def _window(
        self, starts: NDArray[np.int64], length: int, speed: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Past [B, P, S], future [B, L, S] and whether the future is visible [B, L].

        `speed` [B] scales the filmed speed; states are then interpolated between frames.
        """
        newest = torch.from_numpy(starts[:, 1])[:, None]
        first = torch.from_numpy(self.first[starts[:, 0]])[:, None]
        steps = torch.arange(1 - self.own.past, length + 1).expand(len(starts), -1)
        if speed is None:
            index = torch.maximum(newest + steps, first)
            states, present = self.states[index], self.present[index]
        else:
            end = torch.from_numpy(self.target[starts[:, 0]])[:, None] - 1
            place = newest + steps * speed[:, None]
            inside = place <= end
            place = torch.minimum(torch.maximum(place, first.float()), end.float())
            below = place.floor().long()
            above = torch.minimum(below + 1, end)
            share = (place - below)[..., None]
            states = (1 - share) * self.states[below] + share * self.states[above]
            present = self.present[below] * self.present[above] * inside
        return (
            states[:, : self.own.past], states[:, self.own.past :], present[:, self.own.past :]
        )  # fmt: skip

    def loss(self, random: np.random.Generator, length: int) -> Tensor:
        starts = self._starts(length)
        while not len(starts):  # no shot is that long
            length -= 1
            starts = self._starts(length)
        chosen = starts[random.integers(len(starts), size=self.own.batch)]
        speed = np.exp(self.own.speed * random.uniform(-1, 1, self.own.batch)).astype(np.float32)
        past, true, present = self._window(chosen, length, torch.from_numpy(speed))
        shift = torch.from_numpy(random.standard_normal(past[:, :1].shape).astype(np.float32))
        shift = shift * (self.own.shift * self.network.spread)
        past, true = past + shift, true + shift
        noise = torch.from_numpy(random.standard_normal(past.shape).astype(np.float32))
        past = past + noise * (self.own.noise * self.network.velocity_scale)
        predicted = self.network.rollout(self.network.begin(past), length)
        # Normalised so that every step ahead has equal weight: distant steps are only less certain.
        off = self._distance(predicted, true) / self.usual[:length]
        return (off * present).sum() / present.sum().clamp(min=1)

    def score(self) -> float:
        longest = min(max(self.lengths), len(self.usual))
        starts = self._starts(1, validating=True)
        starts = starts[:: max(len(starts) // MAX_VALIDATED, 1)]
        available = self.stop[starts[:, 0]] - 1 - starts[:, 1]
        errors = torch.zeros(longest)
        baseline = torch.zeros(longest)
        for (shot, newest), length in zip(starts, np.minimum(available, longest), strict=True):
            past, true, present = self._window(np.array([[shot, newest]]), int(length))
            predicted = self.network.rollout(self.network.begin(past), int(length))
            errors[:length] += (self._distance(predicted, true) * present)[0]
            baseline[:length] += (self._distance(past[:, -1:], true) * present)[0]
        ratios = errors[baseline > 0] / baseline[baseline > 0]
        return float(ratios.mean()) if len(ratios) else 1.0

    def predictor(self, record: PredictorRecord) -> Predictor:
        record = record.model_copy(update={"network": self.arguments})
        return PointsPredictor(record, self.network, self.code)


# ---------------------------------------------------------------- labels


class LabelTask(Task):
    """Segmentation: rollouts of label maps, scored by the fraction of wrong pixels."""

    def __init__(
        self,
        settings: PredictSettings,
        model: ModelRecord,
        stores: list[ClipStore],
        spans: list[Span],
    ) -> None:
        own = settings.labels
        self.own, self.spans = own, spans
        self.lengths, self.steps = own.lengths, own.steps
        self.rate, self.weight_decay = own.rate, own.weight_decay
        self.size = _map_size(model, own.size)
        self.classes = tuple(model.signals[0].spec["classes"])
        labels, counts = [], np.zeros(256, np.int64)
        for span in spans:
            maps = np.concatenate(
                [
                    cast(LabelTrack, span.store.track("segmentation", a, min(a + PIECE, span.stop)))
                    .scaled(self.size[1], self.size[0])
                    .labels
                    for a in range(span.start, span.stop, PIECE)
                ]
            )
            counts += np.bincount(maps[: span.target - span.start].ravel(), minlength=256)
            labels.append(maps)
        self.channels = tuple(int(i) for i in np.flatnonzero(counts) if i != VOID)
        table = np.full(256, len(self.channels), np.uint8)
        table[list(self.channels)] = np.arange(len(self.channels))
        self.maps = [torch.from_numpy(table[maps]) for maps in labels]
        self.has_flow = all("flow" in store.signals for store in stores)
        share = counts[list(self.channels)] / max(counts[list(self.channels)].sum(), 1)
        balanced = share**-own.balance
        balanced /= (balanced * share).sum()
        self.device = _device(settings.device)
        # Pixels without a class do not count in the loss.
        self.weights = torch.tensor([*balanced, 0.0], dtype=torch.float32, device=self.device)
        self.arguments = {
            "channels": len(self.channels) + 1, "width": own.width, "embedding": own.embedding,
        }  # fmt: skip
        self.network: LabelPredictor = LabelPredictor(**self.arguments).to(self.device)

    def _starts(self, length: int, *, validating: bool = False) -> NDArray[np.int64]:
        """[N, 2] shot and newest known frame, counted within the shot."""
        rows = [np.empty((0, 2), np.int64)]
        for shot, span in enumerate(self.spans):
            target = span.target - span.start
            stop = span.stop - span.start if validating else target
            low = max(PAST_MAPS - 1, target - 1) if validating else PAST_MAPS - 1
            newest = np.arange(low, stop - length)
            rows.append(np.stack([np.full_like(newest, shot), newest], axis=1))
        return np.concatenate(rows)

    def _window(self, shot: int, newest: int, length: int) -> Tensor:
        """[3 + L, H, W] channel of each pixel in a window."""
        return self.maps[shot][newest + 1 - PAST_MAPS : newest + 1 + length]

    def _flow(self, shot: int, newest: int, length: int) -> Tensor:
        """[L, 3, H, W] stored flow and occlusion of the predicted frames."""
        span = self.spans[shot]
        start = span.start + newest + 1
        track = cast(FlowTrack, span.store.track("flow", start, start + length))
        return track.tensor(*self.size)

    def loss(self, random: np.random.Generator, length: int) -> Tensor:
        starts = self._starts(length)
        while not len(starts):  # no shot is that long
            length -= 1
            starts = self._starts(length)
        chosen = starts[random.integers(len(starts), size=self.own.batch)]
        windows = torch.stack([self._window(a, b, length) for a, b in chosen]).to(self.device)
        reference = None
        if self.has_flow and self.own.flow:
            flows = [self._flow(a, b, length) for a, b in chosen]
            reference = torch.stack(flows).to(self.device)
        state = LabelState(one_hot(windows[:, :PAST_MAPS], self.network.channels))
        total = torch.zeros((), device=self.device)
        for ahead in range(length):
            output, state = self.network(state)
            true = windows[:, PAST_MAPS + ahead].long()
            total = total + F.nll_loss(torch.log(output.following + 1e-3), true, self.weights)
            total = total + self.own.occlusion * output.occlusion.mean()
            if reference is not None:
                target, hidden = reference[:, ahead, :2], reference[:, ahead, 2:]
                off = (output.flow - target).abs().sum(dim=1, keepdim=True) * (1 - hidden)
                total = total + self.own.flow * off.mean()
        return total / length

    def score(self) -> float:
        starts = self._starts(1, validating=True)
        starts = starts[:: max(len(starts) // 6, 1)]
        longest = 10
        wrong, baseline = np.zeros(longest), np.zeros(longest)
        for shot, newest in starts:
            length = min(longest, len(self.maps[shot]) - 1 - newest)
            window = self._window(shot, newest, length).to(self.device)
            state = LabelState(one_hot(window[None, :PAST_MAPS], self.network.channels))
            last = window[PAST_MAPS - 1]
            for ahead in range(length):
                output, state = self.network(state)
                true = window[PAST_MAPS + ahead]
                counted = true < len(self.channels)
                guess = output.following[0].argmax(dim=0)
                wrong[ahead] += float(((guess != true) & counted).float().mean())
                baseline[ahead] += float(((last != true) & counted).float().mean())
        ratios = wrong[baseline > 0] / baseline[baseline > 0]
        return float(ratios.mean()) if len(ratios) else 1.0

    def predictor(self, record: PredictorRecord) -> Predictor:
        update = {
            "network": self.arguments, "classes": self.classes, "channels": self.channels,
            "size": self.size,
        }  # fmt: skip
        return LabelsPredictor(record.model_copy(update=update), self.network)


def _map_size(model: ModelRecord, shorter: int) -> tuple[int, int]:
    """(height, width) of the network's maps, with the aspect ratio of the model's frames."""
    factor = min(shorter / min(model.height, model.width), 1.0)
    multiple = LabelPredictor.multiple
    height, width = (
        max(round(side * factor / multiple), 1) * multiple for side in (model.height, model.width)
    )
    return height, width


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
