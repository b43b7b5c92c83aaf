"""tLP, the difference between the perceptual distances from frame to frame."""

from __future__ import annotations

from torch import Tensor

from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameChunk, FrameStatistic, Metric
from v2v.evaluation.metrics.lpips import LPIPS


def _steps(chunk: FrameChunk) -> Tensor:
    """[T] perceptual distance of each frame to the previous one."""
    distance: Tensor = chunk.networks[LPIPS.name](chunk.frames[1:], chunk.frames[:-1])
    return distance


def _tlp(pair: ChunkPair) -> Values:
    return pair.between((pair.output.cached(_steps) - pair.real.cached(_steps)).abs())


METRICS = (
    Metric(
        "tlp", "tLP", "lower",
        "difference between the perceptual distances from frame to frame; detects freezing",
        FrameStatistic(_tlp, network=LPIPS, temporal=True),
        family="motion", factor=1000, unit="× 1000", digits=2,
    ),
)  # fmt: skip
