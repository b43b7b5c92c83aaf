"""What point signals share: geometry on [T, N, 3] arrays of x, y, score, and fine line drawing."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Landmarks = NDArray[np.float32]  # [T, N, 3] x, y in pixels, score in [0, 1]; missing is NaN
Colour = tuple[int, int, int]
SHIFT = 4  # cv2 takes coordinates in 1/16 pixel


def scaled(points: Landmarks, x: float, y: float) -> Landmarks:
    return points * np.asarray([x, y, 1], dtype=np.float32)


def moved(points: Landmarks, x: float, y: float) -> Landmarks:
    return points + np.asarray([x, y, 0], dtype=np.float32)


def flipped(points: Landmarks, width: int, order: Sequence[int]) -> Landmarks:
    """Mirror left to right; `order[i]` is the point that i becomes (its other-side twin)."""
    mirrored = points[:, order].copy()
    mirrored[..., 0] = width - mirrored[..., 0]
    return mirrored


def fixed_point(points: NDArray[np.float32]) -> NDArray[np.int32]:
    """Continuous pixel coordinates [..., 2] as cv2's, whose pixel centres are whole numbers."""
    limited = np.clip(points - 0.5, -16000, 16000)  # cv2 overflows far outside the picture
    fixed: NDArray[np.int32] = np.round(limited * (1 << SHIFT)).astype(np.int32)
    return fixed


def polyline(
    canvas: NDArray[np.uint8], points: NDArray[np.int32], colour: Colour, width: int, closed: bool
) -> None:
    cv2.polylines(canvas, [points], closed, colour, width, cv2.LINE_AA, SHIFT)
