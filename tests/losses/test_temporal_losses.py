"""Losses over time against shifts and masks whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from v2v.losses import (
    confidence,
    flow_loss,
    matte_loss,
    occlusion_loss,
    synthesised_share,
    warp_loss,
)
from v2v.losses._means import masked_mean
from v2v.warp import resize_flow


def steady(u: float, v: float, height: int = 16, width: int = 32, count: int = 1) -> Tensor:
    return torch.tensor([float(u), float(v)]).reshape(1, 2, 1, 1).repeat(count, 1, height, width)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def picture(count: int = 1, height: int = 16, width: int = 32, seed: int = 0) -> Tensor:
    return uniform(count, 3, height, width, seed=seed) * 2 - 1


# ---------------------------------------------------------------- the mean that all share


def test_each_sample_has_its_own_mean_and_equal_say() -> None:
    values = torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0, 9.0]).reshape(3, 1, 1, 2)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0]).reshape(3, 1, 1, 2)
    # Means 1 and 2, and 0 where the mask is empty.
    assert masked_mean(values, mask).item() == pytest.approx((1 + 2 + 0) / 3)
    assert masked_mean(values, None).item() == pytest.approx(28 / 6)


def test_all_channels_count_under_one_mask() -> None:
    values = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1).repeat(1, 1, 2, 2)
    mask = torch.zeros(1, 1, 2, 2)
    mask[..., 0, 0] = 1
    assert masked_mean(values, mask).item() == pytest.approx(2)


def test_soft_masks_weigh_and_specks_do_not_blow_up() -> None:
    values = torch.tensor([4.0, 8.0]).reshape(1, 1, 1, 2)
    assert masked_mean(values, torch.tensor([0.75, 0.25]).reshape(1, 1, 1, 2)).item() == 5
    speck = torch.tensor([1e-20, 0.0]).reshape(1, 1, 1, 2)
    assert masked_mean(values, speck).item() == pytest.approx(0, abs=1e-12)


def test_a_mask_of_another_shape_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="mask must be"):
        masked_mean(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
    with pytest.raises(AssertionError, match="mask must be"):
        flow_loss(steady(0, 0), steady(0, 0), torch.ones(1, 1, 8, 8))


# ---------------------------------------------------------------- confidence


def test_confidence_is_the_squared_distance_of_colours_against_the_threshold() -> None:
    now = torch.zeros(1, 3, 1, 4)
    before = torch.zeros(1, 3, 1, 4)
    before[0, :, 0, 1] = 0.08  # 3 * 0.0064 = 0.0192
    before[0, :, 0, 2] = 0.083  # 3 * 0.0069 = 0.0207
    before[0, 0, 0, 3] = 0.1  # 0.01: one colour alone may differ more
    assert confidence(now, before).flatten().tolist() == [1, 1, 0, 1]
    assert confidence(now, before, threshold=0.01).flatten().tolist() == [1, 0, 0, 0]
    assert confidence(now, before).shape == (1, 1, 1, 4)


def test_confidence_gives_no_gradient_and_is_float32() -> None:
    image = picture().requires_grad_()
    seen = confidence(image.bfloat16(), image.bfloat16())
    assert not seen.requires_grad and seen.dtype == torch.float32 and seen.all()


# ---------------------------------------------------------------- flow


def test_a_pixel_s_error_is_one_at_256() -> None:
    flow = steady(3, -1, 256, 256)
    assert flow_loss(flow, steady(2, -1, 256, 256)).item() == pytest.approx(0.5)  # mean of u and v
    assert flow_loss(flow, flow).item() == 0


@pytest.mark.parametrize("size", [(32, 64), (64, 128), (256, 512)])
def test_flow_loss_does_not_depend_on_the_size(size: tuple[int, int]) -> None:
    flow, reference = steady(2, 1, 64, 128), steady(-1, 3, 64, 128)
    here = flow_loss(resize_flow(flow, size), resize_flow(reference, size))
    torch.testing.assert_close(here, flow_loss(flow, reference))
    assert here.item() == pytest.approx((3 + 2) / 2 * 256 / math.sqrt(64 * 128))


def test_flow_learns_toward_the_reference_where_the_mask_is() -> None:
    flow = steady(0, 0).requires_grad_()
    reference = steady(2, -2).requires_grad_()
    mask = torch.zeros(1, 1, 16, 32)
    mask[..., :8, :] = 1
    flow_loss(flow, reference, mask).backward()
    assert flow.grad is not None and reference.grad is None
    assert (flow.grad[:, 0, :8] < 0).all() and (flow.grad[:, 1, :8] > 0).all()
    assert not flow.grad[:, :, 8:].any()


# ---------------------------------------------------------------- warp


def test_the_right_flow_costs_nothing_and_another_what_it_shows() -> None:
    before = picture(width=32)
    now = before.roll(-3, dims=-1)  # now(x) = before(x + 3), but for what rolled in
    mask = torch.zeros(1, 1, 16, 32)
    mask[..., :29] = 1
    assert warp_loss(before, steady(3, 0), now, mask).item() == pytest.approx(0, abs=1e-6)
    assert warp_loss(before, steady(3, 0), now).item() > 0.01, "rolled in, and not masked"
    ramp = (torch.arange(32.0) / 32).expand(1, 3, 16, 32)
    inside = torch.zeros(1, 1, 16, 32)
    inside[..., 4:28] = 1
    wrong = warp_loss(ramp, steady(2, 0), ramp, inside)
    assert wrong.item() == pytest.approx(2 / 32, abs=1e-6)


def test_warp_loss_moves_the_flow_toward_the_motion() -> None:
    across = torch.sin(torch.arange(32.0) / 5).expand(1, 3, 16, 32)
    now = torch.sin((torch.arange(32.0) + 1) / 5).expand(1, 3, 16, 32)
    flow = steady(0, 0).requires_grad_()
    mask = torch.zeros(1, 1, 16, 32)
    mask[..., 2:30] = 1
    for _ in range(200):
        (gradient,) = torch.autograd.grad(warp_loss(across, flow, now, mask), flow)
        flow = (flow - 0.01 * gradient.sign()).detach().requires_grad_()
    assert (flow[:, 0, :, 2:30].mean() - 1).abs() < 0.1


def test_generated_frames_learn_from_both_ends() -> None:
    before, now = picture().requires_grad_(), picture(seed=1).requires_grad_()
    warp_loss(before, steady(1, 0), now).backward()
    assert before.grad is not None and before.grad.any()
    assert now.grad is not None and now.grad.any()


# ---------------------------------------------------------------- occlusion


def test_occlusion_loss_is_the_cross_entropy() -> None:
    def loss(p: float, r: float) -> float:
        return occlusion_loss(torch.full((1, 1, 2, 2), p), torch.full((1, 1, 2, 2), r)).item()

    assert [loss(0.5, 0), loss(0.5, 1)] == pytest.approx([math.log(2)] * 2, rel=1e-4)
    assert loss(0.25, 1) == pytest.approx(math.log(4), rel=1e-2)
    assert [loss(0, 0), loss(1, 1)] == pytest.approx([0.001] * 2, rel=1e-2)
    assert [loss(1, 0), loss(0, 1)] == pytest.approx([math.log(1000)] * 2, rel=1e-4)
    assert loss(0.3, 0.3) < min(loss(0.25, 0.3), loss(0.35, 0.3)), "a probability is its best guess"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_surely_wrong_occlusion_can_still_learn(dtype: torch.dtype) -> None:
    for wrong, right in ((0.0, 1.0), (1.0, 0.0)):
        predicted = torch.full((1, 1, 2, 2), wrong, dtype=dtype, requires_grad=True)
        loss = occlusion_loss(predicted, torch.full((1, 1, 2, 2), right, dtype=dtype))
        loss.backward()
        assert predicted.grad is not None and loss.isfinite() and predicted.grad.isfinite().all()
        assert (predicted.grad.sign() == math.copysign(1, wrong - right)).all()


def test_each_picture_counts_by_how_near_it_is() -> None:
    real = torch.rand(2, 3, 16, 16) * 2 - 1
    off = (torch.rand(2, 3, 16, 16) > 0.5) * 1.0 - 0.5  # as wrong everywhere
    assert (synthesised_share(real, real + off, real) < 0.001).all()
    assert (synthesised_share(real, real, real + off) > 0.999).all()
    assert torch.allclose(synthesised_share(real, real + off, real - off), torch.tensor(0.5))
    assert torch.allclose(synthesised_share(real, real, real), torch.tensor(0.5))
    # Twice as wrong is four times the variance.
    share = synthesised_share(real, real + off, real + 2 * off)
    assert torch.allclose(share, torch.tensor(0.8), atol=1e-3)
    assert share.shape == (2, 1, 16, 16)


def test_the_share_blends_independent_errors_best() -> None:
    """No other mixture of two noisy pictures is nearer to the real one."""
    generator = torch.Generator().manual_seed(0)
    real = torch.zeros(1, 3, 64, 64)
    fine = 0.1 * torch.randn(real.shape, generator=generator)
    rough = 0.2 * torch.randn(real.shape, generator=generator)
    m = synthesised_share(real, fine, rough).mean().item()
    errors = {s: (s * fine + (1 - s) * rough).square().mean().item() for s in (m - 0.1, m, m + 0.1)}
    assert min(errors, key=errors.__getitem__) == m == pytest.approx(0.8, abs=0.03)


def test_the_share_is_local_and_without_gradient() -> None:
    real = torch.zeros(1, 3, 16, 16)
    moved = real.clone()
    moved[..., 8:] = 1  # the past does not show the right half
    made = torch.full_like(real, 0.1).requires_grad_()
    share = synthesised_share(real, made, moved)
    assert (share[..., :6] < 0.02).all() and (share[..., 10:] > 0.98).all()
    assert not share.requires_grad


def test_occlusion_loss_runs_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = occlusion_loss(torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 1, 2, 2))
    assert loss.dtype == torch.float32


# ---------------------------------------------------------------- matte


def test_matte_loss_is_the_share_of_wrong_pixels() -> None:
    foreground = torch.zeros(1, 1, 4, 4)
    foreground[..., :2] = 1
    assert matte_loss(foreground, foreground).item() == 0
    assert matte_loss(1 - foreground, foreground).item() == 1
    assert matte_loss(torch.ones(1, 1, 4, 4), foreground).item() == 0.5
    matte = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    matte_loss(matte, foreground).backward()
    assert matte.grad is not None
    assert torch.equal(matte.grad.sign(), 1 - 2 * foreground)


# ---------------------------------------------------------------- all of them

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
LOSSES: dict[str, Loss] = {  # of two pictures [B, 3, H, W] and a mask
    "flow": lambda a, b, mask: flow_loss(a[:, :2] * 5, b[:, :2] * 5, mask),
    "warp": lambda a, b, mask: warp_loss(a, b[:, :2] * 5, b, mask),
    "occlusion": lambda a, b, mask: occlusion_loss(a[:, :1].abs(), b[:, :1].abs(), mask),
    "matte": lambda a, b, mask: matte_loss(a[:, :1].abs(), b[:, :1].abs(), mask),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_may_be_split_and_shuffled_over_time_too(name: str, masked: bool) -> None:
    loss, a, b = LOSSES[name], picture(4), picture(4, seed=1)
    mask = (uniform(4, 1, 16, 32) < torch.tensor([0.9, 0.1, 0.5, 0.0])[:, None, None, None]).float()
    mask_or_none = mask if masked else None
    whole = loss(a, b, mask_or_none)
    singles = [loss(a[[i]], b[[i]], mask[[i]] if masked else None) for i in range(4)]
    torch.testing.assert_close(torch.stack(singles).mean(), whole)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = loss(a[order], b[order], mask[order] if masked else None)
    torch.testing.assert_close(shuffled, whole)


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_mask_hides_changes_nothing(name: str) -> None:
    loss, a, b = LOSSES[name], picture(2), picture(2, seed=1)
    mask = torch.ones(2, 1, 16, 32)
    mask[..., 5:9, 10:20] = 0
    expected = loss(a, b, mask)
    spoiled = a.clone()
    if name == "warp":  # its first picture is moved: spoil what it is compared with
        flow, now = b[:, :2] * 5, b.clone()
        now[..., 5:9, 10:20] = math.nan
        a = a.requires_grad_()
        seen = warp_loss(a, flow, now, mask)
    else:
        spoiled[..., 5:9, 10:20] = math.nan
        a = spoiled.requires_grad_()
        seen = loss(a, b, mask)
    assert torch.equal(seen, expected)
    seen.backward()
    assert a.grad is not None and a.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_mask_is_zero_with_a_zero_gradient(name: str) -> None:
    a = picture(2).requires_grad_()
    loss = LOSSES[name](a, picture(2, seed=1), torch.zeros(2, 1, 16, 32))
    loss.backward()
    assert loss.item() == 0 and a.grad is not None and not a.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_bf16_gives_a_finite_float32_loss(name: str) -> None:
    a, b, mask = picture(2, 64, 64), picture(2, 64, 64, seed=1), torch.ones(2, 1, 64, 64)
    loss = LOSSES[name](a.bfloat16(), b.bfloat16(), mask.bfloat16())
    assert loss.dtype == torch.float32 and loss.ndim == 0
    torch.testing.assert_close(loss, LOSSES[name](a, b, mask), rtol=2e-2, atol=1e-3)
