"""Multi-scale structural similarity."""

from __future__ import annotations

import numpy as np

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric


def _ms_ssim(pair: ChunkPair) -> Values:
    return np.asarray(measures.ms_ssim(pair.output.new, pair.real.new), np.float64)


METRICS = (
    Metric(
        "ms_ssim", "MS-SSIM", "higher", "structure at five scales",
        FrameStatistic(_ms_ssim, pixels=161), family="picture",
    ),
)  # fmt: skip
