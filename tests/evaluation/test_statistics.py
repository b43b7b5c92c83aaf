"""Means, intervals and drift of series with known results."""

from __future__ import annotations

import math

import numpy as np
import pytest

from v2v.evaluation.statistics import drift, interval, summary


def test_a_constant_series_has_no_uncertainty() -> None:
    found = summary([np.full(40, 2.5)], block=8, longer=[(np.full(40, 2.5), np.arange(40))])
    assert (found.mean, found.low, found.high, found.drift) == (2.5, 2.5, 2.5, 1.0)
    assert found.frames == 40 and found.clips == (2.5,) and found.clips_low is None


def test_the_interval_covers_the_mean_of_independent_values_about_95_percent_of_the_time() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = interval([random.normal(3, 1, 120)], 1)
        covered += low <= 3 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_blocks_widen_the_interval_of_correlated_values() -> None:
    """Each value repeats for ten frames, so resampling single frames gives too narrow intervals."""
    values = np.repeat(np.random.default_rng(0).normal(0, 1, 30), 10)
    single, block = (np.diff(interval([values], size))[0] for size in (1, 20))
    assert block > 2 * single


def test_undefined_frames_are_ignored() -> None:
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
    assert found.low == found.high == 4.0  # the clips are constant


def test_drift_of_a_growing_series() -> None:
    assert drift(np.arange(100.0) + 1) == pytest.approx(90.5 / 30.5)
    assert math.isnan(drift(np.ones(9)))


def test_repeated_frames_are_compared_with_themselves() -> None:
    """Content (here: the frame number) is not drift; growth over time is."""
    period = np.concatenate([np.arange(12), np.arange(10, 0, -1)])
    order = np.tile(period, 5)[:100]
    content = order + 1.0
    assert drift(content, order) == 1.0
    assert drift(content) != pytest.approx(1.0, abs=0.02)
    assert drift(content * (1 + np.arange(100) / 100), order) > 1.2


def test_frames_are_compared_in_the_same_playback_direction() -> None:
    """Higher values in backward playback are not drift, although the last fifth runs backwards."""
    period = np.concatenate([np.arange(16), np.arange(14, 0, -1)])
    order = np.tile(period, 4)[:90]
    direction = np.sign(np.diff(order, prepend=0))
    values = 1.0 + (direction < 0)
    assert values[-18:].mean() > values[18:36].mean()
    assert drift(values, order) == 1.0
