"""Flow arithmetic compared with known results for shifts, rotations and images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v2v.warp import compose, dense_motion, occlusion, resize_flow, twicing, warp


def constant_flow(
    u: float, v: float, height: int = 24, width: int = 32, count: int = 1
) -> torch.Tensor:
    return torch.tensor([float(u), float(v)]).reshape(1, 2, 1, 1).repeat(count, 1, height, width)


def random_images(
    height: int = 24, width: int = 32, channels: int = 3, seed: int = 0
) -> torch.Tensor:
    noise = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return noise * 2 - 1


def smooth_image(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x, y = x / width, y / height
    return torch.stack([x * 2 - 1, torch.sin(4 * y), torch.cos(3 * x + 2 * y)])[None]


# ---------------------------------------------------------------- warp


@pytest.mark.parametrize("size", [(16, 16), (64, 128), (512, 256)])
def test_zero_flow_is_bit_exact_identity(size: tuple[int, int]) -> None:
    image = random_images(*size)
    assert torch.equal(warp(image, constant_flow(0, 0, *size, count=2)), image)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (270, 480)])
def test_zero_flow_is_the_identity_at_sides_that_are_no_powers_of_two(
    size: tuple[int, int],
) -> None:
    image = random_images(*size)
    # Positions are exact to about side * 2^-24, and neighbours differ by at most 2.
    warped = warp(image, constant_flow(0, 0, *size, count=2))
    torch.testing.assert_close(warped, image, rtol=0, atol=2e-4)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize(("u", "v"), [(3, 0), (0, -2), (-5, 7), (40, 0)])
def test_a_whole_pixel_flow_is_a_shift(u: int, v: int, padding: str) -> None:
    image = random_images(32, 64)
    warped = warp(image, constant_flow(u, v, 32, 64, count=2), padding=padding)  # type: ignore[arg-type]
    x, y = torch.arange(64) + u, torch.arange(32) + v
    expected = image[:, :, y.clamp(0, 31)][..., x.clamp(0, 63)]
    if padding == "zeros":
        expected = expected * ((x >= 0) & (x < 64)) * ((y >= 0) & (y < 32))[:, None]
    assert torch.equal(warped, expected)


def test_half_a_pixel_is_the_mean_of_two_neighbours() -> None:
    image = random_images(8, 16)
    warped = warp(image, constant_flow(0.5, 0, 8, 16, count=2))
    mean = (image[..., :-1] + image[..., 1:]) / 2
    torch.testing.assert_close(warped[..., :-1], mean, rtol=0, atol=1e-6)


def test_bicubic_preserves_detail_that_bilinear_blurs() -> None:
    image = smooth_image(32, 64)
    for flow in (constant_flow(0, 0, 32, 64), constant_flow(-5, 7, 32, 64)):
        torch.testing.assert_close(
            warp(image, flow, kind="bicubic"), warp(image, flow), rtol=0, atol=1e-5
        )  # fmt: skip
    stripes = torch.sin(torch.arange(64) * 0.8).expand(1, 3, 32, 64)
    contrast = {}
    for kind in ("bilinear", "bicubic"):
        warped = stripes
        for _ in range(8):  # back and forth, as over eight later frames
            warped = warp(warped, constant_flow(0.5, 0, 32, 64), kind=kind)  # type: ignore[arg-type]
            warped = warp(warped, constant_flow(-0.5, 0, 32, 64), kind=kind)  # type: ignore[arg-type]
        contrast[kind] = float(warped[..., 16:48].std() / stripes[..., 16:48].std())
    assert contrast["bilinear"] < 0.3 and contrast["bicubic"] > 0.8, contrast


@settings(deadline=None, max_examples=30)
@given(u=st.floats(-20, 20), v=st.floats(-20, 20))
def test_warp_samples_bilinearly(u: float, v: float) -> None:
    """Compared with the definition, pixel by pixel."""
    image = random_images(6, 9)[:1].double()
    warped = warp(image, constant_flow(u, v, 6, 9)).double()
    x = (torch.arange(9) + u).clamp(0, 8)
    y = (torch.arange(6) + v).clamp(0, 5)
    x0, y0 = x.floor().long(), y.floor().long()
    x1, y1 = (x0 + 1).clamp(max=8), (y0 + 1).clamp(max=5)
    a, b = x - x0, (y - y0)[:, None]
    top = image[:, :, y0][..., x0] * (1 - a) + image[:, :, y0][..., x1] * a
    bottom = image[:, :, y1][..., x0] * (1 - a) + image[:, :, y1][..., x1] * a
    torch.testing.assert_close(warped, top * (1 - b) + bottom * b, rtol=0, atol=2e-5)


def test_the_gradient_reaches_image_and_flow() -> None:
    image = random_images(12, 10).requires_grad_()
    flow = (constant_flow(0.3, -0.6, 12, 10, count=2) + 0.01).requires_grad_()
    warp(image, flow).square().mean().backward()
    for tensor in (image, flow):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0
    # On a ramp of 3 per pixel to the right, the derivative with respect to u is 3.
    plane = (3.0 * torch.arange(10.0)).repeat(1, 1, 12, 1)
    flow = constant_flow(0.3, 0, 12, 10).requires_grad_()
    warp(plane, flow)[..., 2:-2].sum().backward()
    torch.testing.assert_close(flow.grad[0, 0, :, 2:-2], torch.full((12, 6), 3.0))
    torch.testing.assert_close(flow.grad[0, 1], torch.zeros(12, 10), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_images_are_warped_exactly(kind: torch.dtype) -> None:
    """Positions must not be computed in bf16, whose 8 bits are exact only up to pixel 256."""
    image = random_images(8, 1024).to(kind)
    warped = warp(image, constant_flow(5, 0, 8, 1024, count=2).to(kind))
    assert warped.dtype == kind
    assert torch.equal(warped[..., :-5], image[..., 5:])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_flow_is_computed_in_float32(kind: torch.dtype) -> None:
    still = constant_flow(0, 0, 4, 600).to(kind)
    right = constant_flow(3, 0, 4, 600).to(kind)
    for flow, hidden in ((still, []), (right, [597, 598, 599]), (-right, [0, 1, 2])):
        found = occlusion(flow, -flow)
        assert found.dtype == kind
        assert found[0, 0, 0].nonzero().flatten().tolist() == hidden
    for size in ((2, 300), (8, 1200)):
        resized = resize_flow(right, size)
        assert resized.dtype == kind
        torch.testing.assert_close(resized.float(), constant_flow(3 * size[1] / 600, 0, *size))


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 3, 8, 8), (1, 1, 2, 8, 8)])
def test_other_shapes_than_flow_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match=r"flow must be \[B, 2, H, W\]"):
        warp(random_images(8, 8)[:1], torch.zeros(shape))


# ---------------------------------------------------------------- resize


@pytest.mark.parametrize("size", [(48, 64), (12, 16), (48, 16), (24, 96), (7, 61)])
def test_resized_flow_is_scaled_by_each_axis_factor(size: tuple[int, int]) -> None:
    resized = resize_flow(constant_flow(3, -2), size)
    assert resized.shape == (1, 2, *size)
    torch.testing.assert_close(resized, constant_flow(3 * size[1] / 32, -2 * size[0] / 24, *size))


def test_resizing_to_the_same_size_is_the_identity() -> None:
    flow = torch.randn(1, 2, 24, 32)
    assert torch.equal(resize_flow(flow, (24, 32)), flow)


@pytest.mark.parametrize("size", [(60, 90), (120, 60)])
def test_warping_commutes_with_resizing(size: tuple[int, int]) -> None:
    """Warping a resized image by a resized flow gives the resized warped image."""
    image = smooth_image(40, 60)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 60), indexing="ij")
    flow = torch.stack([2 * x + y, 1.5 * y - x])[None]

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False)

    a, b = warp(resized(image), resize_flow(flow, size)), resized(warp(image, flow))
    assert (a - b)[..., 8:-8, 8:-8].abs().max() < 0.01


# ---------------------------------------------------------------- compose


def test_two_translations_add_up() -> None:
    both = compose(constant_flow(2, -1.5), constant_flow(-0.25, 4))
    torch.testing.assert_close(both, constant_flow(1.75, 2.5))


def test_composed_rotations_are_the_rotation_by_the_sum() -> None:
    def rotation(degrees: float) -> torch.Tensor:
        y, x = torch.meshgrid(torch.arange(40.0) - 19.5, torch.arange(60.0) - 29.5, indexing="ij")
        a = torch.deg2rad(torch.tensor(degrees))
        return torch.stack(
            [a.cos() * x - a.sin() * y - x, a.sin() * x + a.cos() * y - y]
        )[None]  # fmt: skip

    difference = compose(rotation(4), rotation(3)) - rotation(7)
    assert difference[..., 8:-8, 8:-8].abs().max() < 1e-4


def test_composing_is_warping_twice() -> None:
    image = smooth_image(40, 60)
    later, earlier = constant_flow(1.5, 0.5, 40, 60), constant_flow(-0.5, 2, 40, 60)
    once = warp(image, compose(later, earlier))
    twice = warp(warp(image, earlier), later)
    assert (once - twice)[..., 4:-4, 4:-4].abs().max() < 0.01


# ---------------------------------------------------------------- occlusion


def test_zero_flow_is_visible_everywhere() -> None:
    still = constant_flow(0, 0)
    hidden = occlusion(still, still)
    assert hidden.shape == (1, 1, 24, 32)
    assert not hidden.any()


def test_consistent_motion_is_visible_except_where_it_enters_the_frame() -> None:
    hidden = occlusion(constant_flow(-3, 0), constant_flow(3, 0))
    # Backward flow -3: columns 0 to 2 were left of the frame.
    assert hidden[..., :3].all() and not hidden[..., 3:].any()


@pytest.mark.parametrize(
    ("u", "v", "hidden_pixels"),
    [
        (2, 0, (slice(None), slice(30, 32))),
        (0, -4, (slice(0, 4), slice(None))),
        (0, 1, (slice(23, 24), slice(None))),
    ],
)
def test_pixels_outside_the_previous_frame_are_occluded(
    u: int, v: int, hidden_pixels: tuple[slice, slice]
) -> None:
    hidden = occlusion(constant_flow(u, v), constant_flow(-u, -v))[0, 0].bool()
    expected = torch.zeros(24, 32, dtype=torch.bool)
    expected[hidden_pixels] = True
    assert torch.equal(hidden, expected)


def test_background_uncovered_by_a_square_is_occluded() -> None:
    """A square moves 4 to the right over a static background and uncovers 4 columns behind it."""
    backward, forward = constant_flow(0, 0), constant_flow(0, 0)
    backward[0, 0, 8:16, 14:22] = -4  # where the square is at t
    forward[0, 0, 8:16, 10:18] = 4  # and was at t-1
    hidden = occlusion(backward, forward)[0, 0].bool()
    expected = torch.zeros(24, 32, dtype=torch.bool)
    expected[8:16, 10:14] = True
    assert torch.equal(hidden, expected)


def test_the_tolerance_grows_with_the_motion() -> None:
    """An inconsistency of one pixel counts at a static point, but not where the flow is 20."""
    assert occlusion(constant_flow(0, 0), constant_flow(1, 0))[..., 4:-4].all()
    assert not occlusion(constant_flow(-20, 0, 24, 80), constant_flow(21, 0, 24, 80))[
        ..., 24:-4
    ].any()


# ---------------------------------------------------------------- control points


def control_points(count: int = 40, *, radius: float = 4.0, seed: int = 0) -> torch.Tensor:
    """[2, count, 3], spread over an image of 24x32."""
    positions = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed))
    positions = positions * torch.tensor([32.0, 24.0])
    return torch.cat([positions, torch.full((2, count, 1), radius)], dim=-1)


def test_static_control_points_give_zero_flow() -> None:
    assert torch.equal(
        dense_motion(control_points(), control_points(), (24, 32)), torch.zeros(2, 2, 24, 32)
    )


def test_control_points_that_move_together_give_a_constant_flow() -> None:
    now = control_points(200)
    flow = dense_motion(now, now + torch.tensor([3.0, -2.0, 0.0]), (24, 32))
    torch.testing.assert_close(flow, constant_flow(3, -2, count=2), atol=0.1, rtol=0)


def test_a_control_point_moves_its_neighbourhood_only() -> None:
    now = torch.tensor([[[8.5, 12.5, 2.0]]])
    flow = dense_motion(now, now + torch.tensor([4.0, 0.0, 0.0]), (24, 32))[0, 0]
    assert flow.argmax() == 12 * 32 + 8
    # The weight of the point is 1 there, that of the background 0.1.
    assert flow[12, 8] == pytest.approx(4 / 1.1)
    assert flow[12, 8] > flow[12, 10] > flow[12, 12] > 0.2
    assert flow[:, 20:].max() < 1e-3
    assert torch.allclose(flow[12, 8:12], flow[12:16, 8]) and not flow[12, 8:12].isnan().any()


def test_two_control_points_are_averaged_between_them() -> None:
    now = torch.tensor([[[4.5, 8.5, 3.0], [12.5, 8.5, 3.0]]])
    before = now + torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    u, v = dense_motion(now, before, (16, 16))[0, :, 8, 8]
    assert u == pytest.approx(v) and 0.7 < u < 1
    at_left = dense_motion(now, before, (16, 16))[0, :, 8, 4]
    assert at_left[0] > 1.6 and at_left[1] < 0.2


def test_twicing_moves_control_points_to_their_targets() -> None:
    """Opening lips: control points closer to one another than their radius move apart."""
    now = torch.tensor([[[8.5, 7.5, 2.0], [8.5, 9.5, 2.0]]])
    before = now + torch.tensor([[0.0, -2.0, 0.0], [0.0, 2.0, 0.0]])
    mean = dense_motion(now, before, (16, 16), background_weight=0.01)[0, 1, [7, 9], 8]
    adjusted = twicing(now, before, background_weight=0.01)
    exact = dense_motion(now, adjusted, (16, 16), background_weight=0.01)[0, 1, [7, 9], 8]
    assert mean.abs().max() < 1  # half of the motion
    torch.testing.assert_close(exact, torch.tensor([-2.0, 2.0]), atol=0.1, rtol=0)
    before[0, 1, 2] = 0  # missing
    adjusted = twicing(now, before, background_weight=0.01)
    alone = dense_motion(now, adjusted, (16, 16), background_weight=0.01)[0, 1, 7, 8]
    assert alone == pytest.approx(-2, abs=0.1)
    both = twicing(now, torch.cat([before, now + 1]), background_weight=0.01)
    torch.testing.assert_close(both[:1], adjusted)


def test_control_points_missing_in_either_frame_give_zero_flow() -> None:
    for present in ((0, 1), (1, 0), (0, 0)):
        now, before = control_points(), control_points() + torch.tensor([3.0, 0.0, 0.0])
        now[..., 2] *= present[0]
        before[..., 2] *= present[1]
        assert torch.equal(dense_motion(now, before, (24, 32)), torch.zeros(2, 2, 24, 32))
    assert dense_motion(now[:, :0], before[:, :0], (24, 32)).shape == (2, 2, 24, 32)


def test_dense_motion_is_float32_under_autocast() -> None:
    now, before = control_points(), control_points() + torch.tensor([2.0, 1.0, 0.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dense_motion(now, before, (24, 32))
    assert torch.equal(found, dense_motion(now, before, (24, 32)))
    assert dense_motion(now.to("meta"), before.to("meta"), (24, 32)).shape == (2, 2, 24, 32)


def test_dense_motion_scales_with_the_image() -> None:
    now, before = control_points(), control_points() + torch.tensor([2.0, 1.0, 0.0])
    small, large = dense_motion(now, before, (24, 32)), dense_motion(3 * now, 3 * before, (72, 96))
    torch.testing.assert_close(large[..., 1::3, 1::3], 3 * small, atol=1e-4, rtol=1e-4)
