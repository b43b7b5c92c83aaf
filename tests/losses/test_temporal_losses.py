"""Temporal losses compared with known values for shifts and masks."""

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


def constant_flow(u: float, v: float, height: int = 16, width: int = 32, count: int = 1) -> Tensor:
    return torch.tensor([float(u), float(v)]).reshape(1, 2, 1, 1).repeat(count, 1, height, width)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def noise(count: int = 1, height: int = 16, width: int = 32, seed: int = 0) -> Tensor:
    return uniform(count, 3, height, width, seed=seed) * 2 - 1


# ---------------------------------------------------------------- masked mean


def test_masked_means_of_samples_have_equal_weight() -> None:
    values = torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0, 9.0]).reshape(3, 1, 1, 2)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0]).reshape(3, 1, 1, 2)
    # The means are 1 and 2, and 0 for an empty mask.
    assert masked_mean(values, mask).item() == pytest.approx((1 + 2 + 0) / 3)
    assert masked_mean(values, None).item() == pytest.approx(28 / 6)


def test_one_mask_applies_to_all_channels() -> None:
    values = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1).repeat(1, 1, 2, 2)
    mask = torch.zeros(1, 1, 2, 2)
    mask[..., 0, 0] = 1
    assert masked_mean(values, mask).item() == pytest.approx(2)


def test_soft_masks_are_weights_and_tiny_ones_do_not_blow_up() -> None:
    values = torch.tensor([4.0, 8.0]).reshape(1, 1, 1, 2)
    assert masked_mean(values, torch.tensor([0.75, 0.25]).reshape(1, 1, 1, 2)).item() == 5
    tiny = torch.tensor([1e-20, 0.0]).reshape(1, 1, 1, 2)
    assert masked_mean(values, tiny).item() == pytest.approx(0, abs=1e-12)


def test_a_mask_of_another_shape_fails_an_assertion() -> None:
    with pytest.raises(AssertionError, match="mask must be"):
        masked_mean(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
    with pytest.raises(AssertionError, match="mask must be"):
        flow_loss(constant_flow(0, 0), constant_flow(0, 0), torch.ones(1, 1, 8, 8))


# ---------------------------------------------------------------- confidence


def test_confidence_thresholds_the_squared_colour_distance() -> None:
    now = torch.zeros(1, 3, 1, 4)
    before = torch.zeros(1, 3, 1, 4)
    before[0, :, 0, 1] = 0.08  # 3 * 0.0064 = 0.0192
    before[0, :, 0, 2] = 0.083  # 3 * 0.0069 = 0.0207
    before[0, 0, 0, 3] = 0.1  # 0.01: a single channel may differ more
    assert confidence(now, before).flatten().tolist() == [1, 1, 0, 1]
    assert confidence(now, before, threshold=0.01).flatten().tolist() == [1, 0, 0, 0]
    assert confidence(now, before).shape == (1, 1, 1, 4)


def test_confidence_gives_no_gradient_and_is_float32() -> None:
    image = noise().requires_grad_()
    weight = confidence(image.bfloat16(), image.bfloat16())
    assert not weight.requires_grad and weight.dtype == torch.float32 and weight.all()


# ---------------------------------------------------------------- flow


def test_an_error_of_one_pixel_costs_one_at_256() -> None:
    flow = constant_flow(3, -1, 256, 256)
    # The mean of u and v.
    assert flow_loss(flow, constant_flow(2, -1, 256, 256)).item() == pytest.approx(0.5)
    assert flow_loss(flow, flow).item() == 0


@pytest.mark.parametrize("size", [(32, 64), (64, 128), (256, 512)])
def test_flow_loss_does_not_depend_on_the_size(size: tuple[int, int]) -> None:
    flow, reference = constant_flow(2, 1, 64, 128), constant_flow(-1, 3, 64, 128)
    resized = flow_loss(resize_flow(flow, size), resize_flow(reference, size))
    torch.testing.assert_close(resized, flow_loss(flow, reference))
    assert resized.item() == pytest.approx((3 + 2) / 2 * 256 / math.sqrt(64 * 128))


def test_flow_gradients_point_to_the_reference_inside_the_mask() -> None:
    flow = constant_flow(0, 0).requires_grad_()
    reference = constant_flow(2, -2).requires_grad_()
    mask = torch.zeros(1, 1, 16, 32)
    mask[..., :8, :] = 1
    flow_loss(flow, reference, mask).backward()
    assert flow.grad is not None and reference.grad is None
    assert (flow.grad[:, 0, :8] < 0).all() and (flow.grad[:, 1, :8] > 0).all()
    assert not flow.grad[:, :, 8:].any()


# ---------------------------------------------------------------- warp


def test_correct_flow_costs_nothing_and_wrong_flow_its_error() -> None:
    before = noise(width=32)
    now = before.roll(-3, dims=-1)  # now(x) = before(x + 3), except in the wrapped columns
    mask = torch.zeros(1, 1, 16, 32)
    mask[..., :29] = 1
    assert warp_loss(before, constant_flow(3, 0), now, mask).item() == pytest.approx(0, abs=1e-6)
    assert warp_loss(before, constant_flow(3, 0), now).item() > 0.01, (
        "unmasked wrapped columns must cost"
    )
    ramp = (torch.arange(32.0) / 32).expand(1, 3, 16, 32)
    inside = torch.zeros(1, 1, 16, 32)
    inside[..., 4:28] = 1
    wrong = warp_loss(ramp, constant_flow(2, 0), ramp, inside)
    assert wrong.item() == pytest.approx(2 / 32, abs=1e-6)


def test_descent_on_the_warp_loss_finds_the_motion() -> None:
    across = torch.sin(torch.arange(32.0) / 5).expand(1, 3, 16, 32)
    now = torch.sin((torch.arange(32.0) + 1) / 5).expand(1, 3, 16, 32)
    flow = constant_flow(0, 0).requires_grad_()
    mask = torch.zeros(1, 1, 16, 32)
    mask[..., 2:30] = 1
    for _ in range(200):
        (gradient,) = torch.autograd.grad(warp_loss(across, flow, now, mask), flow)
        flow = (flow - 0.01 * gradient.sign()).detach().requires_grad_()
    assert (flow[:, 0, :, 2:30].mean() - 1).abs() < 0.1


def test_warp_loss_has_gradients_for_both_frames() -> None:
    before, now = noise().requires_grad_(), noise(seed=1).requires_grad_()
    warp_loss(before, constant_flow(1, 0), now).backward()
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
    assert loss(0.3, 0.3) < min(loss(0.25, 0.3), loss(0.35, 0.3)), (
        "the loss must be smallest at the reference probability"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saturated_wrong_occlusion_still_gets_gradient(dtype: torch.dtype) -> None:
    for wrong, right in ((0.0, 1.0), (1.0, 0.0)):
        predicted = torch.full((1, 1, 2, 2), wrong, dtype=dtype, requires_grad=True)
        loss = occlusion_loss(predicted, torch.full((1, 1, 2, 2), right, dtype=dtype))
        loss.backward()
        assert predicted.grad is not None and loss.isfinite() and predicted.grad.isfinite().all()
        assert (predicted.grad.sign() == math.copysign(1, wrong - right)).all()


def test_the_synthesised_share_follows_the_inverse_squared_errors() -> None:
    real = torch.rand(2, 3, 16, 16) * 2 - 1
    error = (torch.rand(2, 3, 16, 16) > 0.5) * 1.0 - 0.5  # the same magnitude everywhere
    assert (synthesised_share(real, real + error, real) < 0.001).all()
    assert (synthesised_share(real, real, real + error) > 0.999).all()
    assert torch.allclose(synthesised_share(real, real + error, real - error), torch.tensor(0.5))
    assert torch.allclose(synthesised_share(real, real, real), torch.tensor(0.5))
    # Twice the error is four times the variance.
    share = synthesised_share(real, real + error, real + 2 * error)
    assert torch.allclose(share, torch.tensor(0.8), atol=1e-3)
    assert share.shape == (2, 1, 16, 16)


def test_the_synthesised_share_is_the_best_blend_of_independent_errors() -> None:
    """No other mixture of two noisy frames is closer to the real one."""
    generator = torch.Generator().manual_seed(0)
    real = torch.zeros(1, 3, 64, 64)
    fine = 0.1 * torch.randn(real.shape, generator=generator)
    rough = 0.2 * torch.randn(real.shape, generator=generator)
    m = synthesised_share(real, fine, rough).mean().item()
    errors = {s: (s * fine + (1 - s) * rough).square().mean().item() for s in (m - 0.1, m, m + 0.1)}
    assert min(errors, key=errors.__getitem__) == m == pytest.approx(0.8, abs=0.03)


def test_the_synthesised_share_is_local_and_has_no_gradient() -> None:
    real = torch.zeros(1, 3, 16, 16)
    warped = real.clone()
    warped[..., 8:] = 1  # the previous frame does not show the right half
    synthesised = torch.full_like(real, 0.1).requires_grad_()
    share = synthesised_share(real, synthesised, warped)
    assert (share[..., :6] < 0.02).all() and (share[..., 10:] > 0.98).all()
    assert not share.requires_grad


def test_occlusion_loss_runs_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = occlusion_loss(torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 1, 2, 2))
    assert loss.dtype == torch.float32


# ---------------------------------------------------------------- matte


def test_matte_loss_is_the_fraction_of_wrong_pixels() -> None:
    foreground = torch.zeros(1, 1, 4, 4)
    foreground[..., :2] = 1
    assert matte_loss(foreground, foreground).item() == 0
    assert matte_loss(1 - foreground, foreground).item() == 1
    assert matte_loss(torch.ones(1, 1, 4, 4), foreground).item() == 0.5
    matte = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    matte_loss(matte, foreground).backward()
    assert matte.grad is not None
    assert torch.equal(matte.grad.sign(), 1 - 2 * foreground)


# ---------------------------------------------------------------- all losses

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
LOSSES: dict[str, Loss] = {  # of two frames [B, 3, H, W] and a mask
    "flow": lambda a, b, mask: flow_loss(a[:, :2] * 5, b[:, :2] * 5, mask),
    "warp": lambda a, b, mask: warp_loss(a, b[:, :2] * 5, b, mask),
    "occlusion": lambda a, b, mask: occlusion_loss(a[:, :1].abs(), b[:, :1].abs(), mask),
    "matte": lambda a, b, mask: matte_loss(a[:, :1].abs(), b[:, :1].abs(), mask),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("masked", [True, False])
def test_the_loss_does_not_depend_on_batch_split_or_order(name: str, masked: bool) -> None:
    loss, a, b = LOSSES[name], noise(4), noise(4, seed=1)
    mask = (uniform(4, 1, 16, 32) < torch.tensor([0.9, 0.1, 0.5, 0.0])[:, None, None, None]).float()
    mask_or_none = mask if masked else None
    whole = loss(a, b, mask_or_none)
    singles = [loss(a[[i]], b[[i]], mask[[i]] if masked else None) for i in range(4)]
    torch.testing.assert_close(torch.stack(singles).mean(), whole)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = loss(a[order], b[order], mask[order] if masked else None)
    torch.testing.assert_close(shuffled, whole)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_pixels_do_not_affect_the_loss(name: str) -> None:
    loss, a, b = LOSSES[name], noise(2), noise(2, seed=1)
    mask = torch.ones(2, 1, 16, 32)
    mask[..., 5:9, 10:20] = 0
    expected = loss(a, b, mask)
    corrupted = a.clone()
    if name == "warp":  # its first frame is warped: corrupt the frame that it is compared with
        flow, now = b[:, :2] * 5, b.clone()
        now[..., 5:9, 10:20] = math.nan
        a = a.requires_grad_()
        found = warp_loss(a, flow, now, mask)
    else:
        corrupted[..., 5:9, 10:20] = math.nan
        a = corrupted.requires_grad_()
        found = loss(a, b, mask)
    assert torch.equal(found, expected)
    found.backward()
    assert a.grad is not None and a.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_mask_is_zero_with_a_zero_gradient(name: str) -> None:
    a = noise(2).requires_grad_()
    loss = LOSSES[name](a, noise(2, seed=1), torch.zeros(2, 1, 16, 32))
    loss.backward()
    assert loss.item() == 0 and a.grad is not None and not a.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_bf16_gives_a_finite_float32_loss(name: str) -> None:
    a, b, mask = noise(2, 64, 64), noise(2, 64, 64, seed=1), torch.ones(2, 1, 64, 64)
    loss = LOSSES[name](a.bfloat16(), b.bfloat16(), mask.bfloat16())
    assert loss.dtype == torch.float32 and loss.ndim == 0
    torch.testing.assert_close(loss, LOSSES[name](a, b, mask), rtol=2e-2, atol=1e-3)
