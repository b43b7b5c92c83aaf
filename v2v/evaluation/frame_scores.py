"""Measure videos against the real one in chunks: memory does not grow with their length."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from v2v.evaluation.measures import Values
from v2v.evaluation.networks import VIDEO_CLIP, Gaussian
from v2v.evaluation.registry import (
    FRAME_STATISTICS,
    MEASURES,
    ChunkPair,
    Distance,
    FrameChunk,
)
from v2v.images import Picture

CHUNK = VIDEO_CLIP  # frames per chunk: one clip of the video network
TRUTH = ""  # key of the real video's own scores in the measures that need no reference
OWN = ("warping_error", "frame_difference")  # the measures that need no reference

FrameScores = dict[str, Values]  # measure -> [T]


@dataclass(frozen=True)
class Video:
    """A video to measure, with its detections."""

    pictures: Iterator[Picture]
    found: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # detector -> [T, ...]


@dataclass(frozen=True)
class Tools:
    """Networks for measuring; measures whose network is missing are skipped."""

    distance: Distance | None = None  # LPIPS
    features: Mapping[str, Callable[[Tensor], NDArray[np.float64]]] = field(default_factory=dict)
    person: int | None = None  # label id of the person class; None: not detected
    region: NDArray[np.bool_] | None = None  # [H, W] the measured region; None: all pixels

    def can_read(self, name: str, detectors: Collection[str], height: int, width: int) -> bool:
        """Whether a frame statistic is available for this frame size and these detectors."""

        def available(need: str) -> bool:
            number, _, unit = need.partition(" ")
            if unit == "pixels":
                return min(height, width) >= int(number)
            if need == "person":
                return self.person is not None
            return self.distance is not None if need == "lpips" else need in detectors

        return all(available(need) for need in FRAME_STATISTICS[name].needs)


@dataclass
class FeatureStatistics:
    """Feature statistics of a video, by set measure."""

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
            [*before, *new], bool(before), steady[: len(new)], self.tools.distance, found,
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
    """Compute all available per-frame measures of every output.

    Args:
        real: the real video of `count` frames.
        outputs: videos of the same frames; they may be shorter, but not longer or empty.
        cuts: first frames of new shots; temporal measures do not cross them.
        sets: feature statistics of the real video and of each output, which are updated from
            the first `sets_until` frames for the set measures.
        advance: called with the number of frames processed.

    Returns:
        The per-frame scores of every output, and of the real video itself under `TRUTH`.
    """
    videos = {name: _ChunkReader(video, tools) for name, video in outputs.items()}
    truth = _ChunkReader(real, tools)
    statistics: dict[str, dict[str, list[Values]]] = {name: {} for name in (TRUTH, *videos)}
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
        for key, values in _read(ChunkPair(reference, reference), tools, OWN).items():
            statistics[TRUTH].setdefault(key, []).append(values)
        for name, video in videos.items():
            chunk = video.next(expected)
            if chunk is None:
                continue
            matching = _same_length(reference, chunk)
            pair = ChunkPair(_within_region(chunk, matching), matching)
            for key, values in _read(pair, tools).items():
                statistics[name].setdefault(key, []).append(values)
            if sets and first < (count if sets_until is None else sets_until):
                sets[1][name].add(_features(tools, pair.output))
        advance(len(expected))
    return {name: _frame_scores(found) for name, found in statistics.items()}


def _same_length(reference: FrameChunk, chunk: FrameChunk) -> FrameChunk:
    """Truncate the real frames to the length of an output that ends early."""
    count = len(chunk.pictures)
    if len(reference.pictures) == count:
        return reference
    found = {name: values[: len(chunk.new)] for name, values in reference.found.items()}
    return replace(reference, pictures=reference.pictures[:count], steady=chunk.steady, found=found)


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


def _read(
    pair: ChunkPair, tools: Tools, only: Sequence[str] = tuple(FRAME_STATISTICS)
) -> dict[str, Values]:
    height, width = pair.real.frames.shape[-2:]
    found = {}
    for name in only:
        statistic = FRAME_STATISTICS[name]
        if not tools.can_read(name, pair.real.found, height, width):
            continue
        if statistic.temporal and len(pair.real.frames) < 2:
            found[name] = np.full(len(pair.real.new), np.nan)  # the first frame has no predecessor
        else:
            found[name] = statistic.take(pair)
    return found


def _features(tools: Tools, chunk: FrameChunk) -> dict[str, NDArray[np.float64]]:
    return {name: take(chunk.new) for name, take in tools.features.items()}


def _frame_scores(statistics: Mapping[str, list[Values]]) -> FrameScores:
    whole = {name: np.concatenate(parts) for name, parts in statistics.items()}
    return {m.name: m.values(whole[m.source]) for m in MEASURES if m.source in whole}
