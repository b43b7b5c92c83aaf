"""What is outside the trained poses, on drawn people."""

from __future__ import annotations

import numpy as np
import pytest
from test_retarget_pose import SIZE, person

from v2v.errors import NothingFound
from v2v.pipelines.pose_range import LEAST, MOST, _limit, out_of_distribution
from v2v.pipelines.retarget_pose import Points
from v2v.signals.pose import LEFT_HAND, NAMES, POINT

RATE = 24.0


def said(points: Points, trained: Points) -> list[tuple[int, int, str, str]]:
    found = out_of_distribution(points, trained, RATE, width=SIZE[0], height=SIZE[1])
    return [(s.start, s.stop, s.what, s.advice) for s in found]


def raised(points: Points, frames: slice, side: str = "left") -> Points:
    """The same with one arm straight up."""
    points = points.copy()
    shoulder = points[frames, POINT[f"{side}_shoulder"], :2]
    for name, above in (("elbow", 48), ("wrist", 90), ("index", 104), ("pinky", 104)):
        points[frames, POINT[f"{side}_{name}"], :2] = shoulder - np.float32([0, above])
    return points


def test_the_training_frames_themselves_are_inside() -> None:
    trained = person(frames=200)
    assert said(trained, trained) == []
    assert said(trained[50:90], trained) == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_raised_arm_is_named_with_its_stretch_and_what_to_film(side: str) -> None:
    points = raised(person(), slice(40, 70), side)
    assert said(points, person()) == [
        (
            40, 70, f"the {side} arm raised above the head",
            f"film yourself raising the {side} arm above the head",
        )
    ]  # fmt: skip
    assert said(points, points) == []


def test_small_gaps_close_and_short_stretches_go() -> None:
    points = raised(raised(person(), slice(40, 60)), slice(64, 80))
    assert [found[:2] for found in said(points, person())] == [(40, 80)]
    assert said(raised(person(), slice(40, 45)), person()) == []


def test_turning_away_and_standing_nearer_are_named() -> None:
    still = person(lively=0.3)
    assert (
        0, 120, "turned away from the camera", "film yourself turning your back to the camera",
    ) in said(person(lively=0.3, facing=-1), still)  # fmt: skip
    (near,) = said(person(lively=0.3, size=1.3, floor=490), still)
    assert near[2:] == ("the person is nearer than ever", "film yourself closer to the camera")
    (far,) = said(person(lively=0.3, size=0.7), still)
    assert far[2].startswith("the person is farther away")


def test_leaving_the_picture_is_named() -> None:
    walk = 200.0 + np.maximum(np.arange(120.0) - 60, 0) * 5
    (found,) = said(person(x=walk), person())
    assert found[2] == "the person leaves the picture"
    assert 80 < found[0] < 110 and found[1] == 120


def test_what_is_not_seen_is_not_judged() -> None:
    points = raised(person(), slice(40, 70))
    points[:, [POINT["left_elbow"], POINT["left_wrist"]], 2] = 0.2
    points[90:, :, :] = np.nan
    assert said(points, person()) == []
    assert said(points[:0], person()) == []
    bust = person()
    bust[:, POINT["left_hip"] : LEFT_HAND.start, 2] = 0.1
    assert said(person(), bust) == []


def test_training_that_moves_fast_or_never_repeats_allows_more() -> None:
    still, slow, fast = (np.arange(200.0)[:, None] * degrees for degrees in (0, 1.5, 3))
    assert _limit(still, RATE) == LEAST
    assert _limit(slow, RATE) == pytest.approx(36)  # as far as a second away, not a frame
    assert _limit(np.concatenate([slow, slow]), RATE) == LEAST
    assert _limit(fast % 360 / 2, RATE) <= MOST


def test_other_arms_over_other_legs_are_no_new_pose() -> None:
    mixed = person(frames=120)
    mixed[:60, : POINT["left_hip"], :2] = person(frames=180)[60:120, : POINT["left_hip"], :2]
    assert said(mixed, person(frames=180)) == []


def test_long_footage_needs_little_memory() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    trained, points = person(frames=6000), person(frames=2000)
    tracemalloc.start()
    said(points, trained)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6  # frames x training frames would be 96 MB an array, and there are several


def test_nobody_to_compare_with_is_a_clear_error() -> None:
    nobody = np.full((8, len(NAMES), 3), np.nan, np.float32)
    for trained in (nobody, nobody[:0]):
        with pytest.raises(NothingFound, match="training poses"):
            said(person(), trained)
