"""Training of the label predictor."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from v2v.checkpoint import ModelRecord
from v2v.data.store import ClipStore
from v2v.prediction.model import PAST_MAPS, LabelPredictor, LabelState, one_hot
from v2v.prediction.predictor import LabelsPredictor, Predictor, PredictorRecord
from v2v.prediction.settings import PredictSettings
from v2v.prediction.spans import PIECE, Span
from v2v.prediction.task import Task, training_device
from v2v.signals.flow import FlowTrack
from v2v.signals.segmentation import VOID, LabelTrack


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
        self.device = training_device(settings.device)
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
