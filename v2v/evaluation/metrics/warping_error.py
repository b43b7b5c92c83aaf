"""Warping error along the real video's optical flow."""

from __future__ import annotations

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric
from v2v.evaluation.metrics.tof import PIXELS, motion


def _warping_error(pair: ChunkPair) -> Values:
    return pair.between(measures.warping_error(pair.output.frames, pair.real.cached(motion)))


METRICS = (
    Metric(
        "warping_error", "warping error", "real", "difference to the previous frame, warped by the"
        " real flow; blurred and frozen videos score low, so it is not ranked: compare it with the"
        " real video's value and tOF",
        FrameStatistic(_warping_error, pixels=PIXELS, temporal=True), factor=1000, unit="× 1000",
    ),
)  # fmt: skip
