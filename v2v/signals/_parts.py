"""Parts of a body or face: which pixels of a picture belong to each, and how each moves.

A reference frame is cut into parts as a paper puppet is: every part has a region around its bones
within the person's mask, and moves from one pose to another by an affine transform of its own
points. Regions overlap a little where parts meet, so that no gap opens at a joint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]  # [N, 2] x, y in pixels; NaN where not seen

OVERLAP = 0.5  # of a part's radius: how far parts reach into one another
EDGE = 0.4  # of a part's radius: the width of a region's soft rim
STIFF = 1e-2  # keeps affine transforms near a similarity where the points lie almost in a line
# How far a part may be squeezed and stretched, beside how much larger the body is: who turns aside
# has hips as wide as deep, and not a line.
NARROWEST, WIDEST = 0.6, 1.6
# Degrees by which a head may turn in the picture beside its neck: its points have full weight up to
# the first and none beyond the second. From behind they are a mirror image.
FULL_WEIGHT, NO_WEIGHT = 60.0, 120.0
SHORT_NECK = 0.3  # of its length in the reference: a shorter one has no reliable direction


@dataclass(frozen=True)
class Part:
    """A rigid piece of a puppet; points are indices into the signal's `part_points`."""

    name: str
    fit: tuple[int, ...]  # what its transform is fitted to
    bones: tuple[tuple[int, int], ...]  # its region lies around these segments
    radius: float  # of the region, in body sizes: distances are measured in it
    reach: float = 2.2  # radii beyond which nothing belongs to it
    compare: tuple[int, ...] = ()  # poses of these points (and `fit`) say which reference fits
    motion: Literal["bone", "similarity", "affine", "dense"] = "similarity"
    base: tuple[int, ...] = ()  # what it sits on, which tells where it has its top
    under: bool = False  # lies under its neighbours: takes nothing from them, and closes gaps
    group: str = ""  # parts of a group come from one reference: cloth that hangs over several


def regions(
    parts: tuple[Part, ...], points: Points, size: float, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """[P, H, W] in [0, 1]: how far each pixel belongs to each part.

    A pixel belongs to the part whose bones are nearest in units of its radius, and to those that
    are nearly as near.

    Args:
        points: [N, 2] in pixels of `shape` (H, W); bones with a missing end are passed over.
        size: of the body, in pixels.
    """
    away = np.stack([_distance(part, points, size, shape) for part in parts])
    under = np.array([part.under for part in parts])
    nearest = away[~under].min(axis=0)
    reach = np.asarray([part.reach for part in parts], np.float32)[:, None, None]
    own = np.clip((nearest + OVERLAP - away) / OVERLAP, 0, 1)
    own[under] = 1
    found: NDArray[np.float32] = own * np.clip((reach - away) / EDGE, 0, 1)
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
        share = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / max(along @ along, 1e-6)
        share = np.clip(share, 0, 1)
        gap = (x - start[0] - share * along[0]) ** 2 + (y - start[1] - share * along[1]) ** 2
        least = np.minimum(least, gap)
    away: NDArray[np.float32] = np.sqrt(least) / np.float32(part.radius * size)
    return away


def hull_mask(points: Points, rim: float, shape: tuple[int, int]) -> NDArray[np.float32]:
    """[H, W] in [0, 1]: the convex hull of points [N, 2], `rim` pixels wider, with a soft edge."""
    hull = cv2.convexHull(points.astype(np.float32))[:, 0]
    middle = hull.mean(axis=0)
    away = np.linalg.norm(hull - middle, axis=1, keepdims=True)
    wider = middle + (hull - middle) * (1 + rim / np.maximum(away, 1))
    canvas = np.zeros(shape, np.float32)
    places = np.round((wider - 0.5) * 16).astype(np.int32)
    cv2.fillConvexPoly(canvas, places, (1.0,), cv2.LINE_8, 4)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), max(rim / 2, 0.5)), np.float32)


class Rig:
    """The transforms of all parts at once: arrays over the parts, fitted points padded."""

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
        """The affine maps that take points of parts from where they were to where they are.

        Least squares over the points that both have: a similarity (Umeyama 1991, without
        reflection); along a bone its own scale; affine for what is flat. Neither is squeezed to a
        line, and what sits on another part stays upright on it.

        Args:
            parts: [M] their numbers.
            before: [M, N, 2] the points of each one's reference.
            now: [N, 2].
            scale: pixels of `now` for each of `before`, for what the points do not tell: how thick
                a limb is.
            growth: [M] how large the body is now, over how large it was; NaN: not known.

        Returns:
            [M, 2, 3], and [M] false where there are too few points, or they coincide.
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
    """Affine maps [M, 2, 2] that neither squeeze nor stretch beyond what is plausible."""
    left, size, right = np.linalg.svd(matrix)
    # From the side left and right change places within the detector's noise: a part is mirrored
    # only once it is clearly wide the other way round.
    thin = size[:, 1] < NARROWEST / 2 * growth
    left[thin & (np.linalg.det(matrix) < 0), :, 1] *= -1
    size = np.clip(size, NARROWEST * growth[:, None], WIDEST * growth[:, None])
    found: NDArray[np.float64] = (left * size[:, None]) @ right
    return found


def _upright(
    matrix: NDArray[np.float64], before: NDArray[np.float64], now: NDArray[np.float64],
    growth: float,
) -> NDArray[np.float64]:  # fmt: skip
    """A similarity [2, 2] held to how the way up of what the part sits on turned.

    Args:
        before, now: [2] from what it sits on to its middle; NaN: not known.
    """
    scale, angle = np.hypot(*matrix[:, 0]), np.arctan2(matrix[1, 0], matrix[0, 0])
    scale = np.clip(scale, NARROWEST * growth, WIDEST * growth)
    if np.isfinite(before + now).all():
        neck_turn = _wrapped(np.arctan2(now[1], now[0]) - np.arctan2(before[1], before[0]))
        tilt = _wrapped(angle - neck_turn)
        # A neck that bends towards the camera, or hangs, has no reliable direction.
        length = np.hypot(*now) / max(growth * np.hypot(*before), 1e-6)
        neck_weight = np.clip((length - SHORT_NECK) / SHORT_NECK, 0, 1) * _weight(neck_turn)
        weight = 1 - neck_weight * (1 - _weight(tilt))
        scale = growth + weight * (scale - growth)
        angle -= (1 - weight) * tilt
    along, turned = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[along, -turned], [turned, along]])


def _wrapped(angle: float) -> float:
    """The same angle in [-pi, pi)."""
    return float(np.remainder(angle + np.pi, 2 * np.pi) - np.pi)


def _weight(angle: float) -> float:
    """1 for small angles, falling to 0 between `FULL_WEIGHT` and `NO_WEIGHT`."""
    return float(np.clip((NO_WEIGHT - np.degrees(abs(angle))) / (NO_WEIGHT - FULL_WEIGHT), 0, 1))


def _along(
    before: NDArray[np.float64], now: NDArray[np.float64], scale: float
) -> NDArray[np.float64]:
    """[M, 2, 2] a bone's own scale along it, `scale` across: a foreshortened arm is no thinner."""
    long, wide = (np.maximum(np.linalg.norm(v, axis=-1), 1e-6) for v in (before, now))
    a, b = before / long[:, None], now / wide[:, None]
    factor = np.clip(wide / long, 0.3 * scale, 3 * scale)
    over_a, over_b = (np.stack([-v[:, 1], v[:, 0]], axis=-1) for v in (a, b))
    found: NDArray[np.float64] = factor[:, None, None] * b[:, :, None] * a[:, None]
    found += scale * over_b[:, :, None] * over_a[:, None]
    return found
