"""Tests the camera tracker on synthetic backgrounds with known motion."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from v2v.homography import carry, corners_of
from v2v.preprocess.camera import Extractor
from v2v.preprocess.camera_tracking import CameraTracker, corners
from v2v.signals.camera import CameraTrack

HEIGHT, WIDTH, COUNT, RATE = 240, 320, 16, 25.0
FREE = np.full((HEIGHT, WIDTH), 255, np.uint8)
CENTRE = np.array([[1.0, 0, WIDTH / 2], [0, 1, HEIGHT / 2], [0, 0, 1]])


def wall(seed: int = 0) -> Any:
    """[480, 640] a wall of blobs, larger than the view of the first frame."""
    random = np.random.default_rng(seed)
    picture = np.full((2 * HEIGHT, 2 * WIDTH), 128, np.uint8)
    for _ in range(260):
        x, y, radius, grey = random.integers((0, 0, 4, 0), (2 * WIDTH, 2 * HEIGHT, 22, 256))
        cv2.circle(picture, (int(x), int(y)), int(radius), (int(grey),), -1, cv2.LINE_AA)
    return cv2.GaussianBlur(picture, (0, 0), 0.8)


def render(picture: Any, matrix: Any) -> Any:
    """Render a frame of the wall; `matrix` maps the first frame to it."""
    half = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    shift = np.array([[1.0, 0, -WIDTH / 2], [0, 1, -HEIGHT / 2], [0, 0, 1]])
    combined = np.linalg.inv(half) @ matrix @ shift @ half
    return cv2.warpPerspective(picture, combined, (WIDTH, HEIGHT), flags=cv2.INTER_AREA)


def around_the_middle(change: Any) -> Any:
    return CENTRE @ change @ np.linalg.inv(CENTRE)


def path(kind: str) -> Any:
    """[COUNT, 3, 3] homographies from the first frame to each frame."""
    found = []
    for t in range(COUNT):
        sway = np.sin(t / 3)
        if kind == "still":
            matrix = np.eye(3)
        elif kind == "translation":
            matrix = np.array([[1.0, 0, 2.3 * t], [0, 1, 4 * sway], [0, 0, 1]])
        elif kind == "rotation":
            angle = 0.12 * sway
            matrix = around_the_middle(
                np.array(
                    [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0],
                     [0, 0, 1]]
                )
            )  # fmt: skip
        elif kind == "zoom":
            matrix = around_the_middle(np.diag([1 + 0.02 * t, 1 + 0.02 * t, 1]))
        else:
            matrix = around_the_middle(
                np.array([[1.0, 0, 0], [0, 1, 0], [2e-4 * sway, 1e-4 * t, 1]])
            )
        found.append(matrix / matrix[2, 2])
    return np.stack(found)


def track_camera(pictures: Any, free: Any = None) -> tuple[Any, Any, CameraTracker]:
    """Matrices [T, 3, 3], residuals [T] and the tracker of the pictures."""
    tracker = CameraTracker(RATE)
    matrices, residuals = [], []
    for t, picture in enumerate(pictures):
        mask = FREE if free is None else free[t]
        if t == 0:
            tracker.begin(0, picture, mask)
            residual = 0.0
        else:
            residual, _ = tracker.step(t, picture, mask)
        matrices.append(tracker.matrix.copy())
        residuals.append(residual)
    return np.stack(matrices), np.array(residuals), tracker


def corner_error(found: Any, truth: Any) -> Any:
    """[T] largest error of a frame corner in pixels."""
    places = corners_of(WIDTH, HEIGHT)
    return np.linalg.norm(carry(found @ np.linalg.inv(truth), places) - places, axis=-1).max(-1)


@pytest.mark.parametrize("kind", ["still", "translation", "rotation", "zoom", "perspective"])
def test_camera_motion_is_estimated(kind: str) -> None:
    truth, picture = path(kind), wall()
    found, residual, _ = track_camera([render(picture, matrix) for matrix in truth])
    assert corner_error(found, truth).max() < 0.35
    assert residual.max() < 0.15


def test_returning_camera_matches_its_first_view() -> None:
    """After a pan far beyond the first view and back, no error has accumulated."""
    shifts = np.concatenate([np.arange(0, 240, 12.0), np.arange(240, -1, -12.0)])
    truth = np.stack([np.array([[1.0, 0, 120 - x], [0, 1, 0], [0, 0, 1]]) for x in shifts])
    truth = truth @ np.linalg.inv(truth[0])
    picture = wall(1)
    start = np.array([[1.0, 0, 120], [0, 1, 0], [0, 0, 1]])
    found, _, tracker = track_camera([render(picture, matrix @ start) for matrix in truth])
    assert len(tracker.keys) > 1  # for views beyond the first frame
    assert corner_error(found, truth)[-1] < 0.35


def test_moving_foreground_object_is_ignored() -> None:
    """An unmasked object larger than the person moves over a third of the frame."""
    truth, picture, bus = path("translation"), wall(), wall(2)
    pictures = []
    for t, matrix in enumerate(truth):
        frame = render(picture, matrix)
        left = 10 + 12 * t
        frame[60:200, left : left + 130] = bus[60:200, 100 : 100 + frame[0, left : left + 130].size]
        pictures.append(frame)
    found, _, _ = track_camera(pictures)
    assert corner_error(found, truth).max() < 1.0


def test_person_is_ignored() -> None:
    truth, picture, body = path("translation"), wall(), wall(3)
    pictures, free = [], []
    for t, matrix in enumerate(truth):
        frame, mask = render(picture, matrix), FREE.copy()
        place = np.s_[20:230, 60 + 4 * t : 220 + 4 * t]
        frame[place], mask[place] = body[20:230, 60:220], 0
        pictures.append(frame)
        free.append(mask)
    found, _, _ = track_camera(pictures, free)
    assert corner_error(found, truth).max() < 1.0


def test_residual_shows_motion_that_is_no_homography() -> None:
    """A rolling shutter exposes rows one after another during a shake."""
    picture, pictures = wall(), []
    rows = np.arange(HEIGHT) / HEIGHT
    for t in range(COUNT):
        bend = 6 * np.sin(t + 4 * rows)  # a shake faster than the shutter
        frame = render(picture, np.array([[1.0, 0, 2.0 * t], [0, 1, 0], [0, 0, 1]]))
        x = np.arange(WIDTH, dtype=np.float32)[None] - bend[:, None].astype(np.float32)
        y = np.repeat(np.arange(HEIGHT, dtype=np.float32)[:, None], WIDTH, axis=1)
        pictures.append(cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    _, residual, _ = track_camera(pictures)
    assert np.nanmedian(residual[1:]) > 0.3


def test_plain_wall_has_no_corners() -> None:
    noise = np.random.default_rng(0)
    grey = np.full((HEIGHT, WIDTH), 150.0)
    frame = np.clip(grey + noise.normal(0, 1.0, grey.shape), 0, 255).astype(np.uint8)
    assert len(corners(frame, FREE)) == 0


def test_warnings_tell_plain_walls_from_lost_tracking() -> None:
    count = 20
    made = CameraTrack(
        np.tile(np.eye(3), (count, 1, 1)), np.zeros(count, np.int64),
        np.full(count, np.nan, np.float32), WIDTH, HEIGHT,
    )  # fmt: skip
    (warning,) = Extractor._warnings(made, np.ones(count, np.bool_), [(0, count)])
    assert "too little texture in 100% of the frames" in warning
    (warning,) = Extractor._warnings(made, np.zeros(count, np.bool_), [(0, count)])
    assert "camera tracking failed in 20 of 20 frames" in warning


def test_camera_is_relocalised_after_a_fast_pan() -> None:
    picture = wall(4)
    blank = np.full((HEIGHT, WIDTH), 128, np.uint8)
    moved = np.array([[1.0, 0, 60], [0, 1, 10], [0, 0, 1]])
    pictures = [render(picture, np.eye(3))] * 2 + [blank] * 3 + [render(picture, moved)]
    found, residual, tracker = track_camera(pictures)
    assert np.isnan(residual[2:5]).all() and np.isfinite(residual[[0, 1, 5]]).all()
    assert corner_error(found[5:6], moved[None]).max() < 0.5
    assert tracker.reference == 0


def test_lost_camera_starts_a_new_background() -> None:
    other = [render(wall(9), matrix) for matrix in path("still")] * 2
    _, residual, tracker = track_camera([render(wall(8), np.eye(3))] * 2 + other)
    assert tracker.reference > 1
    assert np.isfinite(residual[-4:]).all()


# ---------------------------------------------------------------- the signal


def track(matrices: Any) -> CameraTrack:
    count = len(matrices)
    return CameraTrack(
        np.array(matrices), np.zeros(count, np.int64), np.zeros(count, np.float32), WIDTH, HEIGHT
    )


def test_scaling_cropping_and_flipping_transform_the_camera() -> None:
    """A background point stays consistent with the transformed frames."""
    made = track(path("perspective"))
    point = np.array([[100.0, 80.0]])
    truth = carry(made.homography, point)
    half = carry(made.scaled(WIDTH // 2, HEIGHT // 4).homography, point * (0.5, 0.25))
    np.testing.assert_allclose(half, truth * (0.5, 0.25))
    cut = carry(made.cropped(30, 20, 200, 180).homography, point - (30, 20))
    np.testing.assert_allclose(cut, truth - (30, 20))
    mirrored = carry(made.flipped().homography, (WIDTH - 100.0, 80.0) * np.ones((1, 2)))
    np.testing.assert_allclose(mirrored, np.stack([WIDTH - truth[..., 0], truth[..., 1]], axis=-1))
    np.testing.assert_allclose(made.flipped().flipped().homography, made.homography, atol=1e-9)


def test_motion_is_the_largest_corner_displacement() -> None:
    assert track(path("still")).motion().max() == 0
    moved = track([np.array([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]])])
    np.testing.assert_allclose(moved.motion(), 5)


def test_drawn_grid_is_fixed_to_the_background() -> None:
    pictures = track([np.eye(3), np.array([[1.0, 0, 7], [0, 1, 0], [0, 0, 1]])]).draw()
    step = WIDTH // 8
    assert pictures[0][:, step].any() and pictures[1][:, step + 7].any()
