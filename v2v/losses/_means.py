"""The means that all losses share.

Every loss is a mean over samples of per-sample means, so that the mean over two processes with
one sample each is the loss of one process with both. All are reduced in float32: bf16 has 8 bits,
and a mean over a picture needs more.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over samples of each sample's mean where `mask` is.

    A mask that covers less than one pixel in all weighs what it covers: an empty one gives 0, and
    nothing is divided by nearly nothing.

    Args:
        values: [B, C, H, W] float32.
        mask: [B, 1, H, W] in [0, 1]; None is 1 everywhere.

    Returns:
        [] float32.
    """
    assert values.ndim == 4, f"values must be [B, C, H, W], are {list(values.shape)}"
    if mask is None:
        return values.mean()
    check_map("mask", mask, values)
    mask = mask.detach().float()
    # Not values * mask: what is hidden may be infinite or NaN, and NaN * 0 is NaN.
    weighted = torch.where(mask > 0, values * mask, 0.0).sum(dim=(1, 2, 3))
    return (weighted / (values.shape[1] * mask.sum(dim=(1, 2, 3)).clamp_min(1.0))).mean()


def masked_l1(estimate: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over samples of the mean absolute difference where `mask` is; 0 for an empty mask.

    Hidden pixels reach neither the value nor the gradient, whatever they hold.

    Args:
        estimate: [B, C, H, W].
        reference: [B, C, H, W].
        mask: [B, 1, H, W] in [0, 1]; None is 1 everywhere.
    """
    assert estimate.shape == reference.shape, (
        f"{list(estimate.shape)} cannot be compared with {list(reference.shape)}"
    )
    difference = estimate.float() - reference.float()
    if mask is not None:
        check_map("mask", mask, estimate)
        # Here and not behind abs(), whose gradient at NaN is NaN even when multiplied by 0.
        difference = torch.where(mask > 0, difference, 0.0)
    return masked_mean(difference.abs(), mask)


def check_map(name: str, value: Tensor, like: Tensor) -> None:
    """One channel, and for the rest the shape of `like`."""
    expected = [like.shape[0], 1, *like.shape[2:]]
    assert list(value.shape) == expected, f"{name} must be {expected}, is {list(value.shape)}"
