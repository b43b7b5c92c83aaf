"""Parts of a body or face: their regions in a picture and their motion.

A reference frame is cut into parts like a paper puppet: every part has a region around its bones,
within the person mask, and is warped from one pose to another by an affine transform fitted to its
points. Neighbouring regions overlap slightly, so that no gap opens at a joint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]  # [N, 2] x, y in pixels; NaN if missing

OVERLAP = 0.5  # overlap of neighbouring parts, in radii of the part
EDGE = 0.4  # width of a region's soft edge, in radii of the part
STIFF = 1e-2  # keeps affine transforms close to a similarity if the points are almost collinear
# Limits of a part's scale, relative to the growth of the body: hips seen from the side
# show their depth and do not shrink to a line.
NARROWEST, WIDEST = 0.6, 1.6
# Degrees of in-plane rotation of a head relative to its neck: its points have full weight up to the
# first and none beyond the second. Seen from behind, they are a mirror image.
FULL_WEIGHT, NO_WEIGHT = 60.0, 120.0
SHORT_NECK = 0.3  # of its length in the reference: the direction of a shorter neck is unreliable


@dataclass(frozen=True)
class Part:
    """A part of a body or face; points are indices into the signal's `part_points`."""

    name: str
    fit: tuple[int, ...]  # points that its transform is fitted to
    bones: tuple[tuple[int, int], ...]  # segments that its region surrounds
    radius: float  # of the region, in body sizes; the unit of distances from the bones
    reach: float = 2.2  # largest distance of its pixels from the bones, in radii
    compare: tuple[int, ...] = ()  # more points, besides `fit`, to compare poses by
    motion: Literal["bone", "similarity", "affine", "dense"] = "similarity"
    base: tuple[int, ...] = ()  # points that it sits on; they define its upright direction
    under: bool = False  # lies under its neighbours: takes no pixels from them and closes gaps
    group: str = ""  # parts of a group use the same reference, e.g. cloth that covers several


def regions(
    parts: tuple[Part, ...], points: Points, size: float, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """[P, H, W] in [0, 1]: soft masks of the parts.

    A pixel belongs to the part whose bones are nearest, in radii of the part, and to parts that
    are almost as near.

    Args:
        points: [N, 2] in pixels of `shape` (H, W); bones with a missing end are skipped.
        size: body size in pixels.
    """
    distances = np.stack([_distance(part, points, size, shape) for part in parts])
    under = np.array([part.under for part in parts])
    nearest = distances[~under].min(axis=0)
    reach = np.asarray([part.reach for part in parts], np.float32)[:, None, None]
    own = np.clip((nearest + OVERLAP - distances) / OVERLAP, 0, 1)
    own[under] = 1
    found: NDArray[np.float32] = own * np.clip((reach - distances) / EDGE, 0, 1)
    return found


def _distance(
    part: Part, points: Points, size: float, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """[H, W] distance of every pixel from the part's bones, in radii."""
    x = np.arange(shape[1], dtype=np.float32) + 0.5
    y = np.arange(shape[0], dtype=np.float32)[:, None] + 0.5
    least = np.full(shape, np.float32(1e12))
    for first, last in part.bones:
        start, along = points[first], points[last] - points[first]
        if not np.isfinite(along).all() or not np.isfinite(start).all():
            continue
        along_fraction = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / max(
            along @ along, 1e-6
        )
        along_fraction = np.clip(along_fraction, 0, 1)
        squared = (x - start[0] - along_fraction * along[0]) ** 2 + (
            y - start[1] - along_fraction * along[1]
        ) ** 2
        least = np.minimum(least, squared)
    distance: NDArray[np.float32] = np.sqrt(least) / np.float32(part.radius * size)
    return distance


def hull_mask(points: Points, rim: float, shape: tuple[int, int]) -> NDArray[np.float32]:
    """[H, W] in [0, 1]: convex hull of points [N, 2], dilated by `rim` pixels, with a soft edge."""
    hull = cv2.convexHull(points.astype(np.float32))[:, 0]
    middle = hull.mean(axis=0)
    distance = np.linalg.norm(hull - middle, axis=1, keepdims=True)
    wider = middle + (hull - middle) * (1 + rim / np.maximum(distance, 1))
    canvas = np.zeros(shape, np.float32)
    corners = np.round((wider - 0.5) * 16).astype(np.int32)
    cv2.fillConvexPoly(canvas, corners, (1.0,), cv2.LINE_8, 4)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), max(rim / 2, 0.5)), np.float32)


class Rig:
    """Fits the transforms of all parts at once, in arrays with padded `fit` points."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        most = max(len(part.fit) for part in parts)
        self.fit = np.zeros((len(parts), most), np.intp)
        self.used = np.zeros((len(parts), most), np.bool_)
        for row, used, part in zip(self.fit, self.used, parts, strict=True):
            row[: len(part.fit)], used[: len(part.fit)] = part.fit, True
        self.bone = np.array([part.motion == "bone" for part in parts])
        self.affine = np.array([part.motion == "affine" for part in parts])
        self.bases = [np.array(part.base, np.intp) for part in parts]

    def transforms(
        self, parts: NDArray[np.intp], before: Points, now: Points, *, scale: float = 1.0,
        growth: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:  # fmt: skip
        """Fit the affine maps that move parts from their references to the target pose.

        Least squares over the points that both poses have: a similarity (Umeyama 1991, without
        reflection); a separate scale along a bone; affine for flat parts. The scales are limited
        (`NARROWEST`, `WIDEST`), and parts with a base stay upright on it.

        Args:
            parts: [M] indices of the parts.
            before: [M, N, 2] the points of each part's reference.
            now: [N, 2] the points of the target pose.
            scale: target pixels per reference pixel, for sizes that the points do not determine,
                such as the thickness of a limb.
            growth: [M] ratio of body sizes, target to reference; NaN if unknown.

        Returns:
            [M, 2, 3], and [M] false if there are too few points or they coincide.
        """
        fit = self.fit[parts]
        source = np.take_along_axis(before, fit[..., None], axis=1).astype(np.float64)
        target = now[fit].astype(np.float64)
        seen = np.isfinite(source + target).all(axis=-1) & self.used[parts]
        count = np.maximum(seen.sum(axis=1), 1)[:, None]
        source, target = (np.where(seen[..., None], v, 0) for v in (source, target))
        middle, goal = source.sum(axis=1) / count, target.sum(axis=1) / count
        x, y = ((v - m[:, None]) * seen[..., None] for v, m in ((source, middle), (target, goal)))
        spread = (x**2).sum(axis=(1, 2))
        good = (seen.sum(axis=1) >= 2) & (spread >= 1) & ((y**2).sum(axis=(1, 2)) >= 1)
        spread = np.maximum(spread, 1)

        along = np.einsum("mni,mni->m", x, y) / spread
        turned = (x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]).sum(axis=1) / spread
        matrix = np.stack([along, -turned, turned, along], axis=-1).reshape(-1, 2, 2)
        flat = np.flatnonzero(self.affine[parts] & good)
        if len(flat):
            rest = y[flat] - np.einsum("mij,mnj->mni", matrix[flat], x[flat])
            square = np.einsum("mni,mnj->mij", x[flat], x[flat])
            square += STIFF * spread[flat, None, None] * np.eye(2)
            solved = np.linalg.solve(square, np.einsum("mni,mnj->mij", x[flat], rest))
            matrix[flat] += solved.transpose(0, 2, 1)
        if growth is not None:
            grown = np.where(np.isfinite(growth), growth, scale)
            matrix[flat] = _limited(matrix[flat], grown[flat])
            for m in np.flatnonzero(good):
                base = self.bases[parts[m]]
                if len(base):
                    was = middle[m] - before[m, base].mean(axis=0)
                    up = goal[m] - now[base].mean(axis=0)
                    matrix[m] = _upright(matrix[m], was, up, float(grown[m]))
        bones = np.flatnonzero(self.bone[parts] & good)
        matrix[bones] = _along(x[bones, 1] - x[bones, 0], y[bones, 1] - y[bones, 0], scale)
        shift = goal - np.einsum("mij,mj->mi", matrix, middle)
        found: NDArray[np.float64] = np.concatenate([matrix, shift[..., None]], axis=-1)
        return found, good


def _limited(matrix: NDArray[np.float64], growth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Limit the scales of affine maps [M, 2, 2] to a plausible range."""
    left, size, right = np.linalg.svd(matrix)
    # In a side view, detector noise swaps left and right: mirror a part only if it is clearly wide
    # in the swapped direction.
    thin = size[:, 1] < NARROWEST / 2 * growth
    left[thin & (np.linalg.det(matrix) < 0), :, 1] *= -1
    size = np.clip(size, NARROWEST * growth[:, None], WIDEST * growth[:, None])
    found: NDArray[np.float64] = (left * size[:, None]) @ right
    return found


def _upright(
    matrix: NDArray[np.float64], before: NDArray[np.float64], now: NDArray[np.float64],
    growth: float,
) -> NDArray[np.float64]:  # fmt: skip
    """Keep a similarity [2, 2] close to the rotation of the part's upright direction.

    Args:
        before, now: [2] from the base to the middle of the part; NaN if unknown.
    """
    scale, angle = np.hypot(*matrix[:, 0]), np.arctan2(matrix[1, 0], matrix[0, 0])
    scale = np.clip(scale, NARROWEST * growth, WIDEST * growth)
    if np.isfinite(before + now).all():
        neck_turn = _wrapped(np.arctan2(now[1], now[0]) - np.arctan2(before[1], before[0]))
        tilt = _wrapped(angle - neck_turn)
        # The direction of a neck that bends towards the camera or hangs is unreliable.
        length = np.hypot(*now) / max(growth * np.hypot(*before), 1e-6)
        neck_weight = np.clip((length - SHORT_NECK) / SHORT_NECK, 0, 1) * _weight(neck_turn)
        weight = 1 - neck_weight * (1 - _weight(tilt))
        scale = growth + weight * (scale - growth)
        angle -= (1 - weight) * tilt
    along, turned = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[along, -turned], [turned, along]])


def _wrapped(angle: float) -> float:
    """Wrap an angle to [-pi, pi)."""
    return float(np.remainder(angle + np.pi, 2 * np.pi) - np.pi)


def _weight(angle: float) -> float:
    """1 for small angles, falling to 0 between `FULL_WEIGHT` and `NO_WEIGHT`."""
    return float(np.clip((NO_WEIGHT - np.degrees(abs(angle))) / (NO_WEIGHT - FULL_WEIGHT), 0, 1))


def _along(
    before: NDArray[np.float64], now: NDArray[np.float64], scale: float
) -> NDArray[np.float64]:
    """[M, 2, 2] scale bones to their new length, and by `scale` across: thickness is kept."""
    length_before, length_now = (
        np.maximum(np.linalg.norm(v, axis=-1), 1e-6) for v in (before, now)
    )
    a, b = before / length_before[:, None], now / length_now[:, None]
    factor = np.clip(length_now / length_before, 0.3 * scale, 3 * scale)
    over_a, over_b = (np.stack([-v[:, 1], v[:, 0]], axis=-1) for v in (a, b))
    found: NDArray[np.float64] = factor[:, None, None] * b[:, :, None] * a[:, None]
    found += scale * over_b[:, :, None] * over_a[:, None]
    return found
