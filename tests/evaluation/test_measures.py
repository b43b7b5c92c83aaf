"""Measures on cases with known values: identical, shifted, frozen, blurred, flickering."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from v2v.evaluation.measures import (
    Motion,
    average,
    correlation,
    face_error,
    flicker,
    flow_difference,
    frame_difference,
    label_agreement,
    motion,
    ms_ssim,
    occluded,
    pose_error,
    psnr,
    psnr_within,
    sharpness,
    ssim,
    warping_error,
)
from v2v.signals.face import POINTS
from v2v.signals.pose import POINT
from v2v.warp import warp

COUNT, HEIGHT, WIDTH = 6, 48, 64


def texture(blur: float = 2.0, seed: int = 0, margin: int = 40) -> np.ndarray:
    """A random texture that flow can track, [H + 2 margin, W + 2 margin, 3] in [-1, 1]."""
    noise = np.random.default_rng(seed).random((HEIGHT + 2 * margin, WIDTH + 2 * margin, 3))
    smooth = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), blur)
    low, high = smooth.min(), smooth.max()
    return (2 * (smooth - low) / (high - low) - 1).astype(np.float32)


def moving(u: int, v: int, count: int = COUNT, margin: int = 40) -> Tensor:
    """A texture that moves by (u, v) pixels per frame, [T, 3, H, W]."""
    big = torch.from_numpy(texture(margin=margin)).permute(2, 0, 1)
    return torch.stack(
        [
            big[:, margin - v * t : margin - v * t + HEIGHT, margin - u * t :][..., :WIDTH]
            for t in range(count)
        ]
    )


def still(count: int = COUNT) -> Motion:
    """Zero flow without occlusion."""
    flow = torch.zeros(count - 1, 2, HEIGHT, WIDTH)
    return Motion(flow, torch.zeros(count - 1, 1, HEIGHT, WIDTH))


def blurred(frames: Tensor, sigma: float) -> Tensor:
    pictures = [cv2.GaussianBlur(f.permute(1, 2, 0).numpy(), (0, 0), sigma) for f in frames]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


# ---------------------------------------------------------------- pictures


def test_identical_frames_score_perfectly() -> None:
    frames = moving(1, 0)
    assert torch.isinf(psnr(frames, frames)).all()
    torch.testing.assert_close(ssim(frames, frames), torch.ones(COUNT))
    assert ssim(frames[:1], frames[:1]).shape == (1,)


@pytest.mark.parametrize(("error", "decibels"), [(0.2, 20.0), (0.02, 40.0), (2.0, 0.0)])
def test_psnr_has_known_values(error: float, decibels: float) -> None:
    """The range is 2: an error of 0.2 is a tenth of it, which gives 20 dB."""
    truth = torch.full((2, 3, 16, 16), -1.0)
    torch.testing.assert_close(psnr(truth + error, truth), torch.full((2,), decibels))


def test_psnr_gives_one_value_per_frame() -> None:
    truth = torch.zeros(2, 3, 16, 16)
    output = torch.stack([torch.full((3, 16, 16), 0.2), torch.full((3, 16, 16), 0.02)])
    torch.testing.assert_close(psnr(output, truth), torch.tensor([20.0, 40.0]))


def test_ssim_of_flat_frames_compares_their_luminance() -> None:
    """Only the luminance term remains: (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2, in [0, 1]."""
    a, b = 0.2, 0.6
    output, truth = (torch.full((2, 3, 24, 24), 2 * level - 1) for level in (a, b))
    expected = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
    torch.testing.assert_close(ssim(output, truth), torch.full((2,), expected), rtol=1e-3, atol=0)


def test_psnr_and_ssim_decrease_with_blur() -> None:
    truth = moving(2, 1)
    for measure in (psnr, ssim):
        values = [average(measure(blurred(truth, sigma), truth)) for sigma in (0.7, 1.5, 3.0)]
        assert values == sorted(values, reverse=True)


def test_ms_ssim_decreases_with_blur() -> None:
    truth = torch.nn.functional.interpolate(moving(2, 1, 2), (176, 192), mode="bilinear")
    torch.testing.assert_close(ms_ssim(truth, truth), torch.ones(2))
    assert ms_ssim(truth[:1], truth[:1]).shape == (1,)
    values = [average(ms_ssim(blurred(truth, sigma), truth)) for sigma in (2.0, 5.0)]
    assert 1 > values[0] > values[1]


def test_sharpness_of_a_ramp_and_of_a_blurred_edge() -> None:
    """Half the slope gives 0.5, and so does an edge over four pixels instead of one."""
    ramp = torch.linspace(-1, 1, 33).expand(2, 3, 16, 33)
    torch.testing.assert_close(sharpness(ramp / 2, ramp), torch.full((2,), 0.5))
    edge = torch.ones(1, 3, 16, 32)
    edge[..., :16] = -1
    slow = edge.clone()
    slow[..., 14:17] = torch.tensor([-0.5, 0.0, 0.5])
    torch.testing.assert_close(sharpness(slow, edge), torch.tensor([0.5]))
    assert torch.isnan(sharpness(edge, torch.zeros_like(edge))).all()


def test_psnr_and_sharpness_within_a_mask() -> None:
    """All errors and all edges lie in the left half."""
    truth = torch.zeros(1, 3, 8, 16)
    truth[..., :8] = torch.linspace(-1, 1, 8)
    output = truth.clone()
    output[..., :8] /= 2
    left = torch.zeros(1, 8, 16, dtype=torch.bool)
    left[..., :8] = True
    torch.testing.assert_close(
        psnr_within(output, truth, left), psnr(output[..., :8], truth[..., :8])
    )
    assert psnr_within(output, truth, ~left).isinf().all()
    assert psnr_within(output, truth, left & False).isnan().all()
    torch.testing.assert_close(sharpness(output, truth, left), torch.tensor([0.5]))
    assert sharpness(output, truth, ~left).isnan().all()  # flat


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_frames_of_different_sizes_raise_an_assertion(measure) -> None:
    with pytest.raises(AssertionError, match="against"):
        measure(torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 24))


# ---------------------------------------------------------------- motion


@pytest.mark.parametrize(("u", "v"), [(0, 0), (2, 0), (0, -1), (3, 2), (-2, 1)])
def test_motion_measures_a_shift(u: int, v: int) -> None:
    """A point that moves by (u, v) was at (-u, -v) in the previous frame."""
    found = motion(moving(u, v))
    assert len(found) == COUNT - 1
    inner = found.backward[..., 8:-8, 8:-8]
    error = inner - torch.tensor([-u, -v]).reshape(2, 1, 1)
    assert float(error.abs().mean()) < 0.05
    assert float(found.occluded[..., 8:-8, 8:-8].mean()) < 0.05


def test_pixels_that_enter_the_view_are_occluded() -> None:
    found = motion(moving(4, 0))
    assert float(found.occluded[..., :3].mean()) > 0.9  # pixels enter from the left


def test_motion_boundaries_are_occluded() -> None:
    """A square moves by 2 pixels in front of a static background, with ground-truth flow."""
    backward = torch.zeros(1, 2, 32, 32)
    backward[:, 0, 10:20, 10:20] = -2
    forward = torch.zeros(1, 2, 32, 32)
    forward[:, 0, 10:20, 8:18] = 2
    hidden = occluded(backward, forward)[0, 0].bool()
    assert hidden[12:18, 9].all() and hidden[12:18, 19].all()  # left and right edges
    assert hidden[9, 12:18].all() and hidden[19, 12:18].all()  # upper and lower edges
    assert not hidden[12:18, 12:17].any()  # the inside of the square
    assert not hidden[:6].any() and not hidden[:, 24:].any()  # the background


def test_smooth_motion_has_no_boundary() -> None:
    """A zoom by one percent: the flow gradient is small even for long vectors."""
    x = (torch.arange(32) - 15.5).expand(32, 32)
    flow = 0.01 * torch.stack([x, x.T])[None]
    assert not occluded(flow, -flow)[0, 0, 4:-4, 4:-4].any()


def test_the_real_video_s_own_warping_error_is_small() -> None:
    frames = moving(3, 2)
    assert float(warping_error(frames, motion(frames)).max()) < 1e-4


def test_a_frozen_video_has_known_motion_errors() -> None:
    real = moving(3, 2)
    frozen = real[:1].expand_as(real)
    flow = motion(real)
    assert float(warping_error(frozen, flow).min()) > 1e-3
    assert float(frame_difference(frozen).max()) == 0
    assert average(frame_difference(real)) > 0.02
    # Its flow is 0 while the real one's is |3| + |2|; DIS is inaccurate at the edges.
    values = flow_difference(motion(frozen), flow)
    torch.testing.assert_close(values, torch.full((COUNT - 1,), 5.0), rtol=0.1, atol=0)
    torch.testing.assert_close(flow_difference(flow, flow), torch.zeros(COUNT - 1))


def test_warping_error_favours_a_frozen_video_over_a_noisy_one() -> None:
    """Noise of standard deviation s costs 2 s^2, freezing nothing: never report it alone."""
    generator = torch.Generator().manual_seed(0)
    s = 0.05
    noise = 2 * s * torch.randn(COUNT, 3, HEIGHT, WIDTH, generator=generator)
    errors = warping_error(moving(0, 0) + noise, still())
    torch.testing.assert_close(errors, torch.full((COUNT - 1,), 2 * s**2), rtol=0.05, atol=0)
    assert float(warping_error(moving(0, 0), still()).max()) < 1e-12


@pytest.mark.parametrize("amplitude", [0.01, 0.1])
def test_flicker_has_a_known_amplitude(amplitude: float) -> None:
    """Brightness flickers by `amplitude` of the range: the warping error is its square."""
    sign = torch.tensor([(-1.0) ** t for t in range(COUNT)]).reshape(-1, 1, 1, 1)
    frames = 0.5 * moving(0, 0) + amplitude * sign  # ± amplitude in a range of 2
    expected = torch.full((COUNT - 1,), amplitude)
    torch.testing.assert_close(frame_difference(frames), expected)
    torch.testing.assert_close(warping_error(frames, still()), expected**2)


def test_flicker_measures_the_change_of_the_error() -> None:
    real = moving(2, 1)
    torch.testing.assert_close(flicker(real + 0.3, real), torch.zeros(COUNT - 1))  # constant error
    sign = torch.tensor([1.0, -1.0]).repeat(COUNT)[:COUNT, None, None, None]
    torch.testing.assert_close(flicker(real + 0.1 * sign, real), torch.full((COUNT - 1,), 0.1))
    frozen = real[:1].expand_as(real)
    torch.testing.assert_close(flicker(frozen, real), frame_difference(real))


def test_a_blurred_video_has_less_warping_error_than_a_flickering_one() -> None:
    real = moving(3, 2)
    flow = motion(real)
    noise = 0.1 * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    blurry = average(warping_error(blurred(real, 2.0), flow))
    assert blurry < 0.1 * average(warping_error(real + noise, flow))


def test_pixels_occluded_in_the_real_video_do_not_count() -> None:
    frames = torch.zeros(2, 3, HEIGHT, WIDTH)
    frames[1, :, :, : WIDTH // 2] = 1  # an error of 0.5 in the left half
    hidden = torch.zeros(1, 1, HEIGHT, WIDTH)
    flow = torch.zeros(1, 2, HEIGHT, WIDTH)
    torch.testing.assert_close(warping_error(frames, Motion(flow, hidden)), torch.tensor([0.125]))
    hidden[..., : WIDTH // 2] = 1
    assert float(warping_error(frames, Motion(flow, hidden))) == 0
    assert math.isnan(float(warping_error(frames, Motion(flow, torch.ones_like(hidden)))))


def test_warping_error_warps_along_the_flow() -> None:
    """A frame made by warping the previous one along a flow has no error under that flow."""
    first = moving(0, 0, 1)
    flow = torch.full((1, 2, HEIGHT, WIDTH), 1.5)
    frames = torch.cat([first, warp(first, flow)])
    flow_only = Motion(flow, torch.zeros(1, 1, HEIGHT, WIDTH))
    assert float(warping_error(frames, flow_only)) == pytest.approx(0, abs=1e-10)
    assert float(warping_error(frames, still(2))) > 1e-4


def test_averages_ignore_undefined_frames() -> None:
    assert average(np.array([1.0, np.nan, 3.0])) == 2
    assert math.isnan(average(np.array([np.nan])))
    assert average(torch.tensor([1.0, 2.0])) == 1.5


# ---------------------------------------------------------------- poses


def person(count: int = 8) -> np.ndarray:
    """A person with a torso of 100 pixels who moves right, [T, 75, 3]."""
    points = np.zeros((count, 75, 3), np.float32)
    points[..., :2] = np.random.default_rng(0).uniform(0, 200, (75, 2))
    for side, x in (("left", 120), ("right", 80)):
        points[:, POINT[f"{side}_shoulder"], :2] = (x, 50)
        points[:, POINT[f"{side}_hip"], :2] = (x, 150)
    points[..., 0] += np.arange(count)[:, None]
    points[..., 2] = 1
    return points


def test_identical_poses_have_no_error() -> None:
    error = pose_error(person(), person())
    assert (error.distance == 0).all() and (error.correct == 1).all() and (error.missed == 0).all()


def test_a_shifted_pose_has_a_known_error() -> None:
    moved = person()
    moved[..., 0] += 5
    error = pose_error(moved, person())
    np.testing.assert_allclose(error.distance, 0.05, rtol=1e-5)
    assert (error.correct == 1).all()
    # Shift a third of the 33 keypoints by 10 more pixels: beyond a tenth of the torso.
    moved[:, :11, 0] += 10
    error = pose_error(moved, person())
    np.testing.assert_allclose(error.distance, (22 * 0.05 + 11 * 0.15) / 33, rtol=1e-5)
    np.testing.assert_allclose(error.correct, 22 / 33)


def test_missed_people_are_counted() -> None:
    output = person()
    output[:2] = np.nan
    error = pose_error(output, person())
    assert average(error.missed) == 0.25
    assert np.isnan(error.distance[:2]).all() and (error.distance[2:] == 0).all()
    assert (error.correct[:2] == 0).all() and average(error.correct) == 0.75


def test_keypoints_not_visible_in_the_real_frames_do_not_count() -> None:
    truth, output = person(), person()
    truth[:, POINT["left_ankle"], 2] = 0.1  # hidden in the real frames
    output[:, POINT["left_ankle"], :2] += 1000
    truth[0] = np.nan  # nobody in the frame
    error = pose_error(output, truth)
    assert average(error.missed) == 0
    assert np.isnan(error.distance[0]) and np.isnan(error.correct[0])
    assert (error.distance[1:] == 0).all() and (error.correct[1:] == 1).all()


def test_the_unit_of_a_foreshortened_torso_is_clamped() -> None:
    truth = person()
    for side in ("left", "right"):
        truth[0, POINT[f"{side}_hip"], 1] = 51  # one pixel long
    output = truth.copy()
    output[..., 0] += 5
    np.testing.assert_allclose(pose_error(output, truth).distance[0], 0.1, rtol=1e-5)


def test_videos_without_people() -> None:
    nothing = np.full((4, 75, 3), np.nan, np.float32)
    assert average(pose_error(nothing, person(4)).missed) == 1
    assert np.isnan(pose_error(person(4), nothing).missed).all()
    assert math.isnan(average(pose_error(nothing, person(4)).distance))


# ---------------------------------------------------------------- faces


def face(opening: np.ndarray) -> np.ndarray:
    """A face with eyes 100 pixels apart and the given openness of mouth and lids, [T, 478, 3]."""
    points = np.ones((len(opening), POINTS, 3), np.float32)
    points[..., :2] = np.random.default_rng(0).uniform(0, 100, (POINTS, 2))
    corners = {33: (50, 50), 133: (80, 50), 362: (120, 50), 263: (150, 50), 78: (80, 120)}
    for point, place in (corners | {308: (120, 120)}).items():
        points[:, point, :2] = place
    lids = ((159, 145), (158, 153), (160, 144), (386, 374), (385, 380), (387, 373))
    for upper, lower in (*lids, (13, 14), (82, 87), (312, 317)):
        points[:, upper, :2], points[:, lower, :2] = (100, 80), (100, 80)
        points[:, lower, 1] += 20 * opening
    return points


def test_identical_faces_have_no_error() -> None:
    opening = np.linspace(0, 1, 9, dtype=np.float32)
    error = face_error(face(opening), face(opening))
    assert (error.distance == 0).all() and (error.missed == 0).all()
    assert average(error.eyes) == pytest.approx(1) and average(error.mouth) == pytest.approx(1)


def test_a_shifted_face_has_a_known_error() -> None:
    opening = np.linspace(0, 1, 9, dtype=np.float32)
    moved = face(opening)
    moved[..., :2] += (3, 4)
    np.testing.assert_allclose(face_error(moved, face(opening)).distance, 0.05, rtol=1e-5)


def test_an_opposite_mouth_motion_has_correlation_minus_one() -> None:
    opening = np.linspace(0, 1, 9, dtype=np.float32)
    error = face_error(face(1 - opening), face(opening))
    assert average(error.mouth) == pytest.approx(-1) and average(error.eyes) == pytest.approx(-1)
    assert (error.missed == 0).all()


def test_a_frozen_face_has_no_correlation() -> None:
    opening = np.linspace(0, 1, 9, dtype=np.float32)
    error = face_error(face(np.full(9, 0.5, np.float32)), face(opening))
    assert np.isnan(error.mouth).all() and np.isnan(error.eyes).all()


def test_missed_faces_are_counted() -> None:
    opening = np.linspace(0, 1, 8, dtype=np.float32)
    output = face(opening)
    output[[1, 5]] = np.nan
    error = face_error(output, face(opening))
    assert average(error.missed) == 0.25 and np.isnan(error.distance).sum() == 2
    assert average(error.mouth) == pytest.approx(1)


def test_correlation_needs_two_values() -> None:
    assert math.isnan(correlation(np.array([1.0, np.nan]), np.array([1.0, 2.0])))
    assert correlation(np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx(1)


# ---------------------------------------------------------------- label maps


def test_label_agreement_ignores_void() -> None:
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[0, :, 2:], truth[1] = 1, 255  # the second is all void
    truth[0, 0] = 255
    output = np.zeros((2, 4, 4), np.uint8)
    accuracy, overlap = label_agreement(output, truth)
    assert accuracy[0] == pytest.approx(0.5) and overlap[0] == pytest.approx((0.5 + 0) / 2)
    assert np.isnan(accuracy[1]) and np.isnan(overlap[1])
    accuracy, overlap = label_agreement(truth, truth)
    assert accuracy[0] == overlap[0] == 1
