"""tOF, the difference between the optical flows of output and real video."""

from __future__ import annotations

from v2v.evaluation import measures
from v2v.evaluation.measures import Motion, Values
from v2v.evaluation.metrics._base import ChunkPair, FrameChunk, FrameStatistic, Metric

PIXELS = 16  # minimum side of frames for the optical flow


def motion(chunk: FrameChunk) -> Motion:
    """The optical flow of a chunk, for `FrameChunk.cached`."""
    return measures.motion(chunk.frames)


def _tof(pair: ChunkPair) -> Values:
    ours, real = pair.output.cached(motion), pair.real.cached(motion)
    return pair.between(measures.flow_difference(ours, real))


METRICS = (
    Metric(
        "tof", "tOF", "lower", "difference between the flows of output and real video; for a"
        " frozen video it equals the real motion",
        FrameStatistic(_tof, pixels=PIXELS, temporal=True), family="motion", unit="px",
    ),
)  # fmt: skip
