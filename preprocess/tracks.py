"""Point tracks: bridging gaps, smoothing without lag, measuring jitter.

Arrays are [T, N, D]; a missing point is NaN. Nothing is computed across shots.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]


def bridge_gaps(points: Points, longest: int) -> tuple[Points, NDArray[np.bool_]]:
    """Interpolate gaps of at most `longest` frames linearly; longer gaps and both ends remain.

    Args:
        points: [T, N, D] of one shot; a point is missing where its first value is NaN.

    Returns:
        The points, and [T, N] true where a point was filled.
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


BLOCK = 1024  # frames processed at a time, so that memory use does not grow with the clip
MARGIN = 256  # context frames on both sides of a block; frames farther away have no influence


def blocks(shots: list[tuple[int, int]]) -> Iterator[tuple[slice, slice, slice]]:
    """Split shots into blocks: frames to read, which of these to keep, and their place in the clip.

    The margin is longer than any bridged gap and than the memory of the slowest filter.
    """
    for first, end in shots:
        for start in range(first, end, BLOCK):
            stop = min(start + BLOCK, end)
            low, high = max(start - MARGIN, first), min(stop + MARGIN, end)
            yield slice(low, high), slice(start - low, stop - low), slice(start, stop)


def smooth(
    points: Points, rate: float, unit: NDArray[np.float32], *, min_cutoff: float, beta: float
) -> Points:
    """Run the one-euro filter (Casiez et al. 2012) forwards and backwards and average, without lag.

    The low-pass cutoff is `min_cutoff` for a still point and rises with its speed. The forward
    filter lags behind the motion and the backward filter leads by as much, so their mean does
    neither and keeps steady motion unchanged. Speed is measured over `SPAN` frames on both sides,
    so, unlike in the causal filter, it rises before a sudden movement.

    Args:
        points: [T, N, D] pixels of one shot; NaN restarts the filter.
        rate: frames per second.
        unit: [T] or scalar, body (or face) length in pixels, for scale invariance.
        min_cutoff: Hz.
        beta: Hz per body length per second.
    """
    per_second = np.broadcast_to(rate / np.asarray(unit, np.float32), len(points))
    cutoff = min_cutoff + beta * _speed(points) * per_second[:, None]
    weight = np.asarray(1 / (1 + rate / (2 * np.pi * cutoff)), np.float32)[..., None]
    forward = _low_pass(points, weight)
    backward = _low_pass(points[::-1], weight[::-1])[::-1]
    return (forward + backward) / 2


SPAN = 2  # frames; long enough to average out jitter, short enough for a blink


def _speed(points: Points) -> NDArray[np.float32]:
    """[T, N] pixels per frame, between the farthest known frames within `SPAN` of each."""
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
    """Exponential smoothing with the weight [T, N, 1] of each new value."""
    out = points.copy()
    for t in range(1, len(points)):
        step = weight[t] * (points[t] - out[t - 1])
        out[t] = np.where(np.isfinite(out[t - 1]), out[t - 1] + step, points[t])
    return out


def jitter(points: Points) -> float:
    """RMS of the second difference in pixels, which steady motion does not increase."""
    if len(points) < 3:
        return 0.0
    second = np.diff(points, n=2, axis=0)
    known = np.isfinite(second).all(axis=-1)
    return float(np.sqrt((second[known] ** 2).sum(axis=-1).mean())) if known.any() else 0.0


def quietest_window(points: Points, length: int) -> tuple[int, int]:
    """First frame and end of the window of `length` frames in which the points move least."""
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


RARELY = 5  # after this many missed frames, search only every RARELY-th frame


class SingleTargetTracker:
    """Decides by position and size whether a detection is the tracked person or face.

    Detectors do not know identities: they jump when two people cross or one leaves the frame. A
    target moves by at most `max_jump` of its own size per frame, and by more only after it was
    missed.
    """

    def __init__(self, max_jump: float, patience: int) -> None:
        self.max_jump = max_jump
        self.patience = patience  # missed frames after which any target is accepted
        self.centre: NDArray[np.float32] | None = None
        self.size = 0.0
        self.unseen = 0

    def accepts(self, centre: NDArray[np.float32], size: float) -> bool:
        """Whether this is the target; if so, its position and size are stored."""
        if self.centre is not None and self.unseen < self.patience:
            jump = float(np.linalg.norm(centre - self.centre))
            tolerance = 1 + 0.25 * self.unseen
            grown = max(size, self.size) / max(min(size, self.size), 1e-3)
            if jump > self.max_jump * max(size, self.size) * tolerance or grown > 1.6 * tolerance:
                return False
        self.follow(centre, size)
        return True

    def follow(self, centre: NDArray[np.float32], size: float) -> None:
        """Track this target from now on, whatever was tracked before."""
        self.centre, self.size, self.unseen = centre, size, 0

    def missed(self) -> None:
        self.unseen += 1

    @property
    def searches(self) -> bool:
        """Whether to run the slow full search: in every frame at first, later in few."""
        return self.unseen <= RARELY or self.unseen % RARELY == 0

    @property
    def lost(self) -> bool:
        return self.centre is None or self.unseen >= self.patience

    @property
    def state(self) -> NDArray[np.float32]:
        """[5] known, centre x, y, size, missed frames: the complete state."""
        known = self.centre is not None
        x, y = self.centre if self.centre is not None else (0, 0)
        return np.array([known, x, y, self.size, self.unseen], np.float32)

    def restore(self, state: NDArray[np.float32] | None) -> None:
        """Continue from a `state`; None starts without a target."""
        known = state is not None and state[0] > 0
        self.centre = state[1:3].copy() if state is not None and known else None
        self.size = float(state[3]) if state is not None else 0.0
        self.unseen = int(state[4]) if state is not None else 0
