"""Packet timestamps: valid ones stay unchanged, wrong ones are repaired individually."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2v.video.timing import ContinuousClock, Packets, Timeline, timeline

MS = Fraction(1, 1000)


def repaired(
    times: list[int], *, dts: list[int] | None = None, sound: object = (), stream: bool = False
) -> Timeline:
    """The timeline of packets with these timestamps in ms; the header claims 25 fps."""
    packets = Packets(
        list(times), list(times if dts is None else dts), [True] * len(times),
        np.asarray(sound, dtype=float),
    )  # fmt: skip
    return timeline(packets, MS, Fraction(25), stream=stream)


def seconds(found: Timeline) -> list[float]:
    return [round(float((t - found.pts[0]) * found.time_base), 6) for t in found.pts]


@given(st.lists(st.integers(1, 2000), min_size=2, max_size=60), st.integers(-10_000, 10_000))
def test_valid_timestamps_are_unchanged(steps, start):
    times = [start, *(start + np.cumsum(steps)).tolist()]
    found = repaired(times)
    assert (found.pts.tolist(), found.time_base, found.known) == (times, MS, True)
    assert found.stamps is None and not found.notes and not found.jumps


def test_reordered_frames_are_sorted():
    found = repaired([0, 120, 40, 80, 240, 160, 200], dts=[-80, -40, 0, 40, 80, 120, 160])
    assert found.pts.tolist() == [0, 40, 80, 120, 160, 200, 240]
    assert found.stamps is None


@pytest.mark.parametrize("wrong", [120, 90, 5_000_000, -7000, 300])
def test_one_wrong_timestamp_does_not_affect_the_others(wrong):
    times = list(range(0, 1000, 40))
    found = repaired([*times[:4], wrong, *times[5:]])
    assert seconds(found) == [t / 1000 for t in times]
    assert "1 frame has an implausible timestamp" in found.notes[0]


def test_a_timestamp_repeated_three_times_is_spread_evenly():
    assert seconds(repaired([0, 40, 80, 80, 80, 200, 240])) == [
        0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24,
    ]  # fmt: skip


def test_the_time_base_is_refined_to_separate_equal_timestamps():
    found = timeline(
        Packets([0, 1, 1, 2, 3, 4], [0, 1, 1, 2, 3, 4], [True] * 6, np.zeros(0)),
        Fraction(1, 25), Fraction(25), stream=False,
    )  # fmt: skip
    assert seconds(found) == [0, 0.04, 0.06, 0.08, 0.12, 0.16]


@pytest.mark.parametrize("jump", [58_000, 10**9, -400, -960, -(10**9)])
def test_a_clock_that_jumps_or_restarts_is_made_continuous(jump):
    steady = list(range(0, 2000, 40))
    found = repaired([t if t < 1000 else t + jump for t in steady], stream=True)
    assert seconds(found) == [t / 1000 for t in steady]
    assert found.jumps == (jump / 1000,)
    assert "jumps by" in found.notes[0]


def test_a_pause_is_kept_unless_it_lasts_weeks():
    for pause, kept in ((700, True), (60_000, True), (3_000_000_000, False)):
        times = [*range(0, 1000, 40), *range(1000 + pause, 2000 + pause, 40)]
        assert repaired(times).pts[-1] == (1960 + pause if kept else 1960)


def test_continuous_audio_confirms_a_pause():
    times = [*range(0, 1000, 40), *range(31_000, 32_000, 40)]
    sound = np.arange(0, 33, 0.02)
    assert repaired(times, stream=True, sound=sound).pts[-1] == 31_960
    assert repaired(times, stream=True, sound=sound[sound < 1]).pts[-1] == 1960


def test_meaningless_timestamps_are_replaced_by_frame_indices():
    found = repaired([0] * 10)
    assert (found.known, found.pts.tolist()) == (False, list(range(10)))
    assert found.time_base == Fraction(1, 25) and "counted" in found.notes[0]


@given(
    st.lists(
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(0, 400)), max_size=40
    ),
    st.booleans(),
)
def test_any_timestamps_yield_an_increasing_timeline(times, stream):
    shown = [i % 7 != 3 for i in range(len(times))]
    found = timeline(
        Packets(times, times, shown, np.zeros(0)), MS, Fraction(25), stream=stream
    )  # fmt: skip
    assert (np.diff(found.pts) > 0).all()
    assert len(found.pts) == max(sum(shown), 1)
    if found.stamps is not None:  # every shown frame has a timestamp, hidden frames have none
        assert sorted(found.stamps[shown].tolist()) == found.pts.tolist()
        assert not set(found.stamps[~np.array(shown, bool)].tolist()) & set(found.pts.tolist())


@pytest.mark.parametrize("times", [[-(2**63), 0, 0], [0, 2**63 - 1]])
def test_timestamps_at_the_int64_limits_are_replaced_by_frame_indices(times):
    found = timeline(
        Packets(times, times, [True] * len(times), np.zeros(0)), MS, Fraction(25), stream=False
    )
    assert not found.known and found.pts.tolist() == list(range(len(times)))


def test_audio_follows_only_the_jumps_of_the_video():
    clock = ContinuousClock((58.8,))
    audio_times = [clock(t) for t in (0.0, 0.5, 1.0, 6.0, 65.3, 65.8)]  # silence, then the jump
    assert audio_times == pytest.approx([0, 0.5, 1, 6, 6.5, 7])
