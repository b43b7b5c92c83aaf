"""Helpers for point signals: geometry on [T, N, 3] arrays of x, y, score, and line drawing."""

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
    """Mirror left to right; `order[i]` is the mirror image of point i."""
    mirrored = points[:, order].copy()
    mirrored[..., 0] = width - mirrored[..., 0]
    return mirrored


KNOT = 8  # frames between two random draws of jitter


def jitter(
    generator: np.random.Generator, count: int, groups: int, sigma: float
) -> NDArray[np.float32]:
    """Offsets [count, groups, 2] of `sigma` pixels (standard deviation) that drift slowly.

    Errors of a detector are correlated over time. Independent offsets would shake the signal over
    still frames and teach the generator to ignore small motion.
    """
    knots = generator.standard_normal((2 + (count - 1) // KNOT, groups, 2))
    index, phase = np.divmod(np.arange(count), KNOT)
    weight = (phase / KNOT)[:, None, None]
    offsets = (1 - weight) * knots[index] + weight * knots[index + 1]
    # Blending two draws reduces the variance: give every frame the same standard deviation.
    offsets *= sigma / np.sqrt((1 - weight) ** 2 + weight**2)
    drifting: NDArray[np.float32] = offsets.astype(np.float32)
    return drifting


def squares(points: Landmarks, *, least: int, min_score: float, grow: float) -> NDArray[np.float32]:
    """[T, 4] squares around points [T, N, 3]; NaN if fewer than `least` of them are detected.

    Args:
        grow: ratio of the square's side to the larger extent of the points.
    """
    with np.errstate(invalid="ignore"):
        seen = points[..., 2] >= min_score
    boxes = np.full((len(points), 4), np.nan, np.float32)
    for box, places, mask in zip(boxes, points[..., :2], seen, strict=True):
        if mask.sum() >= least:
            low, high = places[mask].min(axis=0), places[mask].max(axis=0)
            half = max(high - low) * grow / 2
            box[:2], box[2:] = (low + high) / 2 - half, (low + high) / 2 + half
    return boxes


ControlPoint = tuple[dict[int, float], float]  # weights of its landmarks; radius


def control_point_matrix(
    control_points: Sequence[ControlPoint], points: int
) -> NDArray[np.float32]:
    """[N, points + 1] weights of each control point; the last column is its relative radius."""
    matrix = np.zeros((len(control_points), points + 1), np.float32)
    for row, (weights, radius) in zip(matrix, control_points, strict=True):
        row[list(weights)] = list(weights.values())
        row[-1] = radius
    return matrix


def control_points(
    points: Landmarks, seen: NDArray[np.bool_], size: NDArray[np.float32],
    matrix: NDArray[np.float32],
) -> NDArray[np.float32]:  # fmt: skip
    """[T, N, 3] x, y, radius; NaN if a landmark with a non-zero weight is not detected.

    Args:
        points: [T, P, 3] landmarks.
        seen: [T, P] true where they are detected.
        size: [T] the unit of the radii in pixels; NaN if unknown.
        matrix: from `control_point_matrix`.
    """
    weights, radius = matrix[:, :-1], matrix[:, -1]
    seen = seen & np.isfinite(points[..., :2]).all(axis=-1)
    found = np.empty((len(points), len(matrix), 3), np.float32)
    found[..., :2] = weights @ np.where(seen[..., None], points[..., :2], 0)
    found[..., 2] = size[:, None] * radius
    missing = (~seen).astype(np.float32) @ (weights != 0).T > 0
    found[missing | np.isnan(found[..., 2])] = np.nan
    return found


def fixed_point(points: NDArray[np.float32]) -> NDArray[np.int32]:
    """Convert coordinates [..., 2] to cv2's fixed point, where pixel centres are integers."""
    limited = np.clip(points - 0.5, -16000, 16000)  # cv2 overflows far outside the picture
    fixed: NDArray[np.int32] = np.round(limited * (1 << SHIFT)).astype(np.int32)
    return fixed


def polyline(
    canvas: NDArray[np.uint8], points: NDArray[np.int32], colour: Colour, width: int, closed: bool
) -> None:
    cv2.polylines(canvas, [points], closed, colour, width, cv2.LINE_AA, SHIFT)
