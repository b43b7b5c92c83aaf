"""Means, intervals and drift of series whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from v2v.evaluation.statistics import drift, interval, summary


def test_a_steady_series_is_known_exactly() -> None:
    found = summary([np.full(40, 2.5)], block=8, longer=[(np.full(40, 2.5), np.arange(40))])
    assert (found.mean, found.low, found.high, found.drift) == (2.5, 2.5, 2.5, 1.0)
    assert found.frames == 40 and found.clips == (2.5,) and found.clips_low is None


def test_the_interval_holds_the_mean_of_independent_values_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = interval([random.normal(3, 1, 120)], 1)
        held += low <= 3 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_blocks_widen_the_interval_of_values_that_hang_together() -> None:
    """Each value stands for ten frames: one frame at a time, it would look ten times as sure."""
    values = np.repeat(np.random.default_rng(0).normal(0, 1, 30), 10)
    single, block = (np.diff(interval([values], size))[0] for size in (1, 20))
    assert block > 2 * single


def test_frames_without_a_value_are_left_out() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan])
    found = summary([values], block=2)
    assert found.mean == 2 and found.frames == 2
    nothing = summary([np.full(5, np.nan)], block=2)
    assert nothing.mean is None and nothing.low is None and nothing.clips == (None,)


def test_the_same_values_give_the_same_interval() -> None:
    values = [np.random.default_rng(1).normal(size=50)]
    assert summary(values, block=5) == summary(values, block=5)


def test_several_clips() -> None:
    found = summary([np.full(10, 1.0), np.full(30, 5.0)], block=3)
    assert found.mean == 4.0  # over frames
    assert found.clips == (1.0, 5.0)
    assert found.clips_low == 1.0 and found.clips_high == 5.0
    assert found.low == found.high == 4.0  # within the clips nothing varies


def test_drift_of_a_series_that_grows() -> None:
    assert drift(np.arange(100.0) + 1) == pytest.approx(90.5 / 30.5)
    assert math.isnan(drift(np.ones(9)))


def test_frames_that_come_again_are_held_against_themselves() -> None:
    """What happens in the frames (here: their number) is no drift; what grows with time is."""
    period = np.concatenate([np.arange(12), np.arange(10, 0, -1)])
    order = np.tile(period, 5)[:100]
    content = order + 1.0
    assert drift(content, order) == 1.0
    assert drift(content) != pytest.approx(1.0, abs=0.02)
    assert drift(content * (1 + np.arange(100) / 100), order) > 1.2


def test_forth_and_back_are_other_motions() -> None:
    """What costs more on the way back is no drift, though the last fifth runs back."""
    period = np.concatenate([np.arange(16), np.arange(14, 0, -1)])
    order = np.tile(period, 4)[:90]
    way = np.sign(np.diff(order, prepend=0))
    values = 1.0 + (way < 0)
    assert values[-18:].mean() > values[18:36].mean()
    assert drift(values, order) == 1.0
