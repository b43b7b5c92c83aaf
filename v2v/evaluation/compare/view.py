"""Views of a frame in a panel, and the enlarged region."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.errors import UsageError
from v2v.evaluation.compare.align import ComparedVideo
from v2v.images import Picture

Box = tuple[float, float, float, float]  # x, y, width, height
SAME_SHAPE = 0.02  # tolerance between aspect ratios: models round sizes to multiples of 32


@dataclass(frozen=True)
class View:
    """Maps a part of a frame to a panel without distortion; pixels outside the frame are black.

    `box` is in pixels of the frame and may extend beyond it.
    """

    size: tuple[int, int]  # (width, height) of the frame
    box: Box
    width: int  # of the panel
    height: int

    @classmethod
    def whole(cls, size: tuple[int, int], width: int, height: int) -> View:
        """Show the whole frame, centred in the panel."""
        full_w, full_h = size
        if abs(full_w * height / (full_h * width) - 1) <= SAME_SHAPE:
            return cls(size, (0, 0, full_w, full_h), width, height)
        factor = min(width / full_w, height / full_h)
        w, h = width / factor, height / factor
        return cls(size, ((full_w - w) / 2, (full_h - h) / 2, w, h), width, height)

    def part(self, region: Box, width: int, height: int) -> View:
        """Crop this view to a region in fractions of the panel."""
        x, y, w, h = self.box
        box = (x + region[0] * w, y + region[1] * h, region[2] * w, region[3] * h)
        return View(self.size, box, width, height)

    @cached_property
    def inner(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the frame inside the panel."""
        x, y, w, h = self.box
        scale_x, scale_y = self.width / w, self.height / h
        left, right = -x * scale_x, (self.size[0] - x) * scale_x
        top, bottom = -y * scale_y, (self.size[1] - y) * scale_y
        return (
            min(max(round(left), 0), self.width), min(max(round(top), 0), self.height),
            max(min(round(right), self.width), 0), max(min(round(bottom), self.height), 0),
        )  # fmt: skip

    def __call__(self, picture: Picture) -> Picture:
        x, y, w, h = self.box
        # Downscale by area averaging first: otherwise fine patterns alias and flicker.
        shrink = max(self.width / w, self.height / h)
        if shrink < 1:
            small_w, small_h = round(self.size[0] * shrink), round(self.size[1] * shrink)
            small_w, small_h = max(small_w, 1), max(small_h, 1)
            picture = np.asarray(
                cv2.resize(picture, (small_w, small_h), interpolation=cv2.INTER_AREA), np.uint8
            )
            x, w = x * small_w / self.size[0], w * small_w / self.size[0]
            y, h = y * small_h / self.size[1], h * small_h / self.size[1]
        step_x, step_y = w / self.width, h / self.height
        # Pixel centres lie at half integers: panel pixel p samples x + (p + 0.5) * step - 0.5.
        matrix = np.array(
            [[step_x, 0, x + step_x / 2 - 0.5], [0, step_y, y + step_y / 2 - 0.5]], np.float64
        )
        panel = cv2.warpAffine(
            picture, matrix, (self.width, self.height),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        keep_inside(panel, self.inner)
        return np.asarray(panel, np.uint8)


def keep_inside(panel: NDArray[Any], inner: tuple[int, int, int, int]) -> None:
    """Set a panel to black, in place, outside (left, top, right, bottom)."""
    left, top, right, bottom = inner
    panel[:top], panel[bottom:], panel[:, :left], panel[:, right:] = 0, 0, 0, 0


def parse_zoom(text: str, size: tuple[int, int]) -> Box:
    """Parse X,Y,W,H, in fractions or in pixels of `size` (width, height), into fractions."""
    try:
        x, y, w, h = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"cannot parse --zoom {text}", hint="give X,Y,W,H, such as 0.4,0.1,0.2,0.2"
        ) from None
    if max(x, y, w, h) > 1:
        x, w, y, h = x / size[0], w / size[0], y / size[1], h / size[1]
    if not (x >= 0 and y >= 0 and x + w <= 1 + 1e-9 and y + h <= 1 + 1e-9):
        raise UsageError(
            f"--zoom {text} extends beyond the frame",
            hint=f"give fractions up to 1, or pixels up to {size[0]},{size[1]}",
        )
    if not (w * size[0] >= 4 and h * size[1] >= 4):
        raise UsageError(f"--zoom {text} is too small", hint="give at least 4x4 pixels")
    return x, y, w, h


def size_notes(clips: Sequence[ComparedVideo], size: tuple[int, int]) -> Iterator[str]:
    """Yield a note for each clip that is resized to fit its panel."""
    for clip in clips:
        width, height = clip.size
        if (width, height) == size:
            continue
        bars = View.whole(clip.size, *size).inner != (0, 0, *size)
        why = f" with black bars: its aspect ratio differs from {clips[0].label}" if bars else ""
        yield f"{clip.label} is {width}x{height}, shown at {size[0]}x{size[1]}{why}"
