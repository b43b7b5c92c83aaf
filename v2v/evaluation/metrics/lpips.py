"""LPIPS, a learned perceptual distance."""

from __future__ import annotations

import numpy as np

from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric, Network
from v2v.evaluation.networks import Lpips

LPIPS = Network("lpips", Lpips)


def _lpips(pair: ChunkPair) -> Values:
    distance = pair.real.networks[LPIPS.name]
    return np.asarray(distance(pair.output.new, pair.real.new), np.float64)


METRICS = (
    Metric(
        "lpips", "LPIPS", "lower", "perceptual distance in AlexNet's features (torchmetrics)",
        FrameStatistic(_lpips, network=LPIPS), family="picture",
    ),
)  # fmt: skip
