"""Out-of-distribution poses, on drawn people."""

from __future__ import annotations

import numpy as np
import pytest
from test_retarget_pose import SIZE, person

from v2v.errors import NothingFound
from v2v.pipelines.retarget.body import Points
from v2v.pipelines.retarget.pose_range import MAX_LIMIT, MIN_LIMIT, _limit, out_of_distribution
from v2v.signals.pose import LEFT_HAND, NAMES, POINT

RATE = 24.0


def segments_of(points: Points, trained: Points) -> list[tuple[int, int, str, str]]:
    found = out_of_distribution(points, trained, RATE, width=SIZE[0], height=SIZE[1])
    return [(s.start, s.stop, s.what, s.advice) for s in found]


def raised(points: Points, frames: slice, side: str = "left") -> Points:
    """The same poses with one arm straight up."""
    points = points.copy()
    shoulder = points[frames, POINT[f"{side}_shoulder"], :2]
    for name, above in (("elbow", 48), ("wrist", 90), ("index", 104), ("pinky", 104)):
        points[frames, POINT[f"{side}_{name}"], :2] = shoulder - np.float32([0, above])
    return points


def test_training_frames_are_in_distribution() -> None:
    trained = person(frames=200)
    assert segments_of(trained, trained) == []
    assert segments_of(trained[50:90], trained) == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_raised_arm_is_reported_with_its_segment_and_advice(side: str) -> None:
    points = raised(person(), slice(40, 70), side)
    assert segments_of(points, person()) == [
        (
            40, 70, f"the {side} arm raised above the head",
            f"film yourself raising the {side} arm above the head",
        )
    ]  # fmt: skip
    assert segments_of(points, points) == []


def test_small_gaps_are_closed_and_short_segments_dropped() -> None:
    points = raised(raised(person(), slice(40, 60)), slice(64, 80))
    assert [found[:2] for found in segments_of(points, person())] == [(40, 80)]
    assert segments_of(raised(person(), slice(40, 45)), person()) == []


def test_turning_away_and_a_changed_size_are_reported() -> None:
    still = person(lively=0.3)
    assert (
        0, 120, "turned away from the camera", "film yourself turning your back to the camera",
    ) in segments_of(person(lively=0.3, facing=-1), still)  # fmt: skip
    (near,) = segments_of(person(lively=0.3, size=1.3, floor=490), still)
    assert near[2:] == (
        "the person is nearer than in training", "film yourself closer to the camera"
    )  # fmt: skip
    (far,) = segments_of(person(lively=0.3, size=0.7), still)
    assert far[2].startswith("the person is farther away")


def test_leaving_the_frame_is_reported() -> None:
    walk = 200.0 + np.maximum(np.arange(120.0) - 60, 0) * 5
    (found,) = segments_of(person(x=walk), person())
    assert found[2] == "the person leaves the frame"
    assert 80 < found[0] < 110 and found[1] == 120


def test_hidden_and_missing_points_are_not_compared() -> None:
    points = raised(person(), slice(40, 70))
    points[:, [POINT["left_elbow"], POINT["left_wrist"]], 2] = 0.2
    points[90:, :, :] = np.nan
    assert segments_of(points, person()) == []
    assert segments_of(points[:0], person()) == []
    bust = person()
    bust[:, POINT["left_hip"] : LEFT_HAND.start, 2] = 0.1
    assert segments_of(person(), bust) == []


def test_the_threshold_is_larger_for_fast_or_unrepeated_motion() -> None:
    still, slow, fast = (np.arange(200.0)[:, None] * degrees for degrees in (0, 1.5, 3))
    assert _limit(still, RATE) == MIN_LIMIT
    assert _limit(slow, RATE) == pytest.approx(36)  # the distance over a second, not over a frame
    assert _limit(np.concatenate([slow, slow]), RATE) == MIN_LIMIT
    assert _limit(fast % 360 / 2, RATE) <= MAX_LIMIT


def test_arms_and_legs_of_different_frames_are_not_a_new_pose() -> None:
    mixed = person(frames=120)
    mixed[:60, : POINT["left_hip"], :2] = person(frames=180)[60:120, : POINT["left_hip"], :2]
    assert segments_of(mixed, person(frames=180)) == []


def test_long_footage_needs_little_memory() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    trained, points = person(frames=6000), person(frames=2000)
    tracemalloc.start()
    segments_of(points, trained)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6  # frames x training frames would be 96 MB per array, and there are several


def test_training_poses_without_a_person_are_an_error() -> None:
    nobody = np.full((8, len(NAMES), 3), np.nan, np.float32)
    for trained in (nobody, nobody[:0]):
        with pytest.raises(NothingFound, match="training poses"):
            segments_of(person(), trained)
