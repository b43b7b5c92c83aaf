"""All arithmetic on optical flow.

Shapes: B any number of leading axes folded to one, C channels, H height, W width. Flow is
[B, 2, H, W] in pixels, u to the right and v down, backward: a flow from t to t-1 says
`frame_t(p) ~ frame_{t-1}(p + flow(p))`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(image: Tensor, flow: Tensor, *, padding: Literal["border", "zeros"] = "border") -> Tensor:
    """Fetch `image(p + flow(p))` for every pixel p, bilinearly.

    Zero flow is the identity and a whole-pixel flow a plain shift: to the bit where the sides are
    powers of two, else to float32's rounding of positions (1e-4 pixel at 1080p).

    Args:
        image: [B, C, H, W].
        flow: [B, 2, H, W] pixels.
        padding: what lies outside the image.

    >>> image = torch.arange(4.0).reshape(1, 1, 1, 4)
    >>> flow = torch.zeros(1, 2, 1, 4); flow[:, 0] = 1
    >>> warp(image, flow)
    tensor([[[[1., 2., 3., 3.]]]])
    """
    _check_flow(flow)
    height, width = flow.shape[-2:]
    # grid_sample counts in half images: with align_corners=False, -1 and 1 are the outer edges
    # of the outer pixels, so pixel x lies at (2x + 1) / width - 1. In fp32: bf16 has 8 bits.
    flow = flow.float()
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    warped = F.grid_sample(
        image.float(), grid, mode="bilinear", padding_mode=padding, align_corners=False
    )
    return warped.to(image.dtype)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow on another grid: resampled, u scaled by the width's factor and v by the height's."""
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


def compose(later: Tensor, earlier: Tensor) -> Tensor:
    """Flow from t to t-2, of `later` (t to t-1) followed by `earlier` (t-1 to t-2)."""
    return later + warp(earlier, later)


def occlusion(
    backward: Tensor, forward: Tensor, *, relative: float = 0.01, absolute: float = 0.5
) -> Tensor:
    """Pixels of frame t that frame t-1 does not show, by the forward-backward check.

    Occluded where `|w_b + w_f'|^2 > relative * (|w_b|^2 + |w_f'|^2) + absolute`, w_f' being the
    forward flow fetched along the backward one (Sundaram et al. 2010; the constants as in Lai et
    al. 2018), and where the backward flow leaves the picture.

    Args:
        backward: [B, 2, H, W] from t to t-1.
        forward: [B, 2, H, W] from t-1 to t.

    Returns:
        [B, 1, H, W], 1 where occluded, else 0.
    """
    _check_flow(forward)
    kind = backward.dtype
    backward, forward = backward.float(), forward.float()
    fetched = warp(forward, backward)
    height, width = backward.shape[-2:]
    x = torch.arange(width, device=backward.device) + backward[:, 0]
    y = torch.arange(height, device=backward.device)[:, None] + backward[:, 1]
    # Half a pixel of grace: a still border pixel must not count as leaving.
    outside = (x < -0.5) | (y < -0.5) | (x > width - 0.5) | (y > height - 0.5)
    gap = (backward + fetched).square().sum(1)
    allowed = relative * (backward.square().sum(1) + fetched.square().sum(1)) + absolute
    return ((gap > allowed) | outside)[:, None].to(kind)


def _check_flow(flow: Tensor) -> None:
    assert flow.ndim == 4 and flow.shape[1] == 2, f"flow must be [B, 2, H, W], is {flow.shape}"
