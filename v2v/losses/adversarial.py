"""Adversarial losses on logits, feature matching, and the R1 penalty.

Shapes: a discriminator works at S spatial scales. Each returns a map of logits [B, 1, h, w]
(PatchGAN: one per patch) and the features of its N layers [B, C, h, w]. Every loss is the mean over
scales of means over patches and samples, in float32, so it neither grows with the number of scales
nor depends on how a batch is split across processes.
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
    """The loss of the discriminator: the mean of its losses on real and fake.

    hinge: `(E[max(0, 1 - D(real))] + E[max(0, 1 + D(fake))]) / 2` (Lim and Ye 2017,
    arXiv 1705.02894). least_squares: `(E[(D(real) - 1)^2] + E[D(fake)^2]) / 2` (LSGAN,
    Mao et al. 2017, arXiv 1611.04076, coded 0 and 1).

    Args:
        real_logits: for each scale [B, 1, h, w], any range.
        fake_logits: for each scale [B, 1, h, w], of detached generated frames.
        kind: "hinge" or "least_squares".

    Returns:
        [] float32.

    Raises:
        UnknownName: `kind` is neither.

    >>> confident = [torch.full((1, 1, 2, 2), 2.0)]
    >>> discriminator_loss(confident, [-confident[0]], "hinge")
    tensor(0.)
    """
    _check_kind(kind)
    assert len(real_logits) == len(fake_logits), "real and fake have different numbers of scales"
    if kind == "hinge":
        real = _mean([F.relu(1 - logits.float()) for logits in real_logits])
        fake = _mean([F.relu(1 + logits.float()) for logits in fake_logits])
    else:
        real = _mean([(logits.float() - 1).square() for logits in real_logits])
        fake = _mean([logits.float().square() for logits in fake_logits])
    return (real + fake) / 2


def generator_loss(fake_logits: Sequence[Tensor], kind: AdversarialKind) -> Tensor:
    """The loss of the generator: `-E[D(fake)]` (hinge) or `E[(D(fake) - 1)^2]` (least squares).

    See `discriminator_loss` for the papers; the weight includes LSGAN's factor 1/2.

    Args:
        fake_logits: for each scale [B, 1, h, w], any range.
        kind: as in `discriminator_loss`.

    Returns:
        [] float32; the hinge loss is negative where the discriminator is fooled.

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
    """L1 between discriminator features of real and generated frames.

    `1/S sum_k 1/N sum_i 1/N_i |D_k^(i)(s, x) - D_k^(i)(s, G(s))|_1`, i over the N layers of the
    discriminator at scale k, N_i the elements of layer i: equation 4 of pix2pixHD (Wang et al.
    2018, arXiv 1711.11585), averaged instead of summed over the layers, so that the weight does not
    depend on the depth of a discriminator.

    Args:
        real_features: for each scale, for each layer [B, C, h, w]; receives no gradient.
        fake_features: the same for generated frames.

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


def _mean(scales: Sequence[Tensor]) -> Tensor:
    """Mean over scales of the mean over each scale; all scales have equal weight."""
    assert scales, "no logits: a discriminator has at least one scale"
    return torch.stack([scale.mean() for scale in scales]).mean()


def _check_kind(kind: str) -> None:
    # An unknown kind must fail: a predecessor fell back silently and never used hinge.
    if kind not in (known := get_args(AdversarialKind)):
        raise UnknownName.among("adversarial loss", kind, known)
