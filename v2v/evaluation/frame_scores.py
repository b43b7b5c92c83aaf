"""Measure videos against the real one in chunks: memory does not grow with their length."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2v.evaluation.measures import Values
from v2v.evaluation.metrics import (
    ChunkPair,
    FeatureDistance,
    FrameChunk,
    FrameStatistic,
    Metric,
    all_metrics,
)
from v2v.evaluation.networks import VIDEO_CLIP, Gaussian
from v2v.images import Picture

CHUNK = VIDEO_CLIP  # frames per chunk: one clip of the video network
TRUTH = ""  # key of the real video's own scores

FrameScores = dict[str, Values]  # metric -> [T]
Statistics = dict[FrameStatistic, list[Values]]  # of the chunks so far


@dataclass(frozen=True)
class Video:
    """A video to measure, with its detections."""

    pictures: Iterator[Picture]
    found: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # detector -> [T, ...]


@dataclass(frozen=True)
class Tools:
    """What metrics need besides frames and detections; metrics that lack something are skipped."""

    networks: Mapping[str, Any] = field(default_factory=dict)  # by `Network.name`
    person: int | None = None  # label id of the person class; None: not detected
    region: NDArray[np.bool_] | None = None  # [H, W] the measured region; None: all pixels

    def lacking(
        self, statistic: FrameStatistic, detections: Collection[str], height: int, width: int
    ) -> str | None:
        """The first thing that a statistic needs and that is missing; None: nothing is.

        "pixels" (the frames are too small), the name of a network or detector, or "person".
        """
        if min(height, width) < statistic.pixels:
            return "pixels"
        if statistic.network is not None and statistic.network.name not in self.networks:
            return statistic.network.name
        for name in statistic.detections:
            if name not in detections:
                return name
        return "person" if statistic.person and self.person is None else None


@dataclass
class FeatureStatistics:
    """Feature statistics of a video, by metric."""

    sets: dict[str, Gaussian] = field(default_factory=dict)

    def add(self, features: Mapping[str, NDArray[np.float64]]) -> None:
        for name, values in features.items():
            self.sets.setdefault(name, Gaussian()).add(values)


class _ChunkReader:
    """Reads a video chunk by chunk."""

    def __init__(self, video: Video, tools: Tools) -> None:
        self.video = video
        self.tools = tools
        self.done = 0
        self.last: Picture | None = None

    def next(self, steady: NDArray[np.bool_]) -> FrameChunk | None:
        """The next chunk of at most `len(steady)` frames; None at the end of the video."""
        new = list(islice(self.video.pictures, len(steady)))
        if not new:
            return None
        before = [] if self.last is None else [self.last]
        first, self.done, self.last = self.done, self.done + len(new), new[-1]
        found = {k: np.asarray(v[first : self.done]) for k, v in self.video.found.items()}
        return FrameChunk(
            [*before, *new], bool(before), steady[: len(new)], found, self.tools.networks,
            self.tools.person, self.tools.region,
        )  # fmt: skip


def measure(
    real: Video,
    outputs: Mapping[str, Video],
    *,
    count: int,
    tools: Tools,
    cuts: Sequence[int] = (),
    sets: tuple[FeatureStatistics, Mapping[str, FeatureStatistics]] | None = None,
    sets_until: int | None = None,
    advance: Callable[[int], None] = lambda frames: None,
) -> dict[str, FrameScores]:
    """Compute the per-frame values of every output by all available metrics.

    Args:
        real: the real video of `count` frames.
        outputs: videos of the same frames; they may be shorter, but not longer or empty.
        cuts: first frames of new shots; temporal metrics do not cross them.
        sets: feature statistics of the real video and of each output, which are updated from
            the first `sets_until` frames for feature distances.
        advance: called with the number of frames processed.

    Returns:
        The per-frame scores of every output, and under `TRUTH` those of the real video itself by
        the metrics whose best value is the real video's own.
    """
    videos = {name: _ChunkReader(video, tools) for name, video in outputs.items()}
    truth = _ChunkReader(real, tools)
    statistics: dict[str, Statistics] = {name: {} for name in (TRUTH, *videos)}
    every = list(all_metrics().values())
    own = [metric for metric in every if metric.better == "real"]
    steady = np.ones(count, np.bool_)
    steady[[0, *(cut for cut in cuts if 0 <= cut < count)]] = False
    for first in range(0, count, CHUNK):
        expected = steady[first : first + CHUNK]
        reference = truth.next(expected)
        assert reference is not None and len(reference.new) == len(expected), (
            "the real video is shorter than `count`"
        )
        if sets and first < (count if sets_until is None else sets_until):
            sets[0].add(_features(tools, reference))
        for key, values in _read(ChunkPair(reference, reference), tools, own).items():
            statistics[TRUTH].setdefault(key, []).append(values)
        for name, video in videos.items():
            chunk = video.next(expected)
            if chunk is None:
                continue
            matching = _same_length(reference, chunk)
            pair = ChunkPair(_within_region(chunk, matching), matching)
            for key, values in _read(pair, tools, every).items():
                statistics[name].setdefault(key, []).append(values)
            if sets and first < (count if sets_until is None else sets_until):
                sets[1][name].add(_features(tools, pair.output))
        advance(len(expected))
    return {
        name: _frame_scores(found, own if name == TRUTH else every)
        for name, found in statistics.items()
    }


def _same_length(reference: FrameChunk, chunk: FrameChunk) -> FrameChunk:
    """Truncate the real frames to the length of an output that ends early."""
    count = len(chunk.pictures)
    if len(reference.pictures) == count:
        return reference
    found = {name: values[: len(chunk.new)] for name, values in reference.detections.items()}
    return replace(
        reference, pictures=reference.pictures[:count], steady=chunk.steady, detections=found
    )


def _within_region(chunk: FrameChunk, reference: FrameChunk) -> FrameChunk:
    """Replace an output by the real video outside the measured region."""
    if chunk.region is None:
        return chunk
    region = chunk.region[..., None]
    pictures = [
        np.where(region, ours, real)
        for ours, real in zip(chunk.pictures, reference.pictures, strict=True)
    ]
    return replace(chunk, pictures=pictures)


def _read(pair: ChunkPair, tools: Tools, metrics: Iterable[Metric]) -> dict[FrameStatistic, Values]:
    height, width = pair.real.frames.shape[-2:]
    found: dict[FrameStatistic, Values] = {}
    for metric in metrics:
        statistic = metric.statistic
        if not isinstance(statistic, FrameStatistic) or statistic in found:
            continue
        if tools.lacking(statistic, pair.real.detections, height, width) is not None:
            continue
        count = len(pair.real.new)
        if statistic.temporal and len(pair.real.frames) < 2:
            found[statistic] = np.full(count, np.nan)  # the first frame has no predecessor
            continue
        values = statistic.take(pair)
        if len(values) != count:
            raise ValueError(f"{metric.name}: {len(values)} values for {count} frames")
        found[statistic] = values
    return found


def _features(tools: Tools, chunk: FrameChunk) -> dict[str, NDArray[np.float64]]:
    return {
        metric.name: tools.networks[metric.statistic.network.name](chunk.new)
        for metric in all_metrics().values()
        if isinstance(metric.statistic, FeatureDistance)
        and metric.statistic.network.name in tools.networks
    }


def _frame_scores(statistics: Statistics, metrics: Iterable[Metric]) -> FrameScores:
    whole = {key: np.concatenate(parts) for key, parts in statistics.items()}
    return {
        metric.name: metric.values(whole[metric.statistic])
        for metric in metrics
        if isinstance(metric.statistic, FrameStatistic) and metric.statistic in whole
    }
