"""Frame prediction (arXiv 1808.06601, section 4, "future video prediction").

Two steps, as in the paper: the next signals are predicted from the past ones, then rendered,
starting from the last real frames.

>>> predict = FramePrediction.from_pretrained("runs/street")
>>> frames = predict("clip.mp4", frames=30)
>>> frames.save("next.mp4")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from v2v.data.store import ClipStore, file_record, frames_to_tensor
from v2v.data.transforms import Placement
from v2v.errors import TooFewFrames, UsageError
from v2v.evaluation.measures import psnr
from v2v.pipelines.model import Appearance, LoadedModel
from v2v.pipelines.rendering.frames import ConditioningSource, Picture, row
from v2v.pipelines.rendering.rendering import Rendering
from v2v.pipelines.source import Source, check_finite, open_source
from v2v.prediction.measures import constant_velocity, copy_last, track_error
from v2v.prediction.predictor import WEIGHTS_FILE, Predictor, load_predictor
from v2v.progress import Reporter, Silent, with_progress
from v2v.signals import Track
from v2v.types import PAST, GeneratorState

PAST_SECONDS = 4.0  # maximum length of the predictor's input
MIN_PAST = 3  # minimum frames of the predictor's input
MAX_FRAMES = 3000  # frames to predict
RATE_TOLERANCE = 1.05  # ratio of frame rates above which a note is printed


@dataclass(frozen=True)
class FramePrediction:
    """Continues a clip, using a model of its scene and the predictor trained for that model."""

    trained: LoadedModel
    predictor: Predictor
    predictor_sha256: str

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str = "auto") -> FramePrediction:
        """Raises `CheckpointInvalid`, with a hint on training if the predictor is missing."""
        trained = LoadedModel.open(path, device=device)
        names = [use.name for use in trained.model.record.signals]
        if len(names) > 1:
            raise UsageError(
                f"{trained.name} renders from {' and '.join(names)}, but only one signal can be"
                " predicted",
                hint=f"train one with: v2v train --data STORE -s data.signals=[{names[0]}]",
            )
        run = trained.folder.parent if trained.folder.name == "model" else trained.folder
        predictor = load_predictor(run)
        return cls(trained, predictor, file_record(run / "predictor" / WEIGHTS_FILE).sha256)

    @property
    def signal(self) -> str:
        return self.trained.model.record.signals[0].name

    @with_progress
    def __call__(
        self,
        clip: str | Path | ClipStore,
        *,
        frames: int = 30,
        at: float | None = None,
        hold_back: bool = False,
        look: str | None = None,
        report: Reporter | None = None,
    ) -> Prediction:
        """Predict the frames that follow `clip`, or its part before `at`.

        Args:
            clip: footage of the scene that the model was trained on, or a clip store of it.
            frames: number of frames to predict.
            at: time in seconds from which to predict; by default the end.
            hold_back: predict the last `frames` of the clip instead, as held-out frames.
            look: training clip that sets the appearance.

        Raises `UsageError` for an invalid `frames` or `at`, `TooFewFrames`.
        """
        if not 1 <= frames <= MAX_FRAMES:
            raise UsageError(f"--frames {frames} is out of range", hint=f"give 1 to {MAX_FRAMES}")
        report = report or Silent()
        check_finite("--at", at)
        number = self.trained.clip_number(look)
        shown = self.trained.appearance(number)
        source = open_source(clip, [self.signal], report=report)
        rate = float(source.rate)
        now = len(source) - (frames if hold_back else 0) if at is None else round(at * rate)
        if not 0 < now <= len(source):
            raise UsageError(
                f"{source.name} has {len(source)} frames: cannot hold out {frames} of them"
                if at is None
                else f"--at {at:g} is outside {source.name}",
                hint=f"give --at in seconds, above 0 and up to {len(source) / rate:.2f}, or fewer"
                " --frames",
            )
        shot = max(cut for cut, _ in source.store.shots if cut < now)
        first = max(shot, now - max(round(PAST_SECONDS * rate), MIN_PAST))
        if now - first < MIN_PAST:
            raise TooFewFrames(
                f"only {now - first} frames precede {now / rate:.2f} s of {source.name} (counted"
                f" from the last cut), but {MIN_PAST} are needed",
                hint="predict from a later time with --at, or give longer footage",
            )
        past = source.store.track(self.signal, first, now)
        report.start("predict", 1)
        predicted = self.predictor.extend(past, frames)
        report.finish("predict")
        placement = self._placement(source, number)
        use = self.trained.model.record.clips[number]
        notes = []
        if not 1 / RATE_TOLERANCE < rate / float(Fraction(use.fps)) < RATE_TOLERANCE:
            notes.append(
                f"{source.name} has {rate:.4g} fps, but the training footage had"
                f" {float(Fraction(use.fps)):.4g}: the motion will be too fast or too slow"
            )
        true = min(len(source) - now, frames)
        conditioning = ConditioningSource(
            pipeline="frame prediction", count=frames, rate=source.rate,
            tracks=lambda a, b: [placement.track(predicted[a:b])],
            settings={
                "at": now, "look": number, "predictor": self.predictor_sha256,
                "signal": source.store.record.signals[self.signal].model_dump(mode="json"),
            },
            source=source.name, source_sha256=source.sha256,
            pictures=_continuation(source, now, placement) if true else None,
            before=lambda: self._before(source, now, placement, shown), notes=tuple(notes),
            behind=self._behind(source, now, number),
        )  # fmt: skip
        return Prediction(
            self.trained, conditioning, shown, source=source, now=now, placement=placement,
            past=past, predicted=predicted,
        )  # fmt: skip

    def _behind(
        self, source: Source, now: int, clip: int
    ) -> Callable[[int, int], NDArray[np.uint8]] | None:
        """The background of the last real frame, held still; None: the camera never moved."""
        backgrounds = self.trained.model.backgrounds.get(clip)
        if backgrounds is None or self.trained.remembered_frames(clip, source.store) is None:
            return None
        last = backgrounds.of(now - 1)
        return lambda first, stop: np.repeat(last[None], stop - first, axis=0)

    def _placement(self, source: Source, clip: int) -> Placement:
        use = self.trained.model.record.clips[clip]
        if source.size == (use.height, use.width):
            return self.trained.placement(clip)
        return Placement.plain(source.size, self.trained.size)

    def _before(
        self, source: Source, now: int, placement: Placement, look: Appearance
    ) -> GeneratorState:
        """The state after the last real frames."""
        start = max(now - PAST, 0)
        tracks = [placement.track(source.store.track(self.signal, start, now))]
        conditions = self.trained.conditions(tracks, look).to(self.trained.device)
        state: GeneratorState | None = None
        for i, frame in enumerate(source.store.frames(start, now)):
            condition = conditions.map(row(i))
            picture = frames_to_tensor(placement.picture(frame)[None], *self.trained.size)
            state = state or GeneratorState.empty(condition)
            state = state.push(condition, picture.to(self.trained.device))
        assert state is not None
        return state


def _continuation(
    source: Source, now: int, placement: Placement
) -> Callable[[int], Iterator[Picture]]:
    """The ground-truth frames at the model's size; black after the end of the clip."""
    height, width = placement.size

    def pictures(first: int) -> Iterator[Picture]:
        start = now + first
        if start < len(source):
            for frame in source.pictures(start):
                yield placement.picture(frame)
        while True:
            yield np.zeros((height, width, 3), np.uint8)

    return pictures


class Prediction(Rendering):
    """Predicted frames, with their errors where ground-truth frames exist."""

    def __init__(
        self,
        trained: LoadedModel,
        conditioning: ConditioningSource,
        look: Appearance,
        *,
        source: Source,
        now: int,
        placement: Placement,
        past: Track,
        predicted: Track,
    ) -> None:
        super().__init__(trained, conditioning, look)
        self.source, self.now, self.placement = source, now, placement
        self.past, self.predicted = past, predicted

    @property
    def known(self) -> int:
        """Number of frames with ground truth."""
        return min(len(self.source) - self.now, len(self))

    def errors(self) -> dict[str, NDArray[np.float32]]:
        """Errors per frame, [known] each, and those of baselines without learning.

        "signal, ..." is `track_error` (lower is better); "psnr, ..." is that of the frames in dB
        (higher is better). Renders the frames again, one at a time.
        """
        count = self.known
        name = self.trained.model.record.signals[0].name
        true = self.source.store.track(name, self.now, self.now + count)
        predictions = {
            "predicted": self.predicted[:count],
            "copy last": copy_last(self.past, count),
            "constant velocity": constant_velocity(self.past, count),
        }
        found = {f"signal, {kind}": track_error(p, true) for kind, p in predictions.items()}
        last = self.placement.picture(self.source.store.frames(self.now - 1, self.now)[0])
        real = map(self.placement.picture, self.source.pictures(self.now))
        pairs = [(_psnr(own, r), _psnr(last, r)) for own, r in zip(self, real, strict=False)]
        predicted, copied = zip(*pairs, strict=True)
        return found | {
            "psnr, predicted": np.array(predicted, np.float32),
            "psnr, copy last": np.array(copied, np.float32),
        }


def _psnr(picture: Picture, real: Picture) -> float:
    both = (frames_to_tensor(p[None], *p.shape[:2]) for p in (picture, real))
    return float(psnr(*both))
