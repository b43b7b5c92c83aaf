"""Layers of pictures, composited from back to front."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def composite(
    canvas: NDArray[np.float32], layer: NDArray[np.float32], x: int, y: int, far: float
) -> None:
    """Composite a premultiplied layer [h, w, 4] onto a canvas [5, H, W] at (x, y)."""
    target_box = canvas[:, y : y + layer.shape[0], x : x + layer.shape[1]]
    planes = cv2.split(layer)
    target_box *= 1 - planes[3]
    for channel, plane in zip(target_box, planes, strict=False):
        channel += plane
    target_box[4] += far * planes[3]


def centred_affine(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert an affine map to OpenCV's coordinates, where pixel centres are integers."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return moved
