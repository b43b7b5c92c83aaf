"""Differentiable augmentation of discriminator inputs, against overfitting to little footage.

DiffAugment (arXiv 2006.10738) for video: one change is drawn per sample and applied to all its
frames, real and fake; otherwise temporal discriminators would see the augmentation instead of the
motion. Translations also apply to signals, flow and boxes; colour changes only to frames.

    augmentation = draw(settings, batch=B, size=(H, W), generator=generator)
    signals, flow = augmentation.signals(signals), augmentation.flow(flow)
    real, fake = augmentation.frames(real), augmentation.frames(fake)

Shapes: B clips, T frames, H height, W width, K boxes. Frames are RGB in [-1, 1]; colour changes may
exceed that slightly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from v2v.config import Config, Unit


class DiscriminatorAugmentSettings(Config):
    """Strengths; 0 disables a change. DiffAugment uses 0.5, 1, 0.5, 0.125 and 0.5."""

    probability: Unit  # per sample, of each of colour, translation and cutout
    brightness: Annotated[float, Field(ge=0, le=2)]  # added to the colours, at most half of this
    saturation: Unit  # factor between 1 - this and 1 + this
    contrast: Annotated[float, Field(ge=0, lt=1)]  # likewise, around middle grey
    translation: Annotated[float, Field(ge=0, le=0.5)]  # at most this fraction of a side
    cutout: Unit  # side of the hole as a fraction of the picture's side


@dataclass(frozen=True)
class DiscriminatorAugmentation:
    """One draw for B samples, in plain numbers, which avoids a GPU synchronisation.

    Methods return the same tensor if nothing changes.
    """

    colours: tuple[tuple[float, float, float], ...]  # brightness, saturation, contrast
    shifts: tuple[tuple[int, int], ...]  # whole pixels to the right and down
    holes: tuple[tuple[int, int, int, int] | None, ...]  # x0, y0, x1, y1; None: no hole

    def frames(self, frames: Tensor) -> Tensor:
        """[B, T, 3, H, W] recoloured, translated, and grey in the hole."""
        return self._cut(self._move(self._colour(frames)))

    def signals(self, signals: Tensor) -> Tensor:
        """[B, T, C, H, W] translated, and 0 in the hole."""
        return self._cut(self._move(signals))

    def flow(self, flow: Tensor) -> Tensor:
        """[B, T, 2, H, W] translated, padded with 0.

        All frames move alike, so the motion between them is unchanged. Holes are not cut, because
        composed flows lead through them.
        """
        return self._move(flow)

    def boxes(self, boxes: Tensor) -> Tensor:
        """[B, T, K, 4] translated, in pixels; also points, [B, T, N, 2]. NaN stays NaN."""
        if not any(dx or dy for dx, dy in self.shifts):
            return boxes
        shifts = torch.tensor(self.shifts, dtype=boxes.dtype).to(boxes.device)
        return boxes + shifts.repeat(1, boxes.shape[-1] // 2)[:, None, None]

    def _colour(self, frames: Tensor) -> Tensor:
        self._check(frames)
        if all(colour == (0.0, 1.0, 1.0) for colour in self.colours):
            return frames
        assert frames.shape[2] == 3, f"frames must be [B, T, 3, H, W], are {list(frames.shape)}"
        colours = torch.tensor(self.colours, dtype=frames.dtype).to(frames.device)
        brightness, saturation, contrast = colours[:, :, None, None, None, None].unbind(1)
        # Contrast around middle grey instead of each picture's mean, because the means differ
        # between real and fake, and between the frames of a window.
        x = frames + brightness
        grey = x.mean(dim=2, keepdim=True)
        return (grey + (x - grey) * saturation) * contrast

    def _move(self, x: Tensor) -> Tensor:
        self._check(x)
        return _by_sample(
            x,
            (
                None if (dx, dy) == (0, 0) else F.pad(sample, (dx, -dx, dy, -dy))
                for sample, (dx, dy) in zip(x, self.shifts, strict=True)
            ),
        )

    def _cut(self, x: Tensor) -> Tensor:
        self._check(x)
        return _by_sample(
            x,
            (
                None if hole is None else sample * _mask(sample, hole)
                for sample, hole in zip(x, self.holes, strict=True)
            ),
        )

    def _check(self, x: Tensor) -> None:
        assert x.ndim == 5 and len(x) == len(self.shifts), (
            f"{list(x.shape)} is not [B, T, C, H, W] of {len(self.shifts)} samples"
        )


def draw(
    settings: DiscriminatorAugmentSettings,
    *,
    batch: int,
    size: tuple[int, int],
    generator: torch.Generator,
) -> DiscriminatorAugmentation:
    """A random change for each of `batch` samples of `size` = H, W.

    The CPU generator advances by the same amount for all settings.
    """
    height, width = size
    numbers = torch.rand(batch, 10, generator=generator).tolist()
    colours, shifts, holes = [], [], []
    for one in numbers:
        recolour, move, cut = (u < settings.probability for u in one[:3])
        b, s, c, dx, dy, x, y = (2 * u - 1 for u in one[3:])

        colours.append(
            (
                b * settings.brightness / 2,
                1 + s * settings.saturation,
                1 + c * settings.contrast,
            )
            if recolour
            else (0.0, 1.0, 1.0)
        )

        # Whole pixels: a bilinear shift blurs, and discriminators must detect blur.
        reach = settings.translation
        shifts.append((round(dx * reach * width), round(dy * reach * height)) if move else (0, 0))

        # Centred anywhere, so that corners are as likely to lie in the hole as the middle.
        left = round((x + 1) / 2 * width - settings.cutout * width / 2)
        top = round((y + 1) / 2 * height - settings.cutout * height / 2)
        right, bottom = left + round(settings.cutout * width), top + round(settings.cutout * height)
        hole = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        holes.append(hole if cut and hole[2] > hole[0] and hole[3] > hole[1] else None)
    return DiscriminatorAugmentation(tuple(colours), tuple(shifts), tuple(holes))


def _by_sample(x: Tensor, changed: Iterable[Tensor | None]) -> Tensor:
    """`x` with the samples that are not None replaced; `x` itself if all are None."""
    samples = list(changed)
    if all(sample is None for sample in samples):
        return x
    return torch.stack([a if b is None else b for a, b in zip(x, samples, strict=True)])


def _mask(like: Tensor, hole: tuple[int, int, int, int]) -> Tensor:
    left, top, right, bottom = hole
    mask = like.new_ones(like.shape[-2:])
    mask[top:bottom, left:right] = 0
    return mask
