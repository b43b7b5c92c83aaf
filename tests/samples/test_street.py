"""Tests that the street's flow, occlusion, labels and instances match its frames."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from v2v.samples import street
from v2v.samples.street import StreetFrame

ROAD, SIDEWALK, BUILDING, SKY, PERSON, CAR = 7, 8, 11, 23, 24, 26


@pytest.fixture(scope="module")
def drive() -> list[StreetFrame]:
    return list(street.frames(count=24))


def _grid(frame: StreetFrame) -> np.ndarray:
    height, width = frame.labels.shape
    return np.stack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)


def _warped(image: np.ndarray, frame: StreetFrame, interpolation: int) -> np.ndarray:
    x, y = _grid(frame) + frame.flow
    return cv2.remap(image, x, y, interpolation, borderMode=cv2.BORDER_REPLICATE)


def test_frames_have_the_documented_shapes_and_types(drive):
    for frame in drive:
        assert frame.rgb.shape == (256, 512, 3) and frame.rgb.dtype == np.uint8
        assert frame.labels.shape == (256, 512) and frame.labels.dtype == np.uint8
        assert frame.instances.shape == (256, 512) and frame.instances.dtype == np.uint16
        assert frame.flow.shape == (2, 256, 512) and frame.flow.dtype == np.float32
        assert frame.occlusion.shape == (256, 512) and frame.occlusion.dtype == np.float32
        assert np.isfinite(frame.flow).all()
        assert frame.occlusion.min() >= 0 and frame.occlusion.max() <= 1


def test_first_frame_has_zero_flow_and_full_occlusion(drive):
    assert not drive[0].flow.any()
    assert (drive[0].occlusion == 1).all()


def test_frames_depend_on_the_seed_but_not_the_count(drive):
    for one, other in zip(street.frames(count=3), drive, strict=False):
        for name in ("rgb", "labels", "instances", "flow", "occlusion"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
    (other_street,) = street.frames(count=1, seed=1)
    assert not np.array_equal(other_street.rgb, drive[0].rgb)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_warping_the_previous_frame_gives_the_current_one(seed, drive):
    frames = drive if seed == 0 else list(street.frames(count=8, seed=seed))
    for previous, frame in zip(frames, frames[1:], strict=False):
        visible = frame.occlusion < 0.5
        now = frame.rgb.astype(float)
        warped = np.abs(_warped(previous.rgb, frame, cv2.INTER_LINEAR) - now)[visible].mean()
        still = np.abs(previous.rgb - now)[visible].mean()
        assert warped < 4
        assert still > 2 * warped
        assert 0.001 < 1 - visible.mean() < 0.15


def test_visible_points_keep_their_label_and_instance(drive):
    for previous, frame in zip(drive, drive[1:], strict=False):
        visible = frame.occlusion == 0
        for name in ("labels", "instances"):
            before = _warped(getattr(previous, name), frame, cv2.INTER_NEAREST)
            same = before == getattr(frame, name)
            # Regions of one plane (road, pavement) meet without occlusion: edges may be rounded.
            assert same[visible].mean() > 0.995, name


def test_points_outside_the_previous_frame_are_occluded(drive):
    for frame in drive[1:]:
        x, y = _grid(frame) + frame.flow
        outside = (x < -1) | (y < -1) | (x > 512) | (y > 256)
        assert (frame.occlusion[outside] == 1).all()


def test_road_flow_matches_the_pinhole_camera():
    fps, height, width = 15.0, 64, 128
    previous, frame = street.frames(count=2, height=height, width=width, fps=fps)
    # In the middle column, below the horizon and its sway, the road moves straight towards the
    # camera: depth = focal * eye / (y - horizon), and it was 6 / fps metres farther away before.
    focal, horizon, eye = 0.62 * width, 0.46 * height, 1.45
    y = np.arange(int(horizon) + 8, height - 2)
    column = width // 2
    assert (frame.labels[y, column] == ROAD).all()
    depth = focal * eye / (y - horizon)
    expected = horizon + focal * eye / (depth + 6.0 / fps) - y
    np.testing.assert_allclose(frame.flow[1, y, column], expected, atol=0.15)


def test_labels_and_instances_follow_cityscapes(drive):
    labels = np.stack([frame.labels for frame in drive])
    instances = np.stack([frame.instances for frame in drive])
    assert {ROAD, SIDEWALK, BUILDING, SKY, PERSON, CAR} <= set(np.unique(labels).tolist())
    has_instances = np.isin(labels, (PERSON, CAR))
    assert (instances[has_instances] // 1000 == labels[has_instances]).all()
    assert (instances[~has_instances] == labels[~has_instances]).all()
    assert len(np.unique(instances[labels == CAR])) > 5
    assert (labels == ROAD).mean() > 0.1
