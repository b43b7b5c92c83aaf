"""Measure videos against the real one, side by side, in pieces: memory does not grow with them."""

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
    Picture,
)

CHUNK = VIDEO_CLIP  # frames measured together: one clip of a video network
TRUTH = ""  # the real video's own course: what it has of the measures that need no other
OWN = ("warping_error", "frame_difference")

FrameScores = dict[str, Values]  # measure -> [T]


@dataclass(frozen=True)
class Video:
    """A video to measure, and what detectors found on it."""

    pictures: Iterator[Picture]
    found: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # detector -> [T, ...]


@dataclass(frozen=True)
class Tools:
    """Networks to measure with; what is not here cannot be measured."""

    distance: Distance | None = None  # LPIPS
    features: Mapping[str, Callable[[Tensor], NDArray[np.float64]]] = field(default_factory=dict)
    person: int | None = None  # which of the labels that detectors find is a person's
    region: NDArray[np.bool_] | None = None  # [H, W] what is measured; None: all

    def can_read(self, name: str, detectors: Collection[str], height: int, width: int) -> bool:
        """Whether a reading can be taken of frames of this size, on which these have looked."""

        def there(need: str) -> bool:
            number, _, unit = need.partition(" ")
            if unit == "pixels":
                return min(height, width) >= int(number)
            if need == "person":
                return self.person is not None
            return self.distance is not None if need == "lpips" else need in detectors

        return all(there(need) for need in FRAME_STATISTICS[name].needs)


@dataclass
class FeatureStatistics:
    """The features of a video's frames, by set measure."""

    sets: dict[str, Gaussian] = field(default_factory=dict)

    def add(self, features: Mapping[str, NDArray[np.float64]]) -> None:
        for name, values in features.items():
            self.sets.setdefault(name, Gaussian()).add(values)


class _Pieces:
    """A video that is read piece by piece."""

    def __init__(self, video: Video, tools: Tools) -> None:
        self.video = video
        self.tools = tools
        self.done = 0
        self.last: Picture | None = None

    def next(self, steady: NDArray[np.bool_]) -> FrameChunk | None:
        """The next frames, as many as `steady` at most; None where there are none."""
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
    """Every measure that the tools allow, of every output, frame by frame.

    Args:
        real: `count` frames.
        outputs: videos of the same moments; one may end earlier, none may be longer or empty.
        cuts: frames before which a new shot begins: nothing is measured across.
        sets: where features are gathered for the set measures, of the real video and of each
            output, from the first `sets_until` frames.
        advance: is told how many frames have been done.

    Returns:
        The course of every output, and under `TRUTH` the real video's own.
    """
    videos = {name: _Pieces(video, tools) for name, video in outputs.items()}
    truth = _Pieces(real, tools)
    statistics: dict[str, dict[str, list[Values]]] = {name: {} for name in (TRUTH, *videos)}
    steady = np.ones(count, np.bool_)
    steady[[0, *(cut for cut in cuts if 0 <= cut < count)]] = False
    for first in range(0, count, CHUNK):
        expected = steady[first : first + CHUNK]
        seen = truth.next(expected)
        assert seen is not None and len(seen.new) == len(expected), "the real video is short"
        if sets and first < (count if sets_until is None else sets_until):
            sets[0].add(_features(tools, seen))
        for key, values in _read(ChunkPair(seen, seen), tools, OWN).items():
            statistics[TRUTH].setdefault(key, []).append(values)
        for name, video in videos.items():
            chunk = video.next(expected)
            if chunk is None:
                continue
            seen_by = _same_length(seen, chunk)
            pair = ChunkPair(_within_region(chunk, seen_by), seen_by)
            for key, values in _read(pair, tools).items():
                statistics[name].setdefault(key, []).append(values)
            if sets and first < (count if sets_until is None else sets_until):
                sets[1][name].add(_features(tools, pair.output))
        advance(len(expected))
    return {name: _frame_scores(found) for name, found in statistics.items()}


def _same_length(seen: FrameChunk, chunk: FrameChunk) -> FrameChunk:
    """As much of the real frames as an output that ends has."""
    count = len(chunk.pictures)
    if len(seen.pictures) == count:
        return seen
    found = {name: values[: len(chunk.new)] for name, values in seen.found.items()}
    return replace(seen, pictures=seen.pictures[:count], steady=chunk.steady, found=found)


def _within_region(chunk: FrameChunk, seen: FrameChunk) -> FrameChunk:
    """An output that is the real video wherever nothing is to be measured."""
    if chunk.region is None:
        return chunk
    region = chunk.region[..., None]
    pictures = [
        np.where(region, ours, real)
        for ours, real in zip(chunk.pictures, seen.pictures, strict=True)
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
            found[name] = np.full(len(pair.real.new), np.nan)  # a first frame has no neighbour
        else:
            found[name] = statistic.take(pair)
    return found


def _features(tools: Tools, chunk: FrameChunk) -> dict[str, NDArray[np.float64]]:
    return {name: take(chunk.new) for name, take in tools.features.items()}


def _frame_scores(statistics: Mapping[str, list[Values]]) -> FrameScores:
    whole = {name: np.concatenate(parts) for name, parts in statistics.items()}
    return {m.name: m.values(whole[m.source]) for m in MEASURES if m.source in whole}
