"""Plans how footage becomes a clip: which source frame is shown when, and its crop and size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from v2v.errors import UsageError
from v2v.video.probe import Probe
from v2v.video.timing import FASTEST, SLOWEST

MOST_FRAMES = 1 << 22  # per clip: 39 hours at 30 frames per second


@dataclass(frozen=True)
class FramePlan:
    """Maps each frame of the constant-rate clip to a source frame.

    `sources[k]` is the ordinal (in presentation order) of the source frame shown at
    `start + k / rate` seconds. Ordinals never decrease; they repeat where the footage pauses.
    """

    rate: Fraction
    start: float
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sources)


def plan_frames(
    probe: Probe,
    *,
    fps: Fraction | None = None,
    start: float | None = None,
    end: float | None = None,
) -> FramePlan:
    """Resample the footage's frames to a constant rate.

    At the footage's own constant rate, every frame is kept exactly once. If the rate varies or
    changes, each frame moves to the nearest position and is repeated until the next one, as in
    ffmpeg's `fps` filter.

    Args:
        fps: frames per second of the clip; by default the footage's own.
        start, end: the range to keep, in seconds from the first frame, end excluded.
    """
    rate = probe.rate if fps is None else fps
    if fps is not None and not SLOWEST <= fps <= FASTEST:
        raise UsageError(
            f"--fps {float(fps):g} is out of range", hint="give 0.1 to 1000 frames per second"
        )
    if probe.images:
        # Images have no rate of their own: use this one, without dropping or repeating any.
        probe = replace(probe, rate=rate, time_base=1 / rate)
    begin = 0.0 if start is None else start
    stop = probe.duration if end is None else min(end, probe.duration)
    if begin < 0 or (end is not None and end <= begin):
        raise UsageError(
            f"the range from {begin:g} s to {stop:g} s is empty",
            hint="--start must be at least 0 and --end greater than --start (seconds)",
        )
    if begin >= probe.duration:
        raise UsageError(
            f"--start {begin:g} is beyond the end of {probe.path} ({probe.duration:.2f} s)",
            hint=f"give a --start below {probe.duration:.2f}",
        )
    times = probe.times
    kept = np.flatnonzero((times >= begin - 1e-6) & (times < stop - 1e-6))
    if not len(kept):
        raise UsageError(
            f"{probe.path} has no frame between {begin:g} s and {stop:g} s",
            hint="widen the range of --start and --end",
        )
    if not probe.variable_rate and rate == probe.rate:
        return FramePlan(rate, float(times[kept[0]]), kept)
    # Integer arithmetic: at half-multiple rates, frames lie exactly between two positions.
    positions_per_tick = probe.time_base * rate
    ticks, denominator = (probe.pts[kept] - probe.pts[kept[0]]), positions_per_tick.denominator
    positions = (2 * positions_per_tick.numerator * ticks + denominator) // (2 * denominator)
    count = max(int(np.floor((stop - times[kept[0]]) * float(rate) + 0.5)), 1)
    if count > MOST_FRAMES:
        raise UsageError(
            f"{probe.path} would have {count:,} frames: {stop - times[kept[0]]:,.0f} s at"
            f" {float(rate):g} frames per second",
            hint=f"the limit is {MOST_FRAMES:,}: give a range with --start and --end, or a lower"
            " --fps",
        )
    newest = np.searchsorted(positions, np.arange(count), side="right") - 1
    return FramePlan(rate, float(times[kept[0]]), kept[np.maximum(newest, 0)])


@dataclass(frozen=True)
class Geometry:
    """Crop box and size that map an upright source frame to the stored frame.

    `box` is x, y, width, height in upright source pixels; `width` and `height` are the size of the
    stored frame. Imported label maps use the same box and size.
    """

    box: tuple[int, int, int, int]
    width: int
    height: int

    @property
    def scale(self) -> tuple[float, float]:
        return self.width / self.box[2], self.height / self.box[3]


def plan_geometry(
    probe: Probe,
    *,
    size: int | tuple[int, int] | None = None,
    box: tuple[int, int, int, int] | None = None,
) -> Geometry:
    """Choose the crop and the stored size; both are even, as required by 4:2:0 video.

    Args:
        size: None keeps the size; a number is the shorter side; (width, height) is exact: the
            frame is scaled to cover it and centre-cropped.
        box: x, y, width, height in upright source pixels; None is the whole frame.

    Raises `UsageError` for a size that is odd or out of range, and if fewer than 16x16 source
    pixels would remain.
    """
    x, y, w, h = box or (0, 0, probe.upright_width, probe.upright_height)
    if w < 16 or h < 16:
        raise UsageError(f"{probe.path} is too small: {w}x{h} pixels", hint="the minimum is 16x16")
    x, y, w, h = x - x % 2, y - y % 2, w - w % 2, h - h % 2
    if size is None:
        return Geometry((x, y, w, h), w, h)
    if isinstance(size, int):
        if not 16 <= size <= 8192:
            raise UsageError(f"--size {size} is out of range", hint="give 16 to 8192")
        factor = size / min(w, h)
        return Geometry((x, y, w, h), _even(w * factor), _even(h * factor))
    width, height = size
    if width % 2 or height % 2 or min(size) < 16 or max(size) > 8192:
        raise UsageError(
            f"--size {width}x{height} is invalid", hint="give even numbers from 16 to 8192"
        )
    cover = max(width / w, height / h)
    inner_w, inner_h = min(_even(width / cover), w), min(_even(height / cover), h)
    if inner_w < 16 or inner_h < 16:
        raise UsageError(
            f"--size {width}x{height} has another aspect ratio than {w}x{h}: only"
            f" {inner_w}x{inner_h} pixels would remain",
            hint="choose a size closer to that aspect ratio; the minimum is 16x16 pixels",
        )
    x += (w - inner_w) // 4 * 2
    y += (h - inner_h) // 4 * 2
    return Geometry((x, y, inner_w, inner_h), width, height)


def _even(value: float) -> int:
    return max(round(value / 2) * 2, 2)
