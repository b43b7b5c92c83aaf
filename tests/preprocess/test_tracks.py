"""Tests bridging, smoothing and target tracking on tracks with known results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from v2v.config import PreprocessSettings, load_config
from v2v.preprocess.tracks import (
    RARELY,
    SingleTargetTracker,
    blocks,
    bridge_gaps,
    jitter,
    quietest_window,
    smooth,
)

Points = NDArray[np.float32]
RATE = 30.0
BODY = np.float32(100.0)  # pixels
DEFAULTS = load_config(PreprocessSettings, "preprocess")
FILTERS = {
    name: chosen.smoothing.model_dump()
    for name, chosen in (("pose", DEFAULTS.pose), ("face", DEFAULTS.face))
    if chosen.smoothing is not None
}


def smoothed(points: Points, unit: object = BODY, **settings: float) -> Points:
    return smooth(points, RATE, np.asarray(unit, np.float32), **(settings or FILTERS["pose"]))


def track(*xs: float) -> Points:
    """One point that moves along x; NaN is missing."""
    return np.array(xs, np.float32)[:, None, None] * np.array([1, 10, 0.1], np.float32)


# ---------------------------------------------------------------- gaps


NAN = np.nan


@pytest.mark.parametrize(
    ("before", "longest", "after", "filled"),
    [
        ([1, NAN, 3], 1, [1, 2, 3], [1]),
        ([1, NAN, NAN, 7], 2, [1, 3, 5, 7], [1, 2]),
        ([1, NAN, NAN, 7], 1, [1, NAN, NAN, 7], []),
        ([1, NAN, 3], 0, [1, NAN, 3], []),
        ([NAN, 1, NAN], 5, [NAN, 1, NAN], []),
        ([NAN, NAN, NAN], 5, [NAN, NAN, NAN], []),
        ([1, 2, 3], 5, [1, 2, 3], []),
        ([NAN, 1, NAN, 3, NAN, NAN, NAN, 9, NAN], 2, [NAN, 1, 2, 3, NAN, NAN, NAN, 9, NAN], [2]),
    ],
)
def test_short_gaps_are_bridged_linearly_and_marked(
    before: list[float], longest: int, after: list[float], filled: list[int]
) -> None:
    points, marks = bridge_gaps(track(*before), longest)
    np.testing.assert_allclose(points, track(*after), rtol=1e-6)
    assert np.flatnonzero(marks[:, 0]).tolist() == filled


def test_points_are_bridged_independently_and_the_input_is_kept() -> None:
    points = np.concatenate([track(1, NAN, 3), track(4, 5, 6), track(NAN, NAN, 6)], axis=1)
    given = points.copy()
    bridged, marks = bridge_gaps(points, 3)
    np.testing.assert_array_equal(points, given)
    assert marks.tolist() == [[False] * 3, [True, False, False], [False] * 3]
    assert np.isnan(bridged[:2, 2]).all()


@settings(deadline=None)
@given(
    known=arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 3))),
    longest=st.integers(0, 6),
)
def test_known_points_stay_and_only_short_inner_gaps_are_filled(
    known: NDArray[np.bool_], longest: int
) -> None:
    points = np.random.default_rng(0).normal(size=(*known.shape, 2)).astype(np.float32)
    points[~known] = np.nan
    bridged, marks = bridge_gaps(points, longest)
    np.testing.assert_array_equal(bridged[known], points[known])
    assert np.array_equal(np.isfinite(bridged[..., 0]), known | marks)
    for n in range(known.shape[1]):
        runs = "".join("x" if k else "." for k in known[:, n])
        inner = runs.strip(".")
        expected = sum(len(gap) for gap in inner.split("x") if len(gap) <= longest)
        assert marks[:, n].sum() == expected


# ---------------------------------------------------------------- smoothing


@pytest.mark.parametrize("settings_", FILTERS.values(), ids=FILTERS)
def test_smoothing_commutes_with_time_reversal(settings_: dict[str, float]) -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(60, 4, 2)).cumsum(axis=0).astype(np.float32)
    points[20:23, 1] = np.nan
    unit = rng.uniform(80, 120, 60).astype(np.float32)
    forwards = smoothed(points, unit, **settings_)
    backwards = smoothed(points[::-1].copy(), unit[::-1].copy(), **settings_)[::-1]
    np.testing.assert_array_equal(forwards, backwards)


@pytest.mark.parametrize("settings_", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("speed", [0, 0.5, 4, 30])
def test_steady_motion_is_unchanged(settings_: dict[str, float], speed: float) -> None:
    line = np.arange(120, dtype=np.float32) * speed + 50
    points = np.stack([line, 2 * line], axis=-1)[:, None]
    out = smoothed(points, **settings_)
    edge = 0 if speed == 0 else 40
    inner = slice(edge, 120 - edge)
    np.testing.assert_allclose(out[inner], points[inner], atol=0.02)


@pytest.mark.parametrize(("name", "factor"), [("pose", 3.0), ("face", 1.75)])
def test_noise_on_a_still_point_is_reduced(name: str, factor: float) -> None:
    """By `factor` in position, and by more in the second difference, which is visible as jitter."""
    noise = np.random.default_rng(2).normal(0, 0.7, (300, 20, 2)).astype(np.float32)
    out = smoothed(noise + 200, **FILTERS[name])
    assert noise[30:-30].std() / out[30:-30].std() > factor
    assert jitter(noise) / jitter(out) > 1.5 * factor


@pytest.mark.parametrize(("hertz", "kept"), [(0.5, 0.9), (1.0, 0.75), (2.0, 0.6)])
def test_swing_has_no_lag(hertz: float, kept: float) -> None:
    """A hand swings by 0.6 torso lengths; a fraction `kept` of its range remains."""
    t = np.arange(300) / RATE
    swing = (60 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)
    points = np.stack([swing, np.zeros_like(swing)], axis=-1)[:, None]
    out = smoothed(points)[..., 0, 0]
    lags = range(-8, 9)
    inner = swing[60:-60]
    match = [float(inner @ out[60 + lag : len(out) - 60 + lag]) for lag in lags]
    assert lags[int(np.argmax(match))] == 0
    # Subframe lag from the parabola through the peak.
    a, b, c = match[7:10]
    assert abs((a - c) / (2 * (a - 2 * b + c))) < 0.05
    assert np.ptp(out[60:-60]) > kept * np.ptp(inner)


def test_missing_point_splits_the_track() -> None:
    """Points before a gap do not influence points after it."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=(30, 2, 2)).cumsum(axis=0).astype(np.float32)
    points[14:16, 0] = np.nan
    out = smoothed(points)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(points))
    np.testing.assert_array_equal(out[:14, 0], smoothed(points[:14])[:, 0])
    np.testing.assert_array_equal(out[16:, 0], smoothed(points[16:])[:, 0])
    assert not np.array_equal(out[16:, 1], smoothed(points[16:])[:, 1])


def test_smoothing_is_invariant_to_scale_and_position() -> None:
    points = np.random.default_rng(4).normal(size=(50, 3, 2)).cumsum(axis=0).astype(np.float32)
    out = smoothed(points)
    np.testing.assert_allclose(smoothed(points * 4, BODY * 4), out * 4, atol=1e-3)
    np.testing.assert_allclose(smoothed(points + 64), out + 64, atol=1e-3)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_very_short_tracks_are_unchanged(count: int) -> None:
    points = np.full((count, 3, 2), 7, np.float32)
    np.testing.assert_array_equal(smoothed(points), points)


# ---------------------------------------------------------------- measurements


def test_jitter_is_the_rms_of_the_second_difference() -> None:
    assert jitter(track(1, 2, 3, 4)[..., :2]) == pytest.approx(0, abs=1e-5)
    zigzag = np.array([0, 1, 0, 1, 0], np.float32)[:, None, None]
    assert jitter(zigzag) == pytest.approx(2)
    zigzag[0] = np.nan
    assert jitter(zigzag) == pytest.approx(2)
    assert jitter(zigzag[:2]) == jitter(np.full_like(zigzag, np.nan)) == 0


def test_quietest_window_is_found() -> None:
    x = np.concatenate([np.arange(20) * 5, np.full(12, 95), 95 + np.arange(20) * 3])
    assert quietest_window(x.astype(np.float32)[:, None, None].repeat(2, axis=2), 10)[0] in range(
        19, 23
    )
    sparse = np.full((30, 1, 2), np.nan, np.float32)
    sparse[15:26] = 3
    assert quietest_window(sparse, 10) in [(15, 25), (16, 26)]
    assert quietest_window(sparse[:3], 10) == (0, 3)


# ---------------------------------------------------------------- target tracking


def place(x: float, y: float = 0.0) -> NDArray[np.float32]:
    return np.array([x, y], np.float32)


def tracking(x: float = 100, size: float = 50) -> SingleTargetTracker:
    tracker = SingleTargetTracker(max_jump=0.6, patience=10)
    assert tracker.lost
    assert tracker.accepts(place(x), size)
    assert not tracker.lost
    return tracker


def test_small_moves_are_accepted_and_stored() -> None:
    tracker = tracking()
    for step in range(1, 20):
        assert tracker.accepts(place(100 + 25 * step), 50)
    assert tracker.centre is not None and tracker.centre[0] == 575


@pytest.mark.parametrize(
    ("x", "size", "accepted"),
    [(129, 50, True), (131, 50, False), (69, 50, False), (100, 79, True), (100, 81, False),
     (100, 32, True), (100, 31, False)],
)  # fmt: skip
def test_jump_in_position_or_size_is_rejected(x: float, size: float, accepted: bool) -> None:
    tracker = tracking()
    assert tracker.accepts(place(x), size) == accepted
    if not accepted:
        assert tracker.centre is not None and (tracker.centre[0], tracker.size) == (100, 50)


def test_tolerance_grows_with_missed_frames_until_the_target_is_lost() -> None:
    tracker = tracking()
    assert not tracker.accepts(place(150), 50)
    for _ in range(4):
        tracker.missed()
    assert tracker.accepts(place(150), 50)  # twice the distance after four missed frames
    assert tracker.unseen == 0
    for _ in range(9):
        tracker.missed()
    assert not tracker.lost and not tracker.accepts(place(5000), 50)
    tracker.missed()
    assert tracker.lost and tracker.accepts(place(5000), 400)


def test_missing_target_is_searched_in_few_frames() -> None:
    tracker = tracking()
    searched = []
    for frame in range(4 * RARELY):
        if tracker.searches:
            searched.append(frame)
        tracker.missed()
    assert searched == [*range(RARELY + 1), 2 * RARELY, 3 * RARELY]
    assert tracker.accepts(place(100), 50) and tracker.searches


def test_restored_state_continues_identically() -> None:
    rng = np.random.default_rng(5)
    moves = [(place(*rng.uniform(0, 60, 2)), float(np.float32(rng.uniform(30, 60))))
             for _ in range(60)]  # fmt: skip
    straight = SingleTargetTracker(0.6, 5)
    resumed = SingleTargetTracker(0.6, 5)
    decisions = []
    for centre, size in moves:
        restored = SingleTargetTracker(0.6, 5)
        restored.restore(resumed.state)
        resumed = restored
        answers = [f.accepts(centre, size) for f in (straight, resumed)]
        if not answers[0]:
            straight.missed()
            resumed.missed()
        decisions.append(answers[0])
        assert answers[0] == answers[1]
        np.testing.assert_array_equal(straight.state, resumed.state)
    assert True in decisions and False in decisions


@pytest.mark.parametrize("state", [None, np.zeros(5, np.float32)])
def test_empty_state_has_no_target(state: NDArray[np.float32] | None) -> None:
    tracker = tracking()
    tracker.restore(state)
    assert tracker.lost and tracker.centre is None
    np.testing.assert_array_equal(SingleTargetTracker(0.6, 10).state, tracker.state)


def test_blockwise_smoothing_equals_smoothing_whole_shots() -> None:
    """A clip of several blocks, with a cut, a gap across a block boundary and a fast swing."""
    generator = np.random.default_rng(1)
    time = np.arange(2600)[:, None, None] / 30
    points = (40 * np.sin(7 * time) + generator.normal(0, 1, (2600, 3, 2))).astype(np.float32)
    points[1022:1027] = np.nan
    shots = [(0, 1500), (1500, 2600)]
    whole, blockwise = np.empty_like(points), np.full_like(points, np.nan)
    options = {"min_cutoff": 1.0, "beta": 6.0}

    def work(part: np.ndarray) -> np.ndarray:
        return smooth(bridge_gaps(part, 8)[0], 30.0, np.float32(100), **options)

    for first, end in shots:
        whole[first:end] = work(points[first:end])
    for read, keep, place in blocks(shots):
        blockwise[place] = work(points[read])[keep]
    assert np.abs(whole - blockwise).max() < 1e-4
