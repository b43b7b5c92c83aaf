"""Point tracks over time: bridging gaps, smoothing without lag, measuring jitter.

Arrays are [T, N, D]; a missing point is NaN. All work stays within a shot.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]


def bridge_gaps(points: Points, longest: int) -> tuple[Points, NDArray[np.bool_]]:
    """Fill gaps of at most `longest` frames linearly; longer ones and both ends stay missing.

    Args:
        points: [T, N, D] of one shot; a point is missing where its first value is NaN.

    Returns:
        The points, and [T, N] true where one was filled.
    """
    filled_points = points.copy()
    filled = np.zeros(points.shape[:2], np.bool_)
    missing = np.isnan(points[..., 0])
    for n in np.flatnonzero(missing.any(axis=0) & ~missing.all(axis=0)):
        known = np.flatnonzero(~missing[:, n])
        for before, after in zip(known, known[1:], strict=False):
            gap = after - before - 1
            if 0 < gap <= longest:
                share = (np.arange(1, gap + 1) / (gap + 1))[:, None]
                filled_points[before + 1 : after, n] = (
                    points[before, n] * (1 - share) + points[after, n] * share
                )
                filled[before + 1 : after, n] = True
    return filled_points, filled


BLOCK = 1024  # frames worked on at a time, so that memory does not grow with the clip
MARGIN = 256  # frames seen on both sides of a block; what is farther away changes nothing


def blocks(shots: list[tuple[int, int]]) -> Iterator[tuple[slice, slice, slice]]:
    """Stretches of shots: what to read, what of that to keep, and where it belongs.

    Gaps are shorter than the margin, and the slowest filter has forgotten what lies beyond it.
    """
    for first, end in shots:
        for start in range(first, end, BLOCK):
            stop = min(start + BLOCK, end)
            low, high = max(start - MARGIN, first), min(stop + MARGIN, end)
            yield slice(low, high), slice(start - low, stop - low), slice(start, stop)


def smooth(
    points: Points, rate: float, unit: NDArray[np.float32], *, min_cutoff: float, beta: float
) -> Points:
    """The one-euro filter (Casiez et al. 2012) run both ways and averaged, so without lag.

    A still point is low-passed at `min_cutoff`; a moving one passes more the faster it moves.
    Forward the filter trails the motion, backward it leads by as much: the mean does neither, and
    steady motion comes out unchanged. The speed is taken over `SPAN` frames to both sides, which
    the filter for live use cannot know: so it rises before a sudden move, not after it.

    Args:
        points: [T, N, D] pixels of one shot; NaN restarts the filter.
        rate: frames per second.
        unit: [T] or scalar, pixels of one body (or face) length, so that scale does not matter.
        min_cutoff: Hz.
        beta: Hz per body length a second.
    """
    per_second = np.broadcast_to(rate / np.asarray(unit, np.float32), len(points))
    cutoff = min_cutoff + beta * _speed(points) * per_second[:, None]
    weight = np.asarray(1 / (1 + rate / (2 * np.pi * cutoff)), np.float32)[..., None]
    forward = _low_pass(points, weight)
    backward = _low_pass(points[::-1], weight[::-1])[::-1]
    return (forward + backward) / 2


SPAN = 2  # frames; wide enough that trembling cancels, short enough for a blink


def _speed(points: Points) -> NDArray[np.float32]:
    """[T, N] pixels a frame, between the farthest known frames within `SPAN` of each."""
    speed = np.zeros(points.shape[:2], np.float32)
    for before, after in ((1, 0), (0, 1), (1, 1), (1, 2), (2, 1), (SPAN, SPAN)):
        span = before + after
        if span >= len(points):
            continue
        moved = np.linalg.norm(points[span:] - points[:-span], axis=-1) / span
        place = slice(before, len(points) - after)
        speed[place] = np.where(np.isfinite(moved), moved, speed[place])
    return speed


def _low_pass(points: Points, weight: NDArray[np.float32]) -> Points:
    """Each frame moves from the one before by its share `weight` [T, N, 1] of the way."""
    out = points.copy()
    for t in range(1, len(points)):
        step = weight[t] * (points[t] - out[t - 1])
        out[t] = np.where(np.isfinite(out[t - 1]), out[t - 1] + step, points[t])
    return out


def jitter(points: Points) -> float:
    """RMS of the second difference in pixels: what trembles, not what moves steadily."""
    if len(points) < 3:
        return 0.0
    second = np.diff(points, n=2, axis=0)
    known = np.isfinite(second).all(axis=-1)
    return float(np.sqrt((second[known] ** 2).sum(axis=-1).mean())) if known.any() else 0.0


def quietest_window(points: Points, length: int) -> tuple[int, int]:
    """The stretch of `length` frames in which the points move least, first frame and end."""
    step = np.linalg.norm(np.diff(points, axis=0), axis=-1)
    known = np.isfinite(step)
    steps = np.where(known, step, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    steps[~known.any(axis=1)] = np.inf
    length = min(length, len(points))
    if length < 4:
        return 0, len(points)
    moved = np.convolve(steps, np.ones(length - 1), mode="valid")
    start = int(np.argmin(moved))
    return start, start + length


RARELY = 5  # frames out of sight after which only every so many frames is searched


class SingleTargetTracker:
    """Decides whether a detection is the one followed so far, by place and size.

    Detectors know no identity: when two people cross or one leaves the picture they jump. A
    person moves less than `max_jump` of their own size between frames, and more only after
    having been out of sight.
    """

    def __init__(self, max_jump: float, patience: int) -> None:
        self.max_jump = max_jump
        self.patience = patience  # frames out of sight after which anyone may be followed
        self.centre: NDArray[np.float32] | None = None
        self.size = 0.0
        self.unseen = 0

    def accepts(self, centre: NDArray[np.float32], size: float) -> bool:
        """Whether this is the one; if so, it is remembered, otherwise counted as unseen."""
        if self.centre is not None and self.unseen < self.patience:
            away = float(np.linalg.norm(centre - self.centre))
            slack = 1 + 0.25 * self.unseen
            grown = max(size, self.size) / max(min(size, self.size), 1e-3)
            if away > self.max_jump * max(size, self.size) * slack or grown > 1.6 * slack:
                return False
        self.follow(centre, size)
        return True

    def follow(self, centre: NDArray[np.float32], size: float) -> None:
        """Follow this one from now on, whoever it was before."""
        self.centre, self.size, self.unseen = centre, size, 0

    def missed(self) -> None:
        self.unseen += 1

    @property
    def searches(self) -> bool:
        """Whether this frame is worth a whole search: a slow one each would be where nobody is."""
        return self.unseen <= RARELY or self.unseen % RARELY == 0

    @property
    def lost(self) -> bool:
        return self.centre is None or self.unseen >= self.patience

    @property
    def state(self) -> NDArray[np.float32]:
        """[5] known, centre x, y, size, frames unseen: all that is needed to go on."""
        known = self.centre is not None
        x, y = self.centre if self.centre is not None else (0, 0)
        return np.array([known, x, y, self.size, self.unseen], np.float32)

    def restore(self, state: NDArray[np.float32] | None) -> None:
        """Go on from a `state`; None knows nobody."""
        known = state is not None and state[0] > 0
        self.centre = state[1:3].copy() if state is not None and known else None
        self.size = float(state[3]) if state is not None else 0.0
        self.unseen = int(state[4]) if state is not None else 0
