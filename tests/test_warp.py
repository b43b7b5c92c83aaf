"""Flow arithmetic against shifts, rotations and pictures whose answer is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v2v.warp import compose, dense_motion, occlusion, resize_flow, twicing, warp


def steady(u: float, v: float, height: int = 24, width: int = 32, count: int = 1) -> torch.Tensor:
    return torch.tensor([float(u), float(v)]).reshape(1, 2, 1, 1).repeat(count, 1, height, width)


def picture(height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return noise * 2 - 1


def smooth_picture(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x, y = x / width, y / height
    return torch.stack([x * 2 - 1, torch.sin(4 * y), torch.cos(3 * x + 2 * y)])[None]


# ---------------------------------------------------------------- warp


@pytest.mark.parametrize("size", [(16, 16), (64, 128), (512, 256)])
def test_zero_flow_is_the_identity_to_the_bit(size: tuple[int, int]) -> None:
    image = picture(*size)
    assert torch.equal(warp(image, steady(0, 0, *size, count=2)), image)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (270, 480)])
def test_zero_flow_is_the_identity_at_sides_that_floats_cannot_divide(
    size: tuple[int, int],
) -> None:
    image = picture(*size)
    # A position is exact to about side * 2^-24, neighbours differ by 2 at most.
    warped = warp(image, steady(0, 0, *size, count=2))
    torch.testing.assert_close(warped, image, rtol=0, atol=2e-4)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize(("u", "v"), [(3, 0), (0, -2), (-5, 7), (40, 0)])
def test_a_whole_pixel_flow_is_a_shift(u: int, v: int, padding: str) -> None:
    image = picture(32, 64)
    warped = warp(image, steady(u, v, 32, 64, count=2), padding=padding)  # type: ignore[arg-type]
    x, y = torch.arange(64) + u, torch.arange(32) + v
    expected = image[:, :, y.clamp(0, 31)][..., x.clamp(0, 63)]
    if padding == "zeros":
        expected = expected * ((x >= 0) & (x < 64)) * ((y >= 0) & (y < 32))[:, None]
    assert torch.equal(warped, expected)


def test_half_a_pixel_is_the_mean_of_two() -> None:
    image = picture(8, 16)
    warped = warp(image, steady(0.5, 0, 8, 16, count=2))
    mean = (image[..., :-1] + image[..., 1:]) / 2
    torch.testing.assert_close(warped[..., :-1], mean, rtol=0, atol=1e-6)


def test_bicubic_keeps_what_bilinear_blurs() -> None:
    image = smooth_picture(32, 64)
    for flow in (steady(0, 0, 32, 64), steady(-5, 7, 32, 64)):
        torch.testing.assert_close(
            warp(image, flow, kind="bicubic"), warp(image, flow), rtol=0, atol=1e-5
        )  # fmt: skip
    stripes = torch.sin(torch.arange(64) * 0.8).expand(1, 3, 32, 64)
    left = {}
    for kind in ("bilinear", "bicubic"):
        moved = stripes
        for _ in range(8):  # there and back, as a frame is in eight that follow it
            moved = warp(moved, steady(0.5, 0, 32, 64), kind=kind)  # type: ignore[arg-type]
            moved = warp(moved, steady(-0.5, 0, 32, 64), kind=kind)  # type: ignore[arg-type]
        left[kind] = float(moved[..., 16:48].std() / stripes[..., 16:48].std())
    assert left["bilinear"] < 0.3 and left["bicubic"] > 0.8, left


@settings(deadline=None, max_examples=30)
@given(u=st.floats(-20, 20), v=st.floats(-20, 20))
def test_one_pixel_is_fetched_bilinearly(u: float, v: float) -> None:
    """Against the definition, pixel by pixel."""
    image = picture(6, 9)[:1].double()
    warped = warp(image, steady(u, v, 6, 9)).double()
    x = (torch.arange(9) + u).clamp(0, 8)
    y = (torch.arange(6) + v).clamp(0, 5)
    x0, y0 = x.floor().long(), y.floor().long()
    x1, y1 = (x0 + 1).clamp(max=8), (y0 + 1).clamp(max=5)
    a, b = x - x0, (y - y0)[:, None]
    top = image[:, :, y0][..., x0] * (1 - a) + image[:, :, y0][..., x1] * a
    bottom = image[:, :, y1][..., x0] * (1 - a) + image[:, :, y1][..., x1] * a
    torch.testing.assert_close(warped, top * (1 - b) + bottom * b, rtol=0, atol=2e-5)


def test_the_gradient_reaches_picture_and_flow() -> None:
    image = picture(12, 10).requires_grad_()
    flow = (steady(0.3, -0.6, 12, 10, count=2) + 0.01).requires_grad_()
    warp(image, flow).square().mean().backward()
    for tensor in (image, flow):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0
    # A plane that rises by 3 a pixel to the right changes by 3 for a pixel more of u.
    plane = (3.0 * torch.arange(10.0)).repeat(1, 1, 12, 1)
    flow = steady(0.3, 0, 12, 10).requires_grad_()
    warp(plane, flow)[..., 2:-2].sum().backward()
    torch.testing.assert_close(flow.grad[0, 0, :, 2:-2], torch.full((12, 6), 3.0))
    torch.testing.assert_close(flow.grad[0, 1], torch.zeros(12, 10), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_pictures_survive(kind: torch.dtype) -> None:
    """Positions must not be counted in bf16, whose 8 bits end at pixel 256."""
    image = picture(8, 1024).to(kind)
    warped = warp(image, steady(5, 0, 8, 1024, count=2).to(kind))
    assert warped.dtype == kind
    assert torch.equal(warped[..., :-5], image[..., 5:])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_flow_is_counted_in_full(kind: torch.dtype) -> None:
    still = steady(0, 0, 4, 600).to(kind)
    right = steady(3, 0, 4, 600).to(kind)
    for flow, hidden in ((still, []), (right, [597, 598, 599]), (-right, [0, 1, 2])):
        found = occlusion(flow, -flow)
        assert found.dtype == kind
        assert found[0, 0, 0].nonzero().flatten().tolist() == hidden
    for size in ((2, 300), (8, 1200)):
        resized = resize_flow(right, size)
        assert resized.dtype == kind
        torch.testing.assert_close(resized.float(), steady(3 * size[1] / 600, 0, *size))


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 3, 8, 8), (1, 1, 2, 8, 8)])
def test_what_is_not_a_flow_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match=r"flow must be \[B, 2, H, W\]"):
        warp(picture(8, 8)[:1], torch.zeros(shape))


# ---------------------------------------------------------------- resize


@pytest.mark.parametrize("size", [(48, 64), (12, 16), (48, 16), (24, 96), (7, 61)])
def test_resized_flow_is_scaled_by_each_axis_factor(size: tuple[int, int]) -> None:
    resized = resize_flow(steady(3, -2), size)
    assert resized.shape == (1, 2, *size)
    torch.testing.assert_close(resized, steady(3 * size[1] / 32, -2 * size[0] / 24, *size))


def test_resizing_to_the_same_size_is_the_identity() -> None:
    flow = torch.randn(1, 2, 24, 32)
    assert torch.equal(resize_flow(flow, (24, 32)), flow)


@pytest.mark.parametrize("size", [(60, 90), (120, 60)])
def test_warping_commutes_with_resizing(size: tuple[int, int]) -> None:
    """A resized flow warps a resized picture into the resized warped picture."""
    image = smooth_picture(40, 60)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 60), indexing="ij")
    flow = torch.stack([2 * x + y, 1.5 * y - x])[None]

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False)

    a, b = warp(resized(image), resize_flow(flow, size)), resized(warp(image, flow))
    assert (a - b)[..., 8:-8, 8:-8].abs().max() < 0.01


# ---------------------------------------------------------------- compose


def test_two_translations_add_up() -> None:
    both = compose(steady(2, -1.5), steady(-0.25, 4))
    torch.testing.assert_close(both, steady(1.75, 2.5))


def test_composed_rotations_are_the_rotation_by_the_sum() -> None:
    def rotation(degrees: float) -> torch.Tensor:
        y, x = torch.meshgrid(torch.arange(40.0) - 19.5, torch.arange(60.0) - 29.5, indexing="ij")
        a = torch.deg2rad(torch.tensor(degrees))
        return torch.stack(
            [a.cos() * x - a.sin() * y - x, a.sin() * x + a.cos() * y - y]
        )[None]  # fmt: skip

    gap = compose(rotation(4), rotation(3)) - rotation(7)
    assert gap[..., 8:-8, 8:-8].abs().max() < 1e-4


def test_composing_is_warping_twice() -> None:
    image = smooth_picture(40, 60)
    later, earlier = steady(1.5, 0.5, 40, 60), steady(-0.5, 2, 40, 60)
    once = warp(image, compose(later, earlier))
    twice = warp(warp(image, earlier), later)
    assert (once - twice)[..., 4:-4, 4:-4].abs().max() < 0.01


# ---------------------------------------------------------------- occlusion


def test_a_still_picture_is_visible_everywhere() -> None:
    still = steady(0, 0)
    hidden = occlusion(still, still)
    assert hidden.shape == (1, 1, 24, 32)
    assert not hidden.any()


def test_consistent_motion_is_visible_except_where_it_comes_from_outside() -> None:
    hidden = occlusion(steady(-3, 0), steady(3, 0))
    # Backward flow -3: columns 0 to 2 were left of the picture.
    assert hidden[..., :3].all() and not hidden[..., 3:].any()


@pytest.mark.parametrize(
    ("u", "v", "gone"),
    [
        (2, 0, (slice(None), slice(30, 32))),
        (0, -4, (slice(0, 4), slice(None))),
        (0, 1, (slice(23, 24), slice(None))),
    ],
)
def test_what_leaves_the_picture_is_occluded(u: int, v: int, gone: tuple[slice, slice]) -> None:
    hidden = occlusion(steady(u, v), steady(-u, -v))[0, 0].bool()
    expected = torch.zeros(24, 32, dtype=torch.bool)
    expected[gone] = True
    assert torch.equal(hidden, expected)


def test_what_a_square_uncovers_is_found() -> None:
    """A square moves 4 to the right over a still ground: 4 columns appear behind it."""
    backward, forward = steady(0, 0), steady(0, 0)
    backward[0, 0, 8:16, 14:22] = -4  # where the square is at t
    forward[0, 0, 8:16, 10:18] = 4  # and was at t-1
    hidden = occlusion(backward, forward)[0, 0].bool()
    expected = torch.zeros(24, 32, dtype=torch.bool)
    expected[8:16, 10:14] = True
    assert torch.equal(hidden, expected)


def test_tolerance_grows_with_the_motion() -> None:
    """A disagreement of a pixel counts on a still point and not on one that moves by 20."""
    assert occlusion(steady(0, 0), steady(1, 0))[..., 4:-4].all()
    assert not occlusion(steady(-20, 0, 24, 80), steady(21, 0, 24, 80))[..., 24:-4].any()


# ---------------------------------------------------------------- handles


def control_points(count: int = 40, *, radius: float = 4.0, seed: int = 0) -> torch.Tensor:
    """[2, count, 3] all over a picture of 24x32."""
    places = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed))
    places = places * torch.tensor([32.0, 24.0])
    return torch.cat([places, torch.full((2, count, 1), radius)], dim=-1)


def test_handles_that_stay_carry_nothing() -> None:
    assert torch.equal(
        dense_motion(control_points(), control_points(), (24, 32)), torch.zeros(2, 2, 24, 32)
    )


def test_handles_that_move_together_carry_what_is_among_them() -> None:
    now = control_points(200)
    flow = dense_motion(now, now + torch.tensor([3.0, -2.0, 0.0]), (24, 32))
    torch.testing.assert_close(flow, steady(3, -2, count=2), atol=0.1, rtol=0)


def test_a_handle_carries_what_is_near_and_no_more() -> None:
    now = torch.tensor([[[8.5, 12.5, 2.0]]])
    flow = dense_motion(now, now + torch.tensor([4.0, 0.0, 0.0]), (24, 32))[0, 0]
    assert flow.argmax() == 12 * 32 + 8
    assert flow[12, 8] == pytest.approx(4 / 1.1)  # its weight is 1 there, that of rest 0.1
    assert flow[12, 8] > flow[12, 10] > flow[12, 12] > 0.2
    assert flow[:, 20:].max() < 1e-3
    assert torch.allclose(flow[12, 8:12], flow[12:16, 8]) and not flow[12, 8:12].isnan().any()


def test_two_handles_share_what_lies_between() -> None:
    now = torch.tensor([[[4.5, 8.5, 3.0], [12.5, 8.5, 3.0]]])
    before = now + torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    u, v = dense_motion(now, before, (16, 16))[0, :, 8, 8]
    assert u == pytest.approx(v) and 0.7 < u < 1
    at_left = dense_motion(now, before, (16, 16))[0, :, 8, 4]
    assert at_left[0] > 1.6 and at_left[1] < 0.2


def test_twicing_takes_handles_where_they_belong() -> None:
    """Lips that part: handles nearer to one another than their radius move apart."""
    now = torch.tensor([[[8.5, 7.5, 2.0], [8.5, 9.5, 2.0]]])
    before = now + torch.tensor([[0.0, -2.0, 0.0], [0.0, 2.0, 0.0]])
    mean = dense_motion(now, before, (16, 16), background_weight=0.01)[0, 1, [7, 9], 8]
    drawn = twicing(now, before, background_weight=0.01)
    exact = dense_motion(now, drawn, (16, 16), background_weight=0.01)[0, 1, [7, 9], 8]
    assert mean.abs().max() < 1  # half of it
    torch.testing.assert_close(exact, torch.tensor([-2.0, 2.0]), atol=0.1, rtol=0)
    before[0, 1, 2] = 0  # not seen
    drawn = twicing(now, before, background_weight=0.01)
    alone = dense_motion(now, drawn, (16, 16), background_weight=0.01)[0, 1, 7, 8]
    assert alone == pytest.approx(-2, abs=0.1)
    both = twicing(now, torch.cat([before, now + 1]), background_weight=0.01)
    torch.testing.assert_close(both[:1], drawn)


def test_a_handle_that_is_missing_now_or_before_carries_nothing() -> None:
    for gone in ((0, 1), (1, 0), (0, 0)):
        now, before = control_points(), control_points() + torch.tensor([3.0, 0.0, 0.0])
        now[..., 2] *= gone[0]
        before[..., 2] *= gone[1]
        assert torch.equal(dense_motion(now, before, (24, 32)), torch.zeros(2, 2, 24, 32))
    assert dense_motion(now[:, :0], before[:, :0], (24, 32)).shape == (2, 2, 24, 32)


def test_handles_are_exact_where_all_else_is_not() -> None:
    now, before = control_points(), control_points() + torch.tensor([2.0, 1.0, 0.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dense_motion(now, before, (24, 32))
    assert torch.equal(found, dense_motion(now, before, (24, 32)))
    assert dense_motion(now.to("meta"), before.to("meta"), (24, 32)).shape == (2, 2, 24, 32)


def test_handles_on_a_larger_picture_carry_as_much_more() -> None:
    now, before = control_points(), control_points() + torch.tensor([2.0, 1.0, 0.0])
    small, large = dense_motion(now, before, (24, 32)), dense_motion(3 * now, 3 * before, (72, 96))
    torch.testing.assert_close(large[..., 1::3, 1::3], 3 * small, atol=1e-4, rtol=1e-4)
