"""All arithmetic on optical flow.

Shapes: B any number of leading axes folded to one, C channels, H height, W width. Flow is
[B, 2, H, W] in pixels, u to the right and v down, backward: for a flow from t to t-1,
`frame_t(p) ~ frame_{t-1}(p + flow(p))`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp import is_autocast_available


def warp(
    image: Tensor,
    flow: Tensor,
    *,
    padding: Literal["border", "zeros"] = "border",
    kind: Literal["bilinear", "bicubic"] = "bilinear",
) -> Tensor:
    """Sample `image(p + flow(p))` for every pixel p.

    Zero flow is the identity and a whole-pixel flow a plain shift: exactly if the sides are powers
    of two, otherwise up to the rounding of positions in float32 (1e-4 pixel at 1080p).

    Args:
        image: [B, C, H, W].
        flow: [B, 2, H, W] pixels.
        padding: the values outside the image.
        kind: interpolation. Bicubic blurs less, which matters for pictures that are warped
            repeatedly, but may overshoot, so it does not suit masks.

    >>> image = torch.arange(4.0).reshape(1, 1, 1, 4)
    >>> flow = torch.zeros(1, 2, 1, 4); flow[:, 0] = 1
    >>> warp(image, flow)
    tensor([[[[1., 2., 3., 3.]]]])
    """
    _check_flow(flow)
    height, width = flow.shape[-2:]
    # grid_sample normalises coordinates: with align_corners=False, -1 and 1 are the outer edges of
    # the outer pixels, so pixel x lies at (2x + 1) / width - 1. In fp32: bf16 has 8 bits.
    flow = flow.float()
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    warped = F.grid_sample(
        image.float(), grid, mode=kind, padding_mode=padding, align_corners=False
    )
    return warped.to(image.dtype)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample flow to another grid, and scale u by the width ratio and v by the height ratio."""
    _check_flow(flow)
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    shrink = size[0] < height or size[1] < width
    # In fp32: PyTorch has no antialiasing of half precision on a CPU.
    resized = F.interpolate(
        flow.float(), size, mode="bilinear", align_corners=False, antialias=shrink
    )
    factor = torch.tensor([size[1] / width, size[0] / height], device=flow.device)
    return (resized * factor[:, None, None]).to(flow.dtype)


def moved(frame: Tensor, flow: Tensor) -> Tensor:
    """A frame in [-1, 1], warped by a flow [B, 2, H, W] as in the generator.

    Bicubic, because pixels are warped again in every later frame; clamped against overshoot.
    """
    return warp(frame, flow, kind="bicubic").clamp(-1, 1)


BACKGROUND_WEIGHT = 0.1  # of zero motion; a control point weighs 1 at its own position


def dense_motion(
    now: Tensor,
    before: Tensor,
    size: tuple[int, int],
    *,
    background_weight: float = BACKGROUND_WEIGHT,
) -> Tensor:
    """The backward flow implied by control points, which move the pixels around them.

    A weighted mean of the displacements of the control points and of zero motion for the
    background. Each control point is weighted by a Gaussian around its current position (the dense
    motion of arXiv 2003.00196, equation 4, with fixed instead of learned weights).

    Args:
        now, before: [B, K, 3] x, y, radius (standard deviation of the Gaussian) in pixels; radius
            0 if not visible. A point that is missing in either has no effect.
        size: (H, W).
        background_weight: the weight of zero motion. If it is small, pixels far from all control
            points move with the nearest one.

    Returns:
        [B, 2, H, W].

    >>> now = torch.tensor([[[2.0, 0.5, 1.0]]])
    >>> flow = dense_motion(now, now + torch.tensor([3.0, 0.0, 0.0]), (1, 8))
    >>> [round(u, 1) for u in flow[0, 0, 0].tolist()]
    [2.3, 2.7, 2.7, 2.3, 0.9, 0.1, 0.0, 0.0]
    """
    with _without_autocast(now):
        now, before = now.float(), before.float()
        visible = (now[..., 2] > 0) & (before[..., 2] > 0)
        displacement = torch.where(visible[..., None], before[..., :2] - now[..., :2], 0)

        def axis_weights(axis: int, length: int) -> Tensor:
            centres = torch.arange(length, device=now.device) + 0.5
            return _gaussian((centres - now[..., axis, None]).square(), now)

        # Gaussians are separable, so the sum over control points is a product of matrices.
        across, down = axis_weights(0, size[1]), axis_weights(1, size[0])  # [B, K, W], [B, K, H]
        terms = torch.cat([displacement, visible[..., None].float()], dim=-1)  # [B, K, 3]
        weighted = (terms[..., None] * down[:, :, None]).flatten(2)  # [B, K, 3 H]
        sums = (weighted.mT @ across).reshape(-1, 3, *size)
        return sums[:, :2] / (sums[:, 2:] + background_weight)


def twicing(
    now: Tensor, before: Tensor, *, background_weight: float = BACKGROUND_WEIGHT, rounds: int = 12
) -> Tensor:
    """Adjust past control points so that `dense_motion` maps each one to its target.

    A mean of displacements falls short where neighbours diverge, such as parting lips. The residual
    at each control point is added to its displacement repeatedly (twicing, Tukey 1977).

    Args:
        now: [1, K, 3] as in `dense_motion`.
        before: [B, K, 3], the targets of B motions from the same `now`. A motion ignores the
            control points that it lacks.
        rounds: number of iterations.

    Returns:
        [B, K, 3], to be passed to `dense_motion` instead of `before`.
    """
    with _without_autocast(now):
        now, before = now.float(), before.float()
        visible = ((now[..., 2] > 0) & (before[..., 2] > 0))[..., None].float()  # [B, K, 1]
        squared = (now[:, None, :, :2] - now[:, :, None, :2]).square().sum(-1)  # [1, point, at]
        weights = _gaussian(squared, now)[0].mT  # [at, point]
        total = weights @ visible + background_weight
        target = visible * (before[..., :2] - now[..., :2])
        displacement = target
        for _ in range(rounds):
            displacement = displacement + visible * (target - (weights @ displacement) / total)
        positions = torch.where(visible > 0, now[..., :2] + displacement, before[..., :2])
        return torch.cat([positions, before[..., 2:]], dim=-1)


def _without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast: the 8 bits of bf16 are too few for positions."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()


def _gaussian(squared: Tensor, control_points: Tensor) -> Tensor:
    """Weights [B, K, n] of control points at squared distances [B, K, n] from them."""
    sharpness = 0.5 / control_points[..., 2:].clamp(min=1e-3).square()
    # Bounded below: products of denormal numbers take ten times as long.
    return torch.exp(-(squared * sharpness).clamp(max=30))


def compose(later: Tensor, earlier: Tensor) -> Tensor:
    """Flow from t to t-2: `later` (t to t-1) followed by `earlier` (t-1 to t-2)."""
    return later + warp(earlier, later)


def occlusion(
    backward: Tensor, forward: Tensor, *, relative: float = 0.01, absolute: float = 0.5
) -> Tensor:
    """Pixels of frame t that frame t-1 does not show, by the forward-backward check.

    Occluded where `|w_b + w_f'|^2 > relative * (|w_b|^2 + |w_f'|^2) + absolute`, with w_f' the
    forward flow warped by the backward flow (Sundaram et al. 2010; constants of Lai et al. 2018),
    and where the backward flow leaves the picture.

    Args:
        backward: [B, 2, H, W] from t to t-1.
        forward: [B, 2, H, W] from t-1 to t.

    Returns:
        [B, 1, H, W], 1 where occluded, else 0.
    """
    _check_flow(forward)
    kind = backward.dtype
    backward, forward = backward.float(), forward.float()
    forward_warped = warp(forward, backward)
    height, width = backward.shape[-2:]
    x = torch.arange(width, device=backward.device) + backward[:, 0]
    y = torch.arange(height, device=backward.device)[:, None] + backward[:, 1]
    # A tolerance of half a pixel, so that still border pixels do not count as leaving.
    outside = (x < -0.5) | (y < -0.5) | (x > width - 0.5) | (y > height - 0.5)
    mismatch = (backward + forward_warped).square().sum(1)
    allowed = relative * (backward.square().sum(1) + forward_warped.square().sum(1)) + absolute
    return ((mismatch > allowed) | outside)[:, None].to(kind)


def _check_flow(flow: Tensor) -> None:
    assert flow.ndim == 4 and flow.shape[1] == 2, f"flow must be [B, 2, H, W], is {flow.shape}"
