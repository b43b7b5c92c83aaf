"""Masked means, shared by all losses.

Every loss is a mean over samples of per-sample means, so that the mean over two processes with one
sample each equals the loss of one process with both. Reductions run in float32, because the 8 bits
of bf16 are too few for a mean over a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over samples of each sample's mean, weighted by `mask`.

    A mask with a sum below 1 is divided by 1 instead of its sum: an empty mask gives 0, and tiny
    sums do not amplify.

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
    # Instead of values * mask: masked values may be infinite or NaN, and NaN * 0 is NaN.
    weighted = torch.where(mask > 0, values * mask, 0.0).sum(dim=(1, 2, 3))
    return (weighted / (values.shape[1] * mask.sum(dim=(1, 2, 3)).clamp_min(1.0))).mean()


def masked_l1(estimate: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over samples of the masked mean absolute difference; 0 for an empty mask.

    Masked pixels affect neither the value nor the gradient, even if they are NaN.

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
        # Before abs(), whose gradient at NaN is NaN even when multiplied by 0.
        difference = torch.where(mask > 0, difference, 0.0)
    return masked_mean(difference.abs(), mask)


def check_map(name: str, value: Tensor, like: Tensor) -> None:
    """Assert one channel and otherwise the shape of `like`."""
    expected = [like.shape[0], 1, *like.shape[2:]]
    assert list(value.shape) == expected, f"{name} must be {expected}, is {list(value.shape)}"
