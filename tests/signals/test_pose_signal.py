"""Pose: exact geometry, control points, drawing and dropout."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from v2v.signals.pose import (
    LEFT_HAND,
    LIMB_GROUPS,
    LIMBS,
    MIN_SCORE,
    MIRROR,
    NAMES,
    POINT,
    RIGHT_HAND,
    PoseTrack,
)

WIDTH, HEIGHT = 200, 400


def standing() -> NDArray[np.float32]:
    """[75, 3] a person who faces the camera: the left side is on the picture's right."""
    side = {
        "eye_inner": (0.51, 0.09), "eye": (0.52, 0.09), "eye_outer": (0.53, 0.09),
        "ear": (0.55, 0.10), "shoulder": (0.62, 0.22), "elbow": (0.70, 0.36),
        "wrist": (0.76, 0.48), "pinky": (0.78, 0.52), "index": (0.76, 0.53),
        "thumb": (0.74, 0.51), "hip": (0.57, 0.52), "knee": (0.58, 0.72),
        "ankle": (0.58, 0.92), "heel": (0.57, 0.94), "foot": (0.62, 0.95),
    }  # fmt: skip
    places = {"nose": (0.5, 0.11), "mouth_left": (0.52, 0.13), "mouth_right": (0.48, 0.13)}
    for name, (x, y) in side.items():
        places[f"left_{name}"], places[f"right_{name}"] = (x, y), (1 - x, y)
    for which, sign in (("left", 1), ("right", -1)):
        x, y = places[f"{which}_wrist"]
        places[f"{which}_hand_wrist"] = (x, y)
        for f, finger in enumerate(("thumb", "index", "middle", "ring", "pinky")):
            for joint in range(1, 5):
                reach = (x + sign * 0.012 * (2 - f), y + 0.012 * joint)
                places[f"{which}_hand_{finger}_{joint}"] = reach
    xy = np.array([places[name] for name in NAMES], np.float32) * (WIDTH, HEIGHT)
    return np.concatenate([xy, np.ones((75, 1))], axis=1).astype(np.float32)


def track(count: int = 3, points: NDArray[np.float32] | None = None) -> PoseTrack:
    """`count` frames of a person who moves to the right, with random `filled` flags."""
    frames = np.repeat((standing() if points is None else points)[None], count, axis=0)
    frames[:, :, 0] += 2 * np.arange(count, dtype=np.float32)[:, None]
    filled = np.random.default_rng(0).random((count, 75)) < 0.3
    return PoseTrack(frames, filled, WIDTH, HEIGHT)


def noisy(count: int = 4) -> PoseTrack:
    rng = np.random.default_rng(1)
    made = track(count)
    points = made.points + rng.normal(0, 5, made.points.shape).astype(np.float32)
    points[..., 2] = rng.random(points.shape[:2])
    points[1, 5:30] = np.nan
    return replace(made, points=points)


def same(a: PoseTrack, b: PoseTrack, *, atol: float = 0.0) -> None:
    assert (a.width, a.height) == (b.width, b.height)
    np.testing.assert_allclose(a.points, b.points, rtol=0, atol=atol)
    np.testing.assert_array_equal(a.filled, b.filled)


# ---------------------------------------------------------------- geometry


def test_control_points_lie_on_the_body_with_radii_in_torso_lengths() -> None:
    control_points = track().control_points()
    torso = 0.3 * HEIGHT
    assert control_points.shape == (3, 157, 3) and not np.isnan(control_points).any()
    assert np.allclose(
        control_points[1:, :, 0] - control_points[:-1, :, 0], 2, atol=1e-4
    )  # they move with the body
    assert np.ptp(control_points[..., 1], axis=0).max() == 0
    radii = control_points[0, :, 2] / torso
    assert radii.min() == pytest.approx(0.05, rel=0.01) and radii.max() < 0.25
    left, right = control_points[0, :, :2].max(axis=0), control_points[0, :, :2].min(axis=0)
    person = standing()
    assert (left <= person[:, :2].max(axis=0) + 1e-3).all()
    # The crown is above the points of the face.
    assert right[1] < person[:, 1].min() - 0.01 * HEIGHT


def test_control_points_of_undetected_parts_are_missing() -> None:
    points = standing()
    points[[POINT["left_hip"], POINT["right_hip"]], 2] = 0.1  # outside the picture, only estimated
    control_points = track(1, points).control_points()[0]
    whole = track(1).control_points()[0]
    present = ~np.isnan(control_points[:, 0])
    assert (~present).sum() == 14 + 30  # on the thighs, and on the torso below its first row
    np.testing.assert_allclose(control_points[present, :2], whole[present, :2])
    # The body size is estimated from the shoulders, within their precision.
    assert (control_points[present, 2] / whole[present, 2]).max() < 1.1
    assert (control_points[present, 2] / whole[present, 2]).min() > 0.3
    assert np.isnan(track(1, np.full_like(points, np.nan)).control_points()).all()


def test_a_point_without_a_position_removes_only_its_own_control_points() -> None:
    points = standing()
    points[POINT["left_wrist"], :2] = np.nan  # despite its score
    made, whole = track(1, points), track(1)
    present = ~np.isnan(made.control_points()[0, :, 0])
    assert 0.9 < present.mean() < 1
    np.testing.assert_allclose(
        made.control_points()[0, present], whole.control_points()[0, present], rtol=1e-6
    )
    assert (made.control_point_tensor()[0, ~present] == 0).all()
    assert not made.control_point_tensor().isnan().any()


def test_control_points_are_transformed_with_the_frames() -> None:
    made = track()
    original = made.control_points()
    np.testing.assert_allclose(
        made.scaled(2 * WIDTH, 2 * HEIGHT).control_points(), 2 * original, rtol=1e-5
    )  # fmt: skip
    moved = made.cropped(10, 20, 150, 300).control_points()
    np.testing.assert_allclose(moved, original - np.array([10, 20, 0], np.float32), atol=1e-3)
    mirrored = made.flipped().control_points()
    assert np.allclose(
        np.sort(mirrored[..., 0], axis=1), np.sort(WIDTH - original[..., 0], axis=1), atol=1e-3
    )  # fmt: skip
    np.testing.assert_array_equal(made[1:2].control_points(), original[1:2])


def test_flipping_twice_is_the_identity() -> None:
    same(noisy().flipped().flipped(), noisy(), atol=2e-5)
    assert sorted(MIRROR) == list(range(75))
    assert all(MIRROR[MIRROR[i]] == i for i in range(75))


def test_a_flip_swaps_left_and_right_by_name() -> None:
    made = noisy()
    flipped = made.flipped()
    swap = {"left": "right", "right": "left"}
    for name, i in POINT.items():
        twin = POINT["_".join(swap.get(word, word) for word in name.split("_"))]
        assert (twin == i) == (name == "nose")
        np.testing.assert_allclose(flipped.points[:, i, 0], WIDTH - made.points[:, twin, 0])
        np.testing.assert_array_equal(flipped.points[:, i, 1:], made.points[:, twin, 1:])
        np.testing.assert_array_equal(flipped.filled[:, i], made.filled[:, twin])


def test_scaling_is_reversible() -> None:
    made = noisy()
    scaled = made.scaled(300, 100)
    np.testing.assert_allclose(scaled.points[..., 0], made.points[..., 0] * 1.5, rtol=1e-6)
    np.testing.assert_allclose(scaled.points[..., 1], made.points[..., 1] / 4, rtol=1e-6)
    np.testing.assert_array_equal(scaled.points[..., 2], made.points[..., 2])
    same(scaled.scaled(WIDTH, HEIGHT), made, atol=1e-4)


def test_a_crop_moves_the_points() -> None:
    made = noisy()
    cut = made.cropped(30, 50, 100, 120)
    assert (cut.width, cut.height) == (100, 120)
    np.testing.assert_allclose(cut.points, made.points - (30, 50, 0), atol=1e-4)


@pytest.mark.parametrize("change", ["scaled", "cropped", "flipped", "slice"])
def test_transforms_do_not_change_the_original(change: str) -> None:
    made = noisy()
    before = made.points.copy(), made.filled.copy()
    results = {
        "scaled": lambda: made.scaled(50, 60), "cropped": lambda: made.cropped(1, 2, 30, 40),
        "flipped": made.flipped, "slice": lambda: made[1:3],
    }  # fmt: skip
    assert len(results[change]()) == (2 if change == "slice" else 4)
    np.testing.assert_array_equal(made.points, before[0])
    np.testing.assert_array_equal(made.filled, before[1])


# ---------------------------------------------------------------- drawing


def test_the_drawing_passes_through_the_points() -> None:
    made = track(1)
    picture = made.draw()[0]
    assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8
    for name in ("left_wrist", "right_knee", "left_ankle"):
        x, y = made.points[0, POINT[name], :2]
        assert picture[int(y), int(x)].max() > 100, name
    for start, stop, _ in LIMBS:
        middle = made.points[0, [POINT[start], POINT[stop]], :2].mean(axis=0)
        assert picture[int(middle[1]), int(middle[0])].max() > 50, (start, stop)
    x, y = np.nonzero(picture.max(axis=2))[::-1]
    low, high = made.points[0, :, :2].min(axis=0), made.points[0, :, :2].max(axis=0)
    assert x.min() > low[0] - 6 and y.min() > low[1] - 6
    assert x.max() < high[0] + 6 and y.max() < high[1] + 6


def test_drawing_commutes_with_scaling() -> None:
    made = track(1)
    small = made.draw(256, 128)[0].astype(float)
    large = cv2.resize(made.draw(512, 256)[0], (128, 256), interpolation=cv2.INTER_AREA)
    a, b = cv2.blur(small, (5, 5)), cv2.blur(large, (5, 5)).astype(float)
    assert np.abs(a - b).mean() < 0.05 * a[a.max(axis=2) > 0].mean()
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98


def test_drawing_commutes_with_flipping() -> None:
    """Except for the colours: the mirrored left arm is drawn as a right arm."""
    made = track(1)
    a, b = made.flipped().draw()[0], made.draw()[0][:, ::-1]
    assert np.abs(a.max(axis=2).astype(int) - b.max(axis=2)).mean() < 1.5
    x, y = (
        made.points[0, POINT["left_elbow"], :2] * 0.5 + made.points[0, POINT["left_wrist"], :2] / 2
    )
    colour = made.draw()[0, int(y), int(x)]
    mirrored = a[int(y), int(WIDTH - x)]
    assert mirrored.argmax() != colour.argmax(), "the mirrored left arm is a right arm"


@pytest.mark.parametrize("score", [np.nan, 0.0, MIN_SCORE - 0.01])
def test_missing_and_uncertain_points_are_not_drawn(score: float) -> None:
    points = standing()
    if np.isnan(score):
        points[:] = np.nan
    points[:, 2] = score
    assert not track(2, points).draw().any()


@pytest.mark.parametrize("name", ["left_elbow", "right_knee", "nose", "left_hand_index_3"])
def test_only_lines_to_a_missing_point_are_left_out(name: str) -> None:
    whole = track(1).draw()[0]
    points = standing()
    points[POINT[name], 2] = 0
    partial = track(1, points).draw()[0]
    gone = (whole != partial).any(axis=2)
    assert gone.any()
    joined = {n for a, b, _ in LIMBS if name in (a, b) for n in (a, b)} | {name}
    if name == "nose":
        joined |= {n for n in NAMES if n.endswith(("ear", "eye_outer"))}
    if "hand" in name:
        joined |= set(NAMES[LEFT_HAND])
    ends = standing()[[POINT[n] for n in joined], :2]
    y, x = np.nonzero(gone)
    assert (x >= ends[:, 0].min() - 5).all() and (x <= ends[:, 0].max() + 5).all()
    assert (y >= ends[:, 1].min() - 5).all() and (y <= ends[:, 1].max() + 5).all()


def test_a_point_at_the_threshold_is_drawn() -> None:
    points = standing()
    points[:, 2] = MIN_SCORE
    np.testing.assert_array_equal(track(1, points).draw(), track(1).draw())


@pytest.mark.parametrize(("size", "width"), [(128, 2), (256, 3), (512, 6), (1024, 12)])
def test_lines_scale_with_the_picture(size: int, width: int) -> None:
    points = np.full((75, 3), np.nan, np.float32)
    points[POINT["left_hip"]] = (0.5 * size, 0.2 * size, 1)
    points[POINT["left_knee"]] = (0.5 * size, 0.8 * size, 1)
    made = PoseTrack(points[None], np.zeros((1, 75), np.bool_), size, size)
    row = made.draw()[0, size // 2].max(axis=1).astype(float)
    # Antialiasing adds up to one pixel on either side.
    assert width <= row.sum() / row.max() < width + 2.5
    middle = (row * (np.arange(size) + 0.5)).sum() / row.sum()
    assert middle == pytest.approx(size / 2, abs=0.1)


def test_left_and_right_have_different_colours() -> None:
    colours = {(a, b): colour for a, b, colour in LIMBS}
    for part in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")):
        left, right = (
            colours[f"{side}_{part[0]}", f"{side}_{part[1]}"] for side in ("left", "right")
        )
        assert np.abs(np.subtract(left, right)).max() > 100, part
    for side in ("left", "right"):
        own = [colour for (a, _), colour in colours.items() if a.startswith(side)]
        assert len(set(own)) == len(own)


@pytest.mark.parametrize("far", [1e3, 3e4, 1e6, 1e9, -1e3, -1e6, -1e9])
@pytest.mark.parametrize("axis", [0, 1])
def test_points_far_outside_neither_crash_nor_wrap_around(far: float, axis: int) -> None:
    points = standing()
    points[:, axis] += far
    assert not track(2, points).draw().any()
    # An arm that extends beyond the picture reaches only the edge on that side.
    points = np.full((75, 3), np.nan, np.float32)
    points[POINT["left_elbow"]] = (WIDTH / 2, HEIGHT / 2, 1)
    points[POINT["left_wrist"]] = points[POINT["left_elbow"]]
    points[POINT["left_wrist"], axis] = far
    drawn = np.moveaxis(track(1, points).draw()[0].max(axis=2), 1 - axis, 0)
    side, other = (drawn[-1], drawn[0]) if far > 0 else (drawn[0], drawn[-1])
    assert side.any() and not other.any()


def test_the_tensor_is_the_drawing() -> None:
    made = track(2)
    tensor = made.tensor(100, 50)
    assert tensor.shape == (2, 3, 100, 50)
    assert tensor.min() == -1 and tensor.max() <= 1
    pictures = ((tensor.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round().astype(np.uint8)
    np.testing.assert_array_equal(pictures, made.draw(100, 50))


# ---------------------------------------------------------------- dropout


def test_dropout_drops_whole_groups() -> None:
    made = track(200)
    dropped = np.isnan(made.dropped(np.random.default_rng(3), 0.2).points).all(axis=2)
    in_groups = set()
    for name, group in LIMB_GROUPS.items():
        of_group = dropped[:, list(group)]
        assert (of_group.all(axis=1) | ~of_group.any(axis=1)).all(), name
        assert 0.1 < of_group[:, 0].mean() < 0.3, name
        in_groups |= set(group)
    rest = sorted(set(range(75)) - in_groups)
    assert not dropped[:, rest].any()
    assert {"left_shoulder", "right_hip"} <= {NAMES[i] for i in rest}
    assert not np.isnan(made.points).any()


def test_dropout_depends_only_on_the_generator() -> None:
    made = track(50)
    a, b, c = (made.dropped(np.random.default_rng(seed), 0.3).points for seed in (7, 7, 8))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(np.isnan(a), np.isnan(c))


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_dropout_with_probabilities_0_and_1(probability: float, share: float) -> None:
    dropped = track(5).dropped(np.random.default_rng(0), probability)
    hands = dropped.points[:, [*range(*LEFT_HAND.indices(75)), *range(*RIGHT_HAND.indices(75))]]
    assert np.isnan(hands).mean() == share
    assert np.isfinite(dropped.points[:, POINT["left_hip"]]).all()
