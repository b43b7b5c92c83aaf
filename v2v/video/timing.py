"""Checks and repairs the packet timestamps that determine when each frame is shown.

Timestamps are wrong in some files: one repeats its neighbour's, a recorder's clock jumps or
restarts, a damaged byte causes a pause of years. A wrong timestamp is repaired on its own and
never invalidates the others. All times are whole ticks of a stream's time base.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Ticks = NDArray[np.int64]

STANDARD_RATES = tuple(
    Fraction(n, d)
    for n, d in (
        (5, 1), (6, 1), (8, 1), (10, 1), (12, 1), (12500, 1000), (15, 1), (16, 1), (20, 1),
        (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1),
        (60000, 1001), (60, 1), (100, 1), (120, 1), (240, 1),
    )
)  # fmt: skip
SLOWEST, FASTEST = Fraction(1, 10), Fraction(1000)  # plausible frames per second
ASSUMED_RATE = Fraction(25)  # for files without a plausible rate
SLIDE_RATE = Fraction(1)  # for footage whose frames are shown for more than 10 seconds

# Longest plausible pause without audio, in seconds. Screen recorders write no frames while nothing
# changes. Transport streams do not pause: a gap means that their clock was reset (compare ffmpeg's
# `dts_delta_threshold`).
LONGEST_PAUSE = 600.0
LONGEST_PAUSE_OF_STREAMS = 3.0
SHORT_RUN = 3  # packets: up to this many between two jumps are wrong themselves, not the clock


@dataclass(frozen=True)
class Packets:
    """The timestamps of a stream's packets in file order, in ticks; None if missing.

    Attributes:
        pts: presentation time.
        dts: decoding time; never decreases if the clock is valid.
        shown: False for frames that an edit list hides.
        sound: [M] start times of the audio packets in seconds, on the same clock.
    """

    pts: list[int | None]
    dts: list[int | None]
    shown: list[bool]
    sound: NDArray[np.float64]


@dataclass(frozen=True)
class Timeline:
    """The repaired presentation times of a stream.

    Attributes:
        pts: [frames] ticks at which frames are shown, strictly increasing.
        time_base: seconds per tick.
        known: whether decoded frames carry these times; otherwise they are counted.
        stamps: [packets] the repaired time of each packet in file order, set on the packet before
            decoding; None if the file's own times are correct.
        jumps: seconds by which the clock jumped forwards (backwards if negative), in order.
        notes: repairs, for the user.
    """

    pts: Ticks
    time_base: Fraction
    known: bool
    stamps: Ticks | None = None
    jumps: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def timeline(packets: Packets, time_base: Fraction, average: Fraction, *, stream: bool) -> Timeline:
    """Return the times of all shown frames, with implausible ones repaired.

    Args:
        average: frames per second in the container's header, for files without usable times.
        stream: whether the format joins segments whose clocks may differ (e.g. MPEG-TS).
    """
    shown = np.asarray(packets.shown, dtype=bool)
    count = max(int(shown.sum()), 1)
    counted = Timeline(np.arange(count, dtype=np.int64), 1 / average, known=False)
    untimed = np.array([time is None for time in packets.pts], dtype=bool)
    if not shown.any() or (untimed & shown).any():
        return counted
    pts = np.array([0 if time is None else time for time in packets.pts], dtype=np.int64)
    times = pts[shown]
    clock, reordered = times, True
    if all(time is not None for time in packets.dts):
        clock, reordered = np.array(packets.dts, dtype=np.int64)[shown], False
    # np.abs would overflow for the smallest integer.
    both = np.concatenate([times, clock])
    if both.min() < -(2**61) or both.max() > 2**61:
        return counted
    limit = LONGEST_PAUSE_OF_STREAMS if stream else LONGEST_PAUSE
    interval = _interval(clock)
    breaks = _breaks(clock, float(time_base), limit, packets.sound, reordered)
    # Frames are shown shortly after decoding, with about the same delay.
    delay = times - clock
    strays = np.abs(delay - np.median(delay)) > max(1 / float(time_base), 32 * interval)
    distinct = len(np.unique(times)) == len(times)
    # Presentation order is decoding order.
    in_order = not reordered and bool((delay == delay[0]).all())
    if in_order:
        distinct = bool((np.diff(times) > 0).all())
    if not len(breaks) and distinct and not strays.any():
        return Timeline(np.sort(times), time_base, known=True)

    wrong, starts = _isolated_errors(clock, breaks, limit / float(time_base))
    wrong |= strays
    repaired, jumps, segments = times.copy(), [], np.zeros(len(times), dtype=np.int64)
    for start in starts:
        before = start - 1
        while before > 0 and wrong[before]:
            before -= 1
        skipped = int(clock[start] - clock[before]) - interval
        repaired[start:] -= skipped
        segments[start:] += 1
        jumps.append(skipped * float(time_base))
    # Order by segment, then by the frames' own times.
    order = np.lexsort((np.arange(len(times)), np.where(wrong, clock, repaired), segments))
    if in_order:
        order = np.arange(len(times))
    elif wrong.any():  # a wrong time is useless for sorting: use the file order
        order = _with_strays(order, wrong)
    kept = _longest_increasing(repaired[order], ~wrong[order])
    if kept.sum() < len(times) / 2:
        note = "contradictory timestamps: frames are counted at the file's own rate"
        return Timeline(counted.pts, counted.time_base, known=False, notes=(note,))
    filled, tick_factor = _interpolated(repaired[order], kept, interval)
    stamps = np.full(len(pts), filled[0] - 1)  # hidden frames stay before the first one
    stamps[np.flatnonzero(shown)[order]] = filled
    notes = []
    if jumps:
        longest = max(jumps, key=abs)
        extent = (
            f"jumps by {_seconds(longest)}"
            if len(jumps) == 1
            else (f"jumps {len(jumps)} times, by up to {_seconds(longest)}")
        )
        notes.append(f"its clock {extent}: the gap is removed")
    bad = int((~kept).sum())
    if bad:
        noun = (
            "1 frame has an implausible timestamp: it was"
            if bad == 1
            else (f"{bad} frames have implausible timestamps: they were")
        )
        notes.append(f"{noun} interpolated between the neighbours")
    return Timeline(
        filled - filled[0], time_base / tick_factor, known=True, stamps=stamps - filled[0],
        jumps=tuple(jumps), notes=tuple(notes),
    )  # fmt: skip


def _seconds(value: float) -> str:
    return f"{value:+.3g} s" if abs(value) < 1e6 else f"{value:+.1e} s"


def _interval(clock: Ticks) -> int:
    """Return the median interval between packets in ticks."""
    steps = np.diff(clock)
    steps = np.sort(steps[steps > 0])
    return int(steps[(len(steps) - 1) // 2]) if len(steps) else 1


def _breaks(
    clock: Ticks, tick: float, limit: float, sound: NDArray[np.float64], reordered: bool
) -> Ticks:
    """Return the indices of packets at which the clock jumps back, or ahead without a pause."""
    steps = np.diff(clock) * tick
    usual = _interval(clock) * tick
    if usual > limit:  # slides: long steps are normal
        return np.zeros(0, dtype=np.int64)
    # If only `pts` are known, reordered frames step back by a few frames.
    back = steps < -(max(1.0, 16 * usual) if reordered else 2 * usual)
    ahead = steps > limit
    for index in np.flatnonzero(ahead):
        start, end = clock[index] * tick, clock[index + 1] * tick
        between = np.sort(sound[(sound > start) & (sound < end)])
        gaps = np.diff(np.concatenate([[start], between, [end]]))
        ahead[index] = gaps.max() > limit  # otherwise audio continues, so the pause is real
    return np.flatnonzero(back | ahead) + 1


def _isolated_errors(
    clock: Ticks, breaks: Ticks, limit: float
) -> tuple[NDArray[np.bool_], list[int]]:
    """Separate isolated wrong timestamps from clock jumps: (wrong [packets], jump indices)."""
    wrong = np.zeros(len(clock), dtype=bool)
    remaining: list[int] = []

    def continues(before: int, after: int) -> bool:
        return bool(0 < clock[after] - clock[before] <= limit)

    for start in (int(b) for b in breaks):
        if wrong[start - 1]:
            continue  # the return from wrong timestamps
        for run in range(1, SHORT_RUN + 1):
            if start + run >= len(clock) or continues(start - 1, start + run):
                wrong[start : start + run] = True
                break
            if start - run >= 1 and continues(start - run - 1, start):
                wrong[start - run : start] = True
                break
        else:
            remaining.append(start)
    return wrong, remaining


def _with_strays(order: Ticks, wrong: NDArray[np.bool_]) -> Ticks:
    """Return `order` with each wrong packet directly after its predecessor in the file."""
    valid = [i for i in order if not wrong[i]]
    positions = {packet: position for position, packet in enumerate(valid)}
    keys = []
    for packet in range(len(wrong)):
        before = packet
        while before > 0 and wrong[before]:
            before -= 1
        keys.append((positions.get(before, -1), int(wrong[packet]), packet))
    return np.array([packet for *_, packet in sorted(keys)], dtype=np.int64)


def _longest_increasing(times: Ticks, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask [N] of the longest strictly increasing subsequence of allowed times.

    Among several, the earliest is chosen: the times after a valid one are more often wrong.
    """
    from bisect import bisect_left

    tails: list[int] = []  # from the end: the smallest negated first time per length
    ends: list[int] = []  # and its index
    following = np.full(len(times), -1, dtype=np.int64)
    for position in np.flatnonzero(allowed)[::-1]:
        time = -int(times[position])
        length = bisect_left(tails, time)
        if length == len(tails):
            tails.append(time)
            ends.append(int(position))
        else:
            tails[length], ends[length] = time, int(position)
        following[position] = ends[length - 1] if length else -1
    kept = np.zeros(len(times), dtype=bool)
    position = ends[-1] if ends else -1
    while position >= 0:
        kept[position] = True
        position = int(following[position])
    return kept


def _interpolated(times: Ticks, kept: NDArray[np.bool_], interval: int) -> tuple[Ticks, int]:
    """Interpolate all times that are not `kept` between their kept neighbours.

    Returns the times and the factor by which ticks were subdivided to keep all times distinct.
    """
    positions = np.flatnonzero(kept)
    room = np.diff(times[positions]) // np.diff(positions)  # ticks per frame between two kept ones
    factor = 1 if not len(room) or room.min() > 0 else 2 * int(np.diff(positions).max())
    known, step = times[positions] * factor, max(interval, 1) * factor
    filled = np.empty(len(times), dtype=np.int64)
    filled[positions] = known
    for position, following in zip(positions, positions[1:], strict=False):
        span = int(filled[following] - filled[position])
        for k in range(1, following - position):
            filled[position + k] = filled[position] + span * k // int(following - position)
    first, last = int(positions[0]), int(positions[-1])
    filled[:first] = filled[first] - step * np.arange(first, 0, -1)
    filled[last + 1 :] = filled[last] + step * np.arange(1, len(times) - last)
    return filled, factor


# ---------------------------------------------------------------- rates


def rate_of(pts: Ticks, time_base: Fraction, average: Fraction) -> tuple[Fraction, bool]:
    """Return the rate and whether it varies; of a varying rate, the nearest standard one.

    A rate is constant if every frame lies within half a frame of the regular grid.
    """
    if len(pts) < 3:
        return average, False
    times = (pts - pts[0]) * float(time_base)
    measured = (len(pts) - 1) / times[-1]
    exact = Fraction(measured).limit_denominator(1001)
    drifts = {
        rate: float(np.abs(times * float(rate) - np.arange(len(pts))).max())
        for rate in (average, standard_rate(measured), exact)
    }
    fitting = [rate for rate, drift in drifts.items() if drift < 0.5]
    if fitting:
        # A slightly wrong header rate drifts from the frames; uneven times deviate at any rate.
        rounding = float(time_base * fitting[0]) + 0.01
        off = drifts[fitting[0]] > 4 * max(drifts[exact], rounding)
        return (exact if off else fitting[0]), False
    # The median interval ignores the long pauses of screen recordings. The mean around it undoes
    # the rounding of millisecond clocks.
    steps = np.sort(np.diff(times))
    typical = steps[(len(steps) - 1) // 2]
    common = steps[np.abs(steps - typical) <= max(typical / 4, float(time_base))]
    return standard_rate(1 / float(common.mean())), True


def believable(rate: Fraction | None) -> bool:
    return rate is not None and SLOWEST <= rate <= FASTEST


def standard_rate(rate: float) -> Fraction:
    """Return the standard rate within 1% of a measured one, else the rate as a fraction."""
    nearest = min(STANDARD_RATES, key=lambda r: abs(float(r) / rate - 1))
    if abs(float(nearest) / rate - 1) < 0.01:
        return nearest
    return Fraction(rate).limit_denominator(1001)


class ContinuousClock:
    """Removes the video's clock jumps from the times of an audio track."""

    def __init__(self, jumps: tuple[float, ...]) -> None:
        self.jumps = list(jumps)
        self.skipped = 0.0
        self.last: float | None = None

    def __call__(self, seconds: float) -> float:
        """Return the time on a continuous clock, in seconds."""
        if self.jumps and self.last is not None:
            jump, step = self.jumps[0], seconds - self.last
            if abs(step - jump) < 0.5 + abs(jump) / 10:
                self.skipped += self.jumps.pop(0)
        self.last = seconds
        return seconds - self.skipped
