"""Stored flow: precise to 1/64 pixel, and aligned with the frames under all transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from v2v.signals.flow import UNIT, FlowTrack, draw_flow, pack, unpack
from v2v.warp import warp

GRID = (12, 20)  # rows, columns
SIZE = (48, 80)  # of the frames, height and width: four times the grid


def some_flow(count: int = 2, seed: int = 0) -> FlowTrack:
    """A flow field that is affine in the position, so that resampling it inside is exact."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: GRID[0], : GRID[1]].astype(np.float32)
    planes = []
    for _ in range(count):
        a, b, c, d, e, f = rng.normal(0, 0.1, 6)
        planes.append(np.stack([a * x + b * y + 10 * c, d * x + e * y + 10 * f]))
    hidden = np.zeros((count, 1, *GRID), np.float32)
    hidden[:, :, 3:6, 8:14] = 1
    return FlowTrack(np.stack(planes).astype(np.float32), hidden, SIZE[1], SIZE[0])


# ---------------------------------------------------------------- storing


@settings(deadline=None)
@given(
    flow=st.lists(st.floats(-500, 500, width=32), min_size=12, max_size=12),
    hidden=st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6),
)
def test_packing_is_precise_to_half_a_unit(flow: list[float], hidden: list[float]) -> None:
    uv = np.array(flow, np.float32).reshape(2, 2, 3)
    occlusion = np.array(hidden, np.float32).reshape(2, 3)
    image = pack(uv, occlusion)
    assert image.shape == (6, 3) and image.dtype == np.uint16
    back_uv, back_occlusion = unpack(image[None])
    assert back_uv.shape == (1, 2, 2, 3) and back_occlusion.shape == (1, 1, 2, 3)
    assert np.abs(back_uv[0] - uv).max() <= 0.5 / UNIT + 1e-4
    assert 0.5 / UNIT == 1 / 128
    assert np.abs(back_occlusion[0, 0] - occlusion).max() <= 1e-5


@pytest.mark.parametrize("value", [0.0, 1 / 64, -1 / 64, 3.5, -511.984375])
def test_whole_units_are_exact(value: float) -> None:
    flow, _ = unpack(
        pack(np.full((2, 4, 4), value, np.float32), np.zeros((4, 4), np.float32))[None]
    )
    assert (flow == value).all()


@pytest.mark.parametrize("value", [600.0, 1e9, np.inf, -600.0, -1e9, -np.inf])
def test_values_out_of_range_are_clamped_and_do_not_wrap(value: float) -> None:
    flow, hidden = unpack(
        pack(np.full((2, 4, 4), value, np.float32), np.full((4, 4), value, np.float32))[None]
    )
    assert (np.sign(flow) == np.sign(value)).all()
    assert 511 < np.abs(flow).min() <= np.abs(flow).max() <= 512
    assert (hidden == (1 if value > 0 else 0)).all()


# ---------------------------------------------------------------- transforms


def at_frame_size(track: FlowTrack) -> NDArray[np.float32]:
    return track.tensor(track.height, track.width).numpy()


def test_the_tensor_is_in_pixels_of_its_own_size() -> None:
    """Compared with the affine field, evaluated at the centres of the finer pixels."""
    made = some_flow()
    tensor = made.tensor(SIZE[0], 2 * SIZE[1]).numpy()
    assert tensor.shape == (2, 3, SIZE[0], 2 * SIZE[1]) and tensor.dtype == np.float32
    rows, columns = (np.arange(SIZE[0]) + 0.5) / 4 - 0.5, (np.arange(160) + 0.5) / 8 - 0.5
    for plane, coarse, factor in ((0, 0, 8), (1, 1, 4)):
        field = made.flow[:, coarse]
        origin, right = field[:, 0, 0], field[:, 0, 1] - field[:, 0, 0]
        down = field[:, 1, 0] - field[:, 0, 0]
        exact = factor * (
            origin[:, None, None]
            + right[:, None, None] * columns
            + down[:, None, None] * rows[:, None]
        )
        inner = np.s_[:, 4:-4, 8:-8]
        np.testing.assert_allclose(tensor[:, plane][inner], exact[inner], atol=1e-3)
    np.testing.assert_array_equal(tensor[:, 2, 16:20, 72:104], 1)
    np.testing.assert_array_equal(tensor[:, 2, :8], 0)


def test_the_tensor_is_in_frame_pixels_by_default() -> None:
    made = some_flow()
    assert torch.equal(made.tensor(), made.tensor(*SIZE))
    scaled = made.scaled(100, 30)
    assert scaled.tensor().shape == (2, 3, 30, 100)
    assert torch.equal(scaled.tensor(), made.tensor(30, 100))
    assert torch.equal(scaled.scaled(SIZE[1], SIZE[0]).tensor(), made.tensor())


def test_a_crop_is_the_crop_of_the_tensor() -> None:
    made = some_flow()
    cut = made.cropped(10, 6, 40, 32)
    assert (cut.width, cut.height) == (40, 32)
    np.testing.assert_array_equal(at_frame_size(cut), at_frame_size(made)[..., 6:38, 10:50])
    again = cut.cropped(4, 2, 20, 10)
    np.testing.assert_array_equal(at_frame_size(again), at_frame_size(made)[..., 8:18, 14:34])


def test_flipping_mirrors_the_field_and_negates_u() -> None:
    made = some_flow()
    flipped = at_frame_size(made.flipped())
    mirrored = at_frame_size(made)[..., ::-1] * np.array([-1, 1, 1], np.float32)[:, None, None]
    np.testing.assert_allclose(flipped, mirrored, atol=1e-5)
    twice = made.flipped().flipped()
    np.testing.assert_array_equal(twice.flow, made.flow)
    np.testing.assert_array_equal(twice.occlusion, made.occlusion)


@pytest.mark.parametrize("change", ["flip", "crop", "scale"])
def test_transformed_flow_still_points_to_the_previous_frame(change: str) -> None:
    """Transform frames and flow alike: the flow still warps the previous frame to the current."""
    height, width = 96, 160
    y, x = np.mgrid[:height, :width].astype(np.float32)

    def picture(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.sin(x / 7) + np.cos(y / 9) + np.sin((x + y) / 11)

    u, v = 3 + x / 40, -2 + y / 50
    before, now = picture(x, y), picture(x + u, y + v)
    made = FlowTrack(
        np.stack([u, v])[None], np.zeros((1, 1, height, width), np.float32), width, height
    )
    frames = torch.from_numpy(np.stack([before, now]))[None]
    if change == "flip":
        made, frames = made.flipped(), frames.flip(-1)
    elif change == "crop":
        made, frames = made.cropped(20, 10, 100, 70), frames[..., 10:80, 20:120]
    else:
        made = made.scaled(120, 144)
        frames = torch.nn.functional.interpolate(
            frames, (144, 120), mode="bilinear", align_corners=False, antialias=True
        )
    warped = warp(frames[:, :1], made.tensor()[:, :2])
    error = (warped - frames[:, 1:])[..., 14:-14, 14:-14].abs()
    still = (frames[:, :1] - frames[:, 1:])[..., 14:-14, 14:-14].abs()
    assert error.mean() < 0.03 * still.mean()


def test_slices_select_frames() -> None:
    made = some_flow(5)
    assert len(made[1:4]) == 3
    np.testing.assert_array_equal(made[1:4].flow, made.flow[1:4])
    np.testing.assert_array_equal(made[1:4].tensor(), made.tensor()[1:4])


# ---------------------------------------------------------------- drawing


def test_colours_encode_direction_speed_and_occlusion() -> None:
    flow = np.zeros((2, 1, 5), np.float32)
    flow[:, 0, :4] = [[4, -4, 2, 0], [0, 0, 0, 0]]
    hidden = np.array([[0, 0, 0, 0, 1]], np.float32)
    right, left, slow, still, occluded = draw_flow(flow, hidden, fastest=4.0)[0].astype(int)
    assert right.argmax() == 0 and right[1:].max() < 5, "motion to the right is red"
    assert left[0] < 5 and min(left[1:]) > 200, "motion to the left has the opposite hue"
    assert abs(slow[0] - right[0] / 2) < 3
    assert not still.any()
    assert (occluded == 90).all()


def test_pictures_have_the_requested_size() -> None:
    made = some_flow(3)
    assert made.draw().shape == (3, *SIZE, 3)
    assert made.draw(30, 20).shape == (3, 30, 20, 3)
    assert made[:0].draw(30, 20).shape == (0, 30, 20, 3)
