"""Training of the point predictor."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.checkpoint import ModelRecord
from v2v.data.store import ClipStore
from v2v.errors import SignalMissing
from v2v.prediction.model import PointPredictor, ShapePCA
from v2v.prediction.predictor import (
    ANCHORS,
    LEAST,
    PointsPredictor,
    Predictor,
    PredictorRecord,
    normalised,
)
from v2v.prediction.settings import PredictSettings
from v2v.prediction.spans import MAX_VALIDATED, Span
from v2v.prediction.task import Task
from v2v.signals.face import FaceTrack
from v2v.signals.pose import PoseTrack


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
