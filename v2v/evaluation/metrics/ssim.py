"""Structural similarity."""

from __future__ import annotations

import numpy as np

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric


def _ssim(pair: ChunkPair) -> Values:
    return np.asarray(measures.ssim(pair.output.new, pair.real.new), np.float64)


METRICS = (
    Metric(
        "ssim", "SSIM", "higher", "structure in windows of 11 pixels",
        FrameStatistic(_ssim, pixels=12), family="picture",
    ),
)  # fmt: skip
