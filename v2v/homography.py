"""Homographies of pictures, in continuous pixels: the centre of the first pixel is (0.5, 0.5)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrices = NDArray[np.float64]  # [..., 3, 3]


def carry(matrices: Matrices, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Apply homographies [..., 3, 3] to points [N, 2]: [..., N, 2]."""
    moved = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ np.swapaxes(
        matrices, -1, -2
    )
    result: NDArray[np.float64] = moved[..., :2] / moved[..., 2:]
    return result


def carry_each(matrices: Matrices, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply each frame's homography [T, 3, 3] to x and y of its points [T, N, 2 or more]."""
    moved = np.array(points)
    for rows, matrix in zip(moved, matrices, strict=True):
        rows[:, :2] = carry(matrix, rows[:, :2])
    return moved


def centred(matrix: Matrices) -> Matrices:
    """Convert a homography to OpenCV's coordinates, where pixel centres are integers."""
    half = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    moved: Matrices = np.linalg.inv(half) @ matrix @ half
    return moved


def corners_of(width: float, height: float) -> NDArray[np.float64]:
    return np.array([[0.0, 0], [width, 0], [width, height], [0, height]])
