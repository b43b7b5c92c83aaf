"""Pictures as the planes that networks take."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_UNIT = (np.arange(256, dtype=np.float32) / np.float32(127.5) - 1)[None]


def planes(
    pictures: NDArray[np.uint8], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Convert uint8 [T, H, W, C] to float32 [T, C, H, W] in [-1, 1], written to `out` if given.

    Bit-identical to dividing by 127.5 and subtracting 1, in a third of the time.
    """
    count, height, width, channels = pictures.shape
    if out is None:
        out = np.empty((count, channels, height, width), np.float32)
    for picture, target in zip(pictures, out, strict=True):
        for plane, place in zip(cv2.split(picture), target, strict=True):
            cv2.LUT(plane, _UNIT, place)
    return out
