"""Sharpness of whole frames."""

from __future__ import annotations

import numpy as np

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric


def _sharpness(pair: ChunkPair) -> Values:
    where = None if pair.real.region is None else pair.real.counted
    return np.asarray(measures.sharpness(pair.output.new, pair.real.new, where), np.float64)


METRICS = (
    Metric(
        "sharpness", "sharpness", "one",
        "RMS gradient relative to the real frame's: below 1 is blurred, above 1 noisy",
        FrameStatistic(_sharpness), family="picture",
    ),
)  # fmt: skip
