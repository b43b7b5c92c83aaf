"""When each frame of a piece of footage is shown: packet timestamps, checked and repaired.

Timestamps are right in most files and wrong in some: one repeats its neighbour's, a recorder's
clock jumps or restarts, a damaged byte claims a pause of years. A bad timestamp is repaired by
itself and never condemns the others. All times are whole ticks of a stream's time base.
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
SLOWEST, FASTEST = Fraction(1, 10), Fraction(1000)  # frames a second that are believed
ASSUMED_RATE = Fraction(25)  # where a file has no believable rate
SLIDE_RATE = Fraction(1)  # of footage whose pictures stand for longer than 10 seconds

# A pause that sound does not bridge is believed up to these lengths, in seconds. Screen recorders
# write nothing while nothing changes. Transport streams do not pause: where they skip, their clock
# was set (ffmpeg's `dts_delta_threshold` serves the same end).
LONGEST_PAUSE = 600.0
LONGEST_PAUSE_OF_STREAMS = 3.0
SHORT_RUN = 3  # packets: so few between two jumps are wrong by themselves, the clock is right


@dataclass(frozen=True)
class Packets:
    """The timestamps of a stream's packets in the order of the file, in ticks; None: it has none.

    Attributes:
        pts: when a packet's frame is shown.
        dts: when it is decoded; never decreases where the clock is sound.
        shown: False for frames that an edit list hides.
        sound: [M] seconds at which packets of sound begin, on the same clock.
    """

    pts: list[int | None]
    dts: list[int | None]
    shown: list[bool]
    sound: NDArray[np.float64]


@dataclass(frozen=True)
class Timeline:
    """What is known of a stream's times.

    Attributes:
        pts: [frames] ticks at which frames are shown, strictly increasing.
        time_base: seconds a tick.
        known: whether decoded frames carry these times; otherwise they are counted.
        stamps: [packets] the repaired time of each packet in the order of the file, to be written
            onto it before decoding; None where the file's own are right.
        jumps: seconds by which the clock skipped ahead (or, negative, went back), in order.
        notes: what was repaired, for the user.
    """

    pts: Ticks
    time_base: Fraction
    known: bool
    stamps: Ticks | None = None
    jumps: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def timeline(packets: Packets, time_base: Fraction, average: Fraction, *, stream: bool) -> Timeline:
    """The times of all shown frames, repaired where they cannot be right.

    Args:
        average: frames a second by the container's header, for files without usable times.
        stream: whether the format is made of pieces whose clocks may differ (MPEG-TS and the like).
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
    # Not by np.abs: the least integer has no absolute value among integers.
    both = np.concatenate([times, clock])
    if both.min() < -(2**61) or both.max() > 2**61:
        return counted
    limit = LONGEST_PAUSE_OF_STREAMS if stream else LONGEST_PAUSE
    interval = _interval(clock)
    breaks = _breaks(clock, float(time_base), limit, packets.sound, reordered)
    # Frames are shown soon after they are decoded, all by about as much.
    delay = times - clock
    strays = np.abs(delay - np.median(delay)) > max(1 / float(time_base), 32 * interval)
    distinct = len(np.unique(times)) == len(times)
    in_order = not reordered and bool((delay == delay[0]).all())  # as shown, so decoded
    if in_order:
        distinct = bool((np.diff(times) > 0).all())
    if not len(breaks) and distinct and not strays.any():
        return Timeline(np.sort(times), time_base, known=True)

    wrong, starts = _lone(clock, breaks, limit / float(time_base))
    wrong |= strays
    repaired, jumps, pieces = times.copy(), [], np.zeros(len(times), dtype=np.int64)
    for start in starts:
        before = start - 1
        while before > 0 and wrong[before]:
            before -= 1
        skipped = int(clock[start] - clock[before]) - interval
        repaired[start:] -= skipped
        pieces[start:] += 1
        jumps.append(skipped * float(time_base))
    # What is shown later comes from a later piece; within a piece, by the frames' own times.
    order = np.lexsort((np.arange(len(times)), np.where(wrong, clock, repaired), pieces))
    if in_order:
        order = np.arange(len(times))
    elif wrong.any():  # a wrong time says nothing of its place: the order in the file does
        order = _with_strays(order, wrong)
    kept = _longest_increasing(repaired[order], ~wrong[order])
    if kept.sum() < len(times) / 2:
        note = "its timestamps contradict each other: frames are counted, at the file's own rate"
        return Timeline(counted.pts, counted.time_base, known=False, notes=(note,))
    straight, finer = _interpolated(repaired[order], kept, interval)
    stamps = np.full(len(pts), straight[0] - 1)  # before the first: hidden frames stay hidden
    stamps[np.flatnonzero(shown)[order]] = straight
    notes = []
    if jumps:
        longest = max(jumps, key=abs)
        what = (
            f"jumps by {_seconds(longest)}"
            if len(jumps) == 1
            else (f"jumps {len(jumps)} times, by up to {_seconds(longest)}")
        )
        notes.append(f"its clock {what}: the frames follow each other without the gap")
    bad = int((~kept).sum())
    if bad:
        noun = (
            "1 frame has a timestamp that cannot be right: it was"
            if bad == 1
            else (f"{bad} frames have timestamps that cannot be right: they were")
        )
        notes.append(f"{noun} put between the neighbours")
    return Timeline(
        straight - straight[0], time_base / finer, known=True, stamps=stamps - straight[0],
        jumps=tuple(jumps), notes=tuple(notes),
    )  # fmt: skip


def _seconds(value: float) -> str:
    return f"{value:+.3g} s" if abs(value) < 1e6 else f"{value:+.1e} s"


def _interval(clock: Ticks) -> int:
    """The usual step between packets, in ticks."""
    steps = np.diff(clock)
    steps = np.sort(steps[steps > 0])
    return int(steps[(len(steps) - 1) // 2]) if len(steps) else 1


def _breaks(
    clock: Ticks, tick: float, limit: float, sound: NDArray[np.float64], reordered: bool
) -> Ticks:
    """Indices of packets before which the clock was set: back, or ahead without a reason."""
    steps = np.diff(clock) * tick
    usual = _interval(clock) * tick
    if usual > limit:  # slides: such steps are the rule
        return np.zeros(0, dtype=np.int64)
    # Where only `pts` are known, frames that are shown out of order go back by a few frames.
    back = steps < -(max(1.0, 16 * usual) if reordered else 2 * usual)
    ahead = steps > limit
    for index in np.flatnonzero(ahead):
        start, end = clock[index] * tick, clock[index + 1] * tick
        heard = np.sort(sound[(sound > start) & (sound < end)])
        gaps = np.diff(np.concatenate([[start], heard, [end]]))
        ahead[index] = gaps.max() > limit  # else sound goes on through the pause: it is real
    return np.flatnonzero(back | ahead) + 1


def _lone(clock: Ticks, breaks: Ticks, limit: float) -> tuple[NDArray[np.bool_], list[int]]:
    """Tell a few packets that are off from a clock that was set: (wrong [packets], its breaks)."""
    wrong = np.zeros(len(clock), dtype=bool)
    remaining: list[int] = []

    def goes_on(before: int, after: int) -> bool:
        return bool(0 < clock[after] - clock[before] <= limit)

    for start in (int(b) for b in breaks):
        if wrong[start - 1]:
            continue  # back from the packets that are off
        for run in range(1, SHORT_RUN + 1):
            if start + run >= len(clock) or goes_on(start - 1, start + run):
                wrong[start : start + run] = True
                break
            if start - run >= 1 and goes_on(start - run - 1, start):
                wrong[start - run : start] = True
                break
        else:
            remaining.append(start)
    return wrong, remaining


def _with_strays(order: Ticks, wrong: NDArray[np.bool_]) -> Ticks:
    """`order` with each wrong packet right behind the one before it in the file."""
    placed = [i for i in order if not wrong[i]]
    where = {packet: place for place, packet in enumerate(placed)}
    keys = []
    for packet in range(len(wrong)):
        before = packet
        while before > 0 and wrong[before]:
            before -= 1
        keys.append((where.get(before, -1), int(wrong[packet]), packet))
    return np.array([packet for *_, packet in sorted(keys)], dtype=np.int64)


def _longest_increasing(times: Ticks, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[N] the members of the longest strictly increasing subsequence among those allowed.

    Of several, the one whose members come first: what follows a sound time is more often wrong.
    """
    from bisect import bisect_left

    tails: list[int] = []  # from the end: the least negated first time of each length
    ends: list[int] = []  # and its place
    following = np.full(len(times), -1, dtype=np.int64)
    for place in np.flatnonzero(allowed)[::-1]:
        time = -int(times[place])
        length = bisect_left(tails, time)
        if length == len(tails):
            tails.append(time)
            ends.append(int(place))
        else:
            tails[length], ends[length] = time, int(place)
        following[place] = ends[length - 1] if length else -1
    kept = np.zeros(len(times), dtype=bool)
    place = ends[-1] if ends else -1
    while place >= 0:
        kept[place] = True
        place = int(following[place])
    return kept


def _interpolated(times: Ticks, kept: NDArray[np.bool_], interval: int) -> tuple[Ticks, int]:
    """Times in which all but `kept` stand evenly between their kept neighbours, and the factor by
    which ticks had to be made finer so that no two are equal."""
    places = np.flatnonzero(kept)
    room = np.diff(times[places]) // np.diff(places)  # ticks for each frame between two kept ones
    finer = 1 if not len(room) or room.min() > 0 else 2 * int(np.diff(places).max())
    known, step = times[places] * finer, max(interval, 1) * finer
    straight = np.empty(len(times), dtype=np.int64)
    straight[places] = known
    for place, following in zip(places, places[1:], strict=False):
        span = int(straight[following] - straight[place])
        for k in range(1, following - place):
            straight[place + k] = straight[place] + span * k // int(following - place)
    first, last = int(places[0]), int(places[-1])
    straight[:first] = straight[first] - step * np.arange(first, 0, -1)
    straight[last + 1 :] = straight[last] + step * np.arange(1, len(times) - last)
    return straight, finer


# ---------------------------------------------------------------- rates


def rate_of(pts: Ticks, time_base: Fraction, average: Fraction) -> tuple[Fraction, bool]:
    """The constant rate of the footage, or the nearest standard one to a varying rate.

    A rate is constant when every frame lies within half a frame (and the container's own
    rounding) of its place on the regular grid.
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
        # A header that is a little off runs away from the frames; unevenness does so at any rate.
        rounding = float(time_base * fitting[0]) + 0.01
        off = drifts[fitting[0]] > 4 * max(drifts[exact], rounding)
        return (exact if off else fitting[0]), False
    # The shortest common interval keeps most moments; screen recordings have long pauses. The mean
    # around the median undoes the rounding of clocks that tick in milliseconds.
    steps = np.sort(np.diff(times))
    typical = steps[(len(steps) - 1) // 2]
    common = steps[np.abs(steps - typical) <= max(typical / 4, float(time_base))]
    return standard_rate(1 / float(common.mean())), True


def believable(rate: Fraction | None) -> bool:
    return rate is not None and SLOWEST <= rate <= FASTEST


def standard_rate(rate: float) -> Fraction:
    """The usual rate nearest to one that was measured, or the fraction that it is."""
    nearest = min(STANDARD_RATES, key=lambda r: abs(float(r) / rate - 1))
    if abs(float(nearest) / rate - 1) < 0.01:
        return nearest
    return Fraction(rate).limit_denominator(1001)


class ContinuousClock:
    """Takes the same jumps out of a sound track's times that were taken out of the picture's."""

    def __init__(self, jumps: tuple[float, ...]) -> None:
        self.jumps = list(jumps)
        self.skipped = 0.0
        self.last: float | None = None

    def __call__(self, seconds: float) -> float:
        """The moment on a clock that never jumps, in seconds."""
        if self.jumps and self.last is not None:
            jump, step = self.jumps[0], seconds - self.last
            if abs(step - jump) < 0.5 + abs(jump) / 10:
                self.skipped += self.jumps.pop(0)
        self.last = seconds
        return seconds - self.skipped
