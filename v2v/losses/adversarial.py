"""Generator against discriminator: what each wants of the logits, and of the features between.

Shapes: a discriminator judges at S spatial scales; at each it gives a map of logits [B, 1, h, w]
(PatchGAN: one for each patch) and the features of its N layers [B, C, h, w]. Every loss is the
mean over scales of means over patches and samples, in float32, so it neither grows with the
number of scales nor depends on how a batch is spread over processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from v2v.errors import UnknownName

AdversarialKind = Literal["hinge", "least_squares"]


def discriminator_loss(
    real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor], kind: AdversarialKind
) -> Tensor:
    """What the discriminator minimises: the mean of its loss on real and on fake.

    hinge: `(E[max(0, 1 - D(real))] + E[max(0, 1 + D(fake))]) / 2` (Lim and Ye 2017,
    arXiv 1705.02894). least_squares: `(E[(D(real) - 1)^2] + E[D(fake)^2]) / 2` (LSGAN,
    Mao et al. 2017, arXiv 1611.04076, coded 0 and 1).

    Args:
        real_logits: for each scale [B, 1, h, w], any range.
        fake_logits: for each scale [B, 1, h, w], of frames cut off from the generator.
        kind: which of the two.

    Returns:
        [] float32.

    Raises:
        UnknownName: `kind` is neither.

    >>> confident = [torch.full((1, 1, 2, 2), 2.0)]
    >>> discriminator_loss(confident, [-confident[0]], "hinge")
    tensor(0.)
    """
    _check_kind(kind)
    assert len(real_logits) == len(fake_logits), "real and fake were judged at different scales"
    if kind == "hinge":
        real = _mean([F.relu(1 - logits.float()) for logits in real_logits])
        fake = _mean([F.relu(1 + logits.float()) for logits in fake_logits])
    else:
        real = _mean([(logits.float() - 1).square() for logits in real_logits])
        fake = _mean([logits.float().square() for logits in fake_logits])
    return (real + fake) / 2


def generator_loss(fake_logits: Sequence[Tensor], kind: AdversarialKind) -> Tensor:
    """What the generator minimises: `-E[D(fake)]` (hinge) or `E[(D(fake) - 1)^2]` (least squares).

    For the papers see `discriminator_loss`; LSGAN's factor 1/2 is left to the weight.

    Args:
        fake_logits: for each scale [B, 1, h, w], any range.
        kind: the discriminator's.

    Returns:
        [] float32; that of hinge is negative where the discriminator is fooled.

    Raises:
        UnknownName: `kind` is neither.
    """
    _check_kind(kind)
    if kind == "hinge":
        return -_mean([logits.float() for logits in fake_logits])
    return _mean([(logits.float() - 1).square() for logits in fake_logits])


def feature_matching(
    real_features: Sequence[Sequence[Tensor]], fake_features: Sequence[Sequence[Tensor]]
) -> Tensor:
    """L1 between a discriminator's features of real and of generated frames.

    `1/S sum_k 1/N sum_i 1/N_i |D_k^(i)(s, x) - D_k^(i)(s, G(s))|_1`, i over the N layers of the
    discriminator at scale k, N_i the elements of layer i: equation 4 of pix2pixHD (Wang et al.
    2018, arXiv 1711.11585), which sums over the layers where this averages, so that the weight
    does not depend on how deep a discriminator is.

    Args:
        real_features: for each scale, for each layer [B, C, h, w]; no gradient goes there.
        fake_features: the same of generated frames.

    Returns:
        [] float32.
    """
    assert len(real_features) == len(fake_features) > 0, "real and fake differ in scales"
    scales = []
    for real, fake in zip(real_features, fake_features, strict=True):
        assert len(real) == len(fake) > 0, "real and fake differ in layers"
        layers = [F.l1_loss(f.float(), r.detach().float()) for r, f in zip(real, fake, strict=True)]
        scales.append(torch.stack(layers).mean())
    return torch.stack(scales).mean()


def r1_penalty(real_logits: Sequence[Tensor], real: Tensor) -> Tensor:
    """How steeply the discriminator's judgement changes around real frames.

    `1/2 H W E[|grad_x D(x)|^2]`: R1 (Mescheder et al. 2018, arXiv 1801.04406) with
    D(x) the mean over scales and patches. A logit that is a mean over the picture has per-pixel
    gradients that shrink with its area; H W undoes that, so one weight serves all sizes (the
    published heuristic, gamma proportional to H W, has the same root: Karras et al. 2020,
    arXiv 2006.06676).

    The discriminator must treat samples apart (no batch norm), and its forward pass must run in
    float32: gradients of gradients do not survive bf16.

    Args:
        real_logits: for each scale [B, 1, h, w], computed from `real`.
        real: [B, C, H, W], what the discriminator saw, with `requires_grad`.

    Returns:
        [] float32, differentiable with respect to the discriminator's weights.
    """
    assert real.requires_grad, "set real.requires_grad before the discriminator sees it"
    judged = torch.stack([logits.float().flatten(1).mean(1) for logits in real_logits]).mean(0)
    # One sample's judgement depends on that sample only, so the sum's gradient holds them all.
    (gradient,) = torch.autograd.grad(judged.sum(), real, create_graph=True)
    height, width = real.shape[-2:]
    return gradient.float().square().sum(dim=(1, 2, 3)).mean() * (height * width / 2)


def _mean(scales: Sequence[Tensor]) -> Tensor:
    """Mean over scales of the mean over each; scales have different sizes but equal say."""
    assert scales, "no logits: a discriminator has one scale or more"
    return torch.stack([scale.mean() for scale in scales]).mean()


def _check_kind(kind: str) -> None:
    # An unknown kind must fail: a predecessor fell back silently, and hinge was never on.
    if kind not in (known := get_args(AdversarialKind)):
        raise UnknownName.among("adversarial loss", kind, known)
