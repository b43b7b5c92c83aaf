"""Temporal losses: flow, warping and occlusion; and the loss of the matte.

Shapes: B samples (fold time into them), H height, W width. Flow is [B, 2, H, W] in pixels,
backward; images are RGB in [-1, 1]; masks are [B, 1, H, W] in [0, 1], 1 where the loss counts.
Every loss is a float32 scalar: the mean over samples of each sample's masked mean, 0 for a sample
with an empty mask. Masks and references receive no gradient.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from v2v.losses._means import check_map, masked_l1, masked_mean
from v2v.warp import warp

REFERENCE_SIDE = 256  # pixels; flow losses are normalised to a picture of this size squared
ERROR_WINDOW = 5  # side of the window in pixels: single pixels may match by chance
INVISIBLE_ERROR = 1e-4  # squared error in [-1, 1] of one grey level of 255, which is invisible
SOFTENING = 1e-3  # minimum distance of predicted occlusions from 0 and 1


@torch.no_grad()
def confidence(real_now: Tensor, real_before_warped: Tensor, threshold: float = 0.02) -> Tensor:
    """Where the reference flow explains the frame: the mask of the flow and warp losses.

    1 where `|x_t - warp(x_{t-1}, w)|^2 < threshold`, summed over the colours, else 0 (vid2vid;
    Wang et al. 2018, arXiv 1808.06601). 0.02 rejects a difference of 10 of 255 grey levels.

    Args:
        real_now: [B, 3, H, W] in [-1, 1].
        real_before_warped: [B, 3, H, W], the previous frame, warped by the reference flow.
        threshold: squared colour difference, 0 to 12.

    Returns:
        [B, 1, H, W] float32, 0 or 1, without gradient.
    """
    assert real_now.shape == real_before_warped.shape
    error = (real_now.float() - real_before_warped.float()).square().sum(dim=1, keepdim=True)
    return (error < threshold).float()


def synthesised_share(real: Tensor, synthesised: Tensor, moved: Tensor) -> Tensor:
    """The target of the occlusion: pictures are weighted by the inverse of their errors.

    Inverse-variance weighting is the optimal blend of two estimates with independent errors:
    `m = e_moved / (e_moved + e_synthesised)`, with e the mean squared error around a pixel. Where
    the previous frame does not show the content, e_moved is large and m is near 1; where both are
    equally good, their mean is better than either.

    Args:
        real, synthesised, moved: [B, 3, H, W] in [-1, 1]; `moved` is the previous generated
            frame, warped by the flow.

    Returns:
        [B, 1, H, W] float32 in [0, 1], 1 where everything must be synthesised, without gradient.
    """
    assert real.shape == synthesised.shape == moved.shape

    def error(picture: Tensor) -> Tensor:
        squared = (picture.detach().float() - real.detach().float()).square().mean(1, keepdim=True)
        smoothed = F.avg_pool2d(
            squared, ERROR_WINDOW, stride=1, padding=ERROR_WINDOW // 2, count_include_pad=False
        )
        return smoothed + INVISIBLE_ERROR

    moved_error, synthesised_error = error(moved), error(synthesised)
    return moved_error / (moved_error + synthesised_error)


def flow_loss(flow: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """L1 between estimated and reference flow: the first term of vid2vid's L_W (arXiv 1808.06601).

    Normalised to pixels of a 256 x 256 picture: errors in pixels grow with the picture, and the
    division by `sqrt(H W) / 256` gives the loss the same weight at every training size. Both axes
    share one factor, so that errors in either direction count equally.

    Args:
        flow: [B, 2, H, W] pixels, estimated.
        reference: [B, 2, H, W] pixels.
        mask: [B, 1, H, W], 1 where the reference is valid; None is 1 everywhere.

    Returns:
        [] float32, the mean of |du| and |dv| in those pixels.

    >>> flow = torch.full((1, 2, 256, 256), 3.0)
    >>> flow_loss(flow, torch.zeros_like(flow))
    tensor(3.)
    """
    assert flow.ndim == 4 and flow.shape[1] == 2, f"flow must be [B, 2, H, W], is {flow.shape}"
    height, width = flow.shape[-2:]
    pixel = REFERENCE_SIDE / math.sqrt(height * width)
    return masked_l1(flow, reference.detach(), mask) * pixel


def warp_loss(
    image_before: Tensor, flow: Tensor, image_now: Tensor, mask: Tensor | None = None
) -> Tensor:
    """L1 between the previous frame, warped by `flow`, and the current frame.

    With real frames it trains the flow without a reference (the second term of vid2vid's L_W,
    arXiv 1808.06601); with generated frames and the reference flow it makes generated content move
    like the footage. All inputs receive gradient: detach the previous frame to train only the
    current one.

    Args:
        image_before: [B, 3, H, W] in [-1, 1], frame t-1.
        flow: [B, 2, H, W] pixels, backward from t to t-1.
        image_now: [B, 3, H, W] in [-1, 1], frame t.
        mask: [B, 1, H, W], 1 where frame t-1 shows the content of frame t; None is 1 everywhere.

    Returns:
        [] float32, in [0, 2].
    """
    return masked_l1(warp(image_before.float(), flow), image_now, mask)


def occlusion_loss(predicted: Tensor, reference: Tensor, known: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of the predicted occlusion, a probability.

    `-(r log p + (1 - r) log(1 - p))` with p mapped linearly to [0.001, 0.999]. Sigmoids reach
    exactly 0 and 1 (in bf16 from logits of 6), where the gradient of the logarithm is infinite;
    clamping would leave confident wrong predictions without gradient.

    Args:
        predicted: [B, 1, H, W] in [0, 1], 1 where the pixel must be synthesised.
        reference: [B, 1, H, W] in [0, 1], from the forward-backward check or `synthesised_share`.
        known: [B, 1, H, W], 1 where the reference is known; None is 1 everywhere.

    Returns:
        [] float32, 0.001 to 6.9 for references of 0 and 1.
    """
    check_map("predicted", predicted, predicted)
    assert predicted.shape == reference.shape
    if known is not None:  # before the logarithm, whose gradient at NaN is NaN
        predicted = torch.where(known > 0, predicted, 0.0)
        reference = torch.where(known > 0, reference, 0.0)
    # Spelled out because autocast on CUDA refuses F.binary_cross_entropy for all types.
    p = SOFTENING + (1 - 2 * SOFTENING) * predicted.float()
    r = reference.detach().float()
    return masked_mean(-(r * p.log() + (1 - r) * (1 - p).log()), known)


def matte_loss(matte: Tensor, foreground: Tensor, known: Tensor | None = None) -> Tensor:
    """L1 between the matte and the person mask of the footage.

    L1 instead of cross-entropy: person masks are wrong at hair, hands and held objects. There L1
    lets the image losses overrule the mask; a logarithm would not.

    Args:
        matte: [B, 1, H, W] in [0, 1], 1 where the background plate is covered.
        foreground: [B, 1, H, W] in [0, 1], 1 on the person.
        known: [B, 1, H, W], 1 where the mask is known; None is 1 everywhere.

    Returns:
        [] float32, in [0, 1].
    """
    check_map("matte", matte, matte)
    return masked_l1(matte, foreground.detach(), known)
