"""What a metric is: its definition, the statistic it is made of, and the frames it reads.

A metric gives one value per frame: a value between two frames belongs to the later one, and is NaN
if there is no previous frame or a cut lies between. Curve, mean, confidence interval and drift are
derived from these values (`v2v.evaluation.statistics`).

Some values depend on the whole video (a median torso, a correlation), but frames are not kept. A
metric therefore consists of two functions: a frame statistic, which reduces a chunk of frames to a
few numbers per frame, and a function from the statistics of the whole video to the values. Metrics
of one detector share a frame statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.evaluation.measures import Values
from v2v.images import Picture
from v2v.pixels import planes

Better = Literal["higher", "lower", "one", "real"]  # real: the real video's own value is best
Family = Literal["picture", "motion", "subject"]  # groups of equal weight in the ranking
T = TypeVar("T")


# ---------------------------------------------------------------- frames


@dataclass
class FrameChunk:
    """Consecutive frames of one video with their detections.

    Includes the frame before the first new one, if there is one.
    """

    pictures: list[Picture]
    before: bool  # whether pictures[0] is the frame before the first new one
    steady: NDArray[np.bool_]  # [T] false for new frames after a cut and for the first frame
    detections: dict[str, NDArray[Any]] = field(default_factory=dict)  # detector -> [T, ...]
    networks: Mapping[str, Any] = field(default_factory=dict)  # by `Network.name`
    person: int | None = None  # label id of the person class
    region: NDArray[np.bool_] | None = None  # [H, W] the measured region; None: all pixels
    _cached: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def frames(self) -> Tensor:
        """[T (+ 1), 3, H, W] in [-1, 1]."""
        return torch.from_numpy(planes(np.stack(self.pictures)))

    @property
    def new(self) -> Tensor:
        """[T, 3, H, W] without the frame before the first new one."""
        return self.frames[1:] if self.before else self.frames

    @property
    def counted(self) -> Tensor:
        """[T, H, W] bool, the measured pixels."""
        new = self.new
        if self.region is None:
            return torch.ones(len(new), *new.shape[-2:], dtype=torch.bool)
        return torch.from_numpy(self.region).expand(len(new), -1, -1)

    def cached(self, function: Callable[[FrameChunk], T]) -> T:
        """`function(self)`, computed once: several metrics and methods share the real frames."""
        if function not in self._cached:
            self._cached[function] = function(self)
        found: T = self._cached[function]
        return found

    def between(self, values: Tensor | Values) -> Values:
        """[T] values between neighbouring frames, assigned to the later one."""
        array = np.asarray(values, np.float64)
        whole = array if self.before else np.concatenate([[np.nan], array])
        return np.where(self.steady, whole, np.nan)


@dataclass(frozen=True)
class ChunkPair:
    """The same frames of an output and of the real video."""

    output: FrameChunk
    real: FrameChunk

    def between(self, values: Tensor | Values) -> Values:
        return self.output.between(values)


# ---------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Network:
    """A pretrained network; metrics that name the same one share it."""

    name: str
    open: Callable[[str], Any]  # from a device; raises `EnvironmentProblem` if unavailable


@dataclass(frozen=True)
class FrameStatistic:
    """A few numbers per frame, [T] or [T, k], from chunks of output and real frames."""

    take: Callable[[ChunkPair], Values]
    pixels: int = 0  # minimum shorter side of the frames
    network: Network | None = None
    detections: tuple[str, ...] = ()  # of both videos: pose, face, labels
    person: bool = False  # whether `labels` must have a person class
    temporal: bool = False  # compares two frames, so it is undefined for a single one


@dataclass(frozen=True)
class VideoStatistic:
    """[T] one number per frame, from lossless video files; for measures by other programs.

    It measures whole frames only, so it is unavailable if a region is given.
    """

    take: Callable[[Path, Path, Path], Values]  # output, real video, folder for temporary files
    check: Callable[[], object] = lambda: None  # raises `EnvironmentProblem` if unavailable


@dataclass(frozen=True)
class FeatureDistance:
    """The Fréchet distance between the features of two videos: one number, no curve."""

    network: Network  # from frames [T, 3, H, W] in [-1, 1], 16 or fewer, to features [n, d]
    enough: int  # minimum number of samples for an unbiased value
    samples: str  # noun for the samples


def _unchanged(statistics: Values) -> Values:
    return statistics


@dataclass(frozen=True)
class Metric:
    """One metric of `v2v evaluate`, a row of its report."""

    name: str  # in report.json
    title: str
    better: Better
    about: str  # what it detects and what it misses, in a sentence
    statistic: FrameStatistic | VideoStatistic | FeatureDistance
    values: Callable[[Values], Values] = _unchanged  # from the statistic of a whole video to [T]
    family: Family | None = None  # None: not ranked
    unit: str = ""
    digits: int = 3
    factor: float = 1.0  # display factor

    def format(self, value: float | None) -> str:
        if value is None or np.isnan(value):
            return "–"
        return format(value * self.factor, f".{self.digits}f")
