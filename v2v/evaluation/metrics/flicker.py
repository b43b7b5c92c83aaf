"""Flicker, the change of the error from frame to frame."""

from __future__ import annotations

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric


def _flicker(pair: ChunkPair) -> Values:
    return pair.between(measures.flicker(pair.output.frames, pair.real.frames))


METRICS = (
    Metric(
        "flicker", "flicker", "lower", "change of the error from frame to frame; for a frozen"
        " video it equals the real one's frame difference",
        FrameStatistic(_flicker, temporal=True),
        family="motion", factor=1000, unit="× 1000", digits=2,
    ),
)  # fmt: skip
