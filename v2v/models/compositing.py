"""How the sequential generator composes a picture from candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from v2v.models.generator_settings import DISTRUST, FLOW_UNIT, INVALID, LEAK, STRIDE
from v2v.warp import resize_flow, warp


def moved_references(references: Tensor, motion: Tensor) -> Tensor:
    """References [B, K, 5, H, W], warped by K flows [B, 2 K, h, w] in units of a head's output."""
    size = (references.shape[-2], references.shape[-1])
    coarse = motion.reshape(-1, 2, *motion.shape[2:]) * (FLOW_UNIT / STRIDE)
    flow = resize_flow(coarse, size)
    found = warp(references.flatten(0, 1), flow, kind="bicubic")
    # Bicubic interpolation overshoots.
    picture, rest = found[:, :3].clamp(-1, 1), found[:, 3:].clamp(0, 1)
    return torch.cat([picture, rest], dim=1).reshape(references.shape)


def weighted_candidates(
    synthesised: Tensor, references: Tensor, logits: Tensor, trust: float, departure: float
) -> Tensor:
    """The per-pixel softmax over the synthesised picture and the references [B, K, 5, H, W].

    The last convolution is linear and cannot select between pictures; a softmax can. A reference
    has no weight where it is not valid.
    """
    count = references.shape[1]
    # Initially the nearest reference wins where its pose is near.
    initial = trust - DISTRUST * references[:, :, 4]
    own = bounded(logits[:, :count], departure) + initial
    own = own + torch.log(references[:, :, 3] + INVALID)
    weights = torch.softmax(torch.cat([torch.zeros_like(own[:, :1]), own], dim=1), dim=1)
    return weights[:, :1] * synthesised + (weights[:, 1:, None] * references[:, :, :3]).sum(1)


def bounded(logits: Tensor, most: float) -> Tensor:
    """Logits squashed into [-most, most], with slope 1 at 0."""
    return most * torch.tanh(logits / most)


def leaky_clamp(x: Tensor) -> Tensor:
    """Clamped to [-1, 1], with a small slope outside, so that gradients can bring pixels back."""
    return torch.clamp(x, -1, 1) + LEAK * (x - torch.clamp(x, -1, 1))
