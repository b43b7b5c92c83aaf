"""Mean change from frame to frame."""

from __future__ import annotations

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric


def _frame_difference(pair: ChunkPair) -> Values:
    return pair.between(measures.frame_difference(pair.output.frames))


METRICS = (
    Metric(
        "frame_difference", "frame difference", "real",
        "mean change from frame to frame: 0 is frozen; it should equal the real video's",
        FrameStatistic(_frame_difference, temporal=True), factor=1000, unit="× 1000", digits=2,
    ),
)  # fmt: skip
