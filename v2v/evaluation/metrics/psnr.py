"""PSNR of whole frames."""

from __future__ import annotations

import numpy as np

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric

HIGHEST = 100.0  # dB, of identical frames, to keep the mean finite


def _psnr(pair: ChunkPair) -> Values:
    if pair.real.region is None:
        found = measures.psnr(pair.output.new, pair.real.new)
    else:
        found = measures.psnr_within(pair.output.new, pair.real.new, pair.real.counted)
    return np.minimum(np.asarray(found, np.float64), HIGHEST)


METRICS = (
    Metric(
        "psnr", "PSNR", "higher", "pixel error; identical frames count as 100",
        FrameStatistic(_psnr), family="picture", unit="dB", digits=2,
    ),
)  # fmt: skip
