"""Near-duplicates are found despite re-encoding; other poses are not."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from v2v.evaluation.duplicates import (
    CELLS,
    FINE,
    MOST,
    NOISE,
    DuplicateFinder,
    distances,
    still,
    thumbnail,
    tolerances,
)
from v2v.samples import person
from v2v.video.stored import read_stored
from v2v.video.write import VideoWriter


@pytest.fixture(scope="module")
def dance() -> list[np.ndarray]:
    return list(person.frames(count=20, fps=10.0, height=240, width=144))


@pytest.fixture(scope="module")
def thumbnails(dance: list[np.ndarray]) -> np.ndarray:
    return np.stack([thumbnail(frame) for frame in dance])


def test_a_thumbnail_has_square_cells() -> None:
    assert thumbnail(np.zeros((128, 128, 3), np.uint8)).shape == (CELLS * FINE, CELLS * FINE, 3)
    assert thumbnail(np.zeros((256, 128, 3), np.uint8)).shape == (64, 32, 3)
    assert thumbnail(np.zeros((20, 300, 3), np.uint8)).shape == (32, 480, 3)


def test_the_distance_is_the_maximum_over_cells() -> None:
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[1, 4:8, 8:12] = 40  # one whole cell of 64: a mean of 0.6 over the frame
    np.testing.assert_allclose(distances(frames, frames[0]), [0, 40])


@pytest.mark.parametrize("crf", [16, 23])  # clip stores; typical footage
def test_re_encoded_frames_are_duplicates_and_other_poses_are_not(
    crf: int, dance: list[np.ndarray], thumbnails: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "again.mp4"
    with VideoWriter(path, width=144, height=240, rate=Fraction(10), crf=crf) as writer:
        for frame in dance:
            writer.write(frame)
    again = np.stack([thumbnail(frame) for frame in read_stored(path)])
    for t, tolerance in enumerate(tolerances(thumbnails)):
        found = distances(again, thumbnails[t])
        assert found[t] <= tolerance, t
        assert np.delete(found, t).min() > tolerance, t


def test_exactly_the_shown_frames_are_found(thumbnails: np.ndarray) -> None:
    finder = DuplicateFinder(thumbnails, tolerances(thumbnails))
    for t in (3, 4, 11):
        finder.look_at(thumbnails[t])
    assert np.flatnonzero(finder.found).tolist() == [3, 4, 11]
    assert not finder.all_found


def test_excluded_ranges_are_not_searched(thumbnails: np.ndarray) -> None:
    finder = DuplicateFinder(thumbnails, tolerances(thumbnails))
    finder.look_at(thumbnails[5], [(-4, 3), (4, 8)])
    assert not finder.found.any()
    finder.look_at(thumbnails[5], [(0, 5), (6, 99)])
    assert np.flatnonzero(finder.found).tolist() == [5]


def test_cell_means_discard_no_duplicate() -> None:
    """Cell means are a lower bound of the distance, so the result equals the exhaustive search."""
    random = np.random.default_rng(0)
    one, other = random.integers(100, 112, (2, 30, 32, 40, 3)).astype(np.uint8)
    nearest = np.min([distances(one, frame) for frame in other], axis=0)
    tolerance = np.median(nearest)
    finder = DuplicateFinder(one, np.full(30, tolerance, np.float32))
    for frame in other:
        finder.look_at(frame)
    expected = nearest <= tolerance
    assert expected.any() and not expected.all()
    np.testing.assert_array_equal(finder.found, expected)


def test_tolerances_follow_the_motion_within_limits() -> None:
    levels = np.array([0, 1, 2, 10, 18, 80, 160], np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (7, 32, 32, 3))
    np.testing.assert_allclose(
        tolerances(frames), [NOISE, NOISE, NOISE, 4, 4, MOST, MOST]
    )  # fmt: skip
    np.testing.assert_allclose(tolerances(frames[:1]), [MOST])


def test_still_frames_equal_all_their_neighbours() -> None:
    levels = np.array([50, 50, 51, 50, 50, 90, 130, 130], np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (8, 32, 32, 3))
    assert still(frames, 1).tolist() == [True, True, True, True, False, False, False, True]
    assert still(frames, 2).tolist() == [True, True, True, False, False, False, False, False]
