"""The parts of a face mesh, and the geometry of its canonical shape.

The canonical shape is the mesh [478, 3] seen from the front, in units of the distance between the
outer eye corners. Left and right are the person's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from v2v.signals.face import (
    IRISES,
    LIPS_INNER,
    LIPS_OUTER,
    MIRROR,
    NOSE_BASE,
    NOSE_BRIDGE,
    OVAL,
    POINTS,
)
from v2v.signals.face import PARTS as DRAWN

Array = NDArray[np.float64]
Indices = list[int]


@dataclass(frozen=True)
class Eye:
    """Points of one eye, from left to right in the image of a frontal face."""

    corners: tuple[int, int]
    upper: Indices
    lower: Indices
    iris: Indices  # the centre, then the rim

    @classmethod
    def named(cls, side: str) -> Eye:
        rim = list(DRAWN[f"{side}_eye"][0])  # outer corner, upper lid, inner corner, lower lid
        outer, upper, inner, lower = rim[0], rim[1:8], rim[8], rim[:8:-1]
        centre, circle = IRISES[side]
        if side == "right":
            return cls((outer, inner), upper, lower, [centre, *circle])
        return cls((inner, outer), upper[::-1], lower[::-1], [centre, *circle])

    @property
    def rim(self) -> Indices:
        return [*self.corners, *self.upper, *self.lower]


EYES = {side: Eye.named(side) for side in ("right", "left")}
MOUTH_CORNERS = (61, 291)

# Upper outer, upper inner, lower inner and lower outer lip: [4, 9], a column is one line down.
LIPS = np.array([LIPS_OUTER[1:10], LIPS_INNER[1:10], LIPS_INNER[:10:-1], LIPS_OUTER[:10:-1]])
BROWS = {side: list(DRAWN[f"{side}_brow"][0]) for side in ("right", "left")}
MIDDLE = [i for i in range(POINTS) if MIRROR[i] == i]
PARTS = ("face", "eyes", "brows", "nose", "mouth")

# The pieces of each part; each is scaled about its own centre.
PIECES: dict[str, list[Indices]] = {
    "face": [list(OVAL)],
    "eyes": [[*eye.rim, *eye.iris] for eye in EYES.values()],
    "brows": list(BROWS.values()),
    "nose": [sorted({*NOSE_BRIDGE, *NOSE_BASE})],
    "mouth": [sorted({*LIPS_OUTER, *LIPS_INNER})],
}
DRAWN_POINTS = sorted({i for pieces in PIECES.values() for piece in pieces for i in piece})


def part_sizes(shape: Array) -> dict[str, Array]:
    """Size of each part of a canonical shape [478, 3] along x, y and z, [3] each.

    The sizes scale the motion, so a mouth has its width as its size in every direction (full lips
    do not open further) and the height of a brow is its distance above the eye. Depth is the least
    reliable coordinate of a mesh: its size is the geometric mean of the other two.
    """

    def gap(a: int, b: int) -> float:
        return float(np.hypot(*(shape[a, :2] - shape[b, :2])))

    def both(length: Callable[[int, int], float], a: int, b: int) -> float:
        return (length(a, b) + length(MIRROR[a], MIRROR[b])) / 2

    eye = both(gap, *EYES["right"].corners)
    brow = both(gap, 46, 55)
    above = np.mean(
        [shape[EYES[s].rim, 1].mean() - shape[BROWS[s], 1].mean() for s in ("right", "left")]
    )
    mouth = gap(*MOUTH_CORNERS)
    flat = {
        "face": (np.ptp(shape[list(OVAL), 0]), np.ptp(shape[list(OVAL), 1])),
        "eyes": (eye, eye),
        "brows": (brow, max(float(above), 0.05)),
        "nose": (gap(115, 344), gap(168, 2)),
        "mouth": (mouth, mouth),
    }
    return {name: np.array([x, y, np.sqrt(x * y)]) for name, (x, y) in flat.items()}


def corner_frame(shapes: Array, corners: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Midpoint [T, 3] of two corners, and unit vectors [T, 2] along and down from their line."""
    left, right = shapes[:, corners[0]], shapes[:, corners[1]]
    along = right[:, :2] - left[:, :2]
    along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    down = np.stack([-along[:, 1], along[:, 0]], axis=1)
    middle: Array = (left + right) / 2
    return middle, along, down


def in_corner_frame(shapes: Array, corners: tuple[int, int], points: NDArray[np.int64]) -> Array:
    """Points [T, ..., 3] in the corners' frame: along their line, down from it, and depth."""
    origin, along, down = corner_frame(shapes, corners)
    positions = shapes[:, points.ravel()] - origin[:, None]
    u = (positions[..., :2] * along[:, None]).sum(axis=-1)
    v = (positions[..., :2] * down[:, None]).sum(axis=-1)
    local: Array = np.stack([u, v, positions[..., 2]], axis=-1)
    return local.reshape(len(shapes), *points.shape, 3)


def lids_at(shapes: Array, eye: Eye, across: Array) -> tuple[Array, Array]:
    """Heights [T] of the upper and the lower lid at `across` [T], in the eye's frame."""
    first, last = eye.corners
    lids = np.array([[first, *eye.upper, last], [first, *eye.lower, last]])
    curves = in_corner_frame(shapes, eye.corners, lids)
    upper, lower = (
        np.array(
            [np.interp(x, c[:, 0], c[:, 1]) for x, c in zip(across, curves[:, i], strict=True)]
        )
        for i in (0, 1)
    )
    return upper, lower


def outside_lids(shapes: Array, eye: Eye, centre: Array) -> tuple[Array, Array]:
    """[T] distance of iris centres [T, 2] above the upper and below the lower lid, or 0."""
    upper, lower = lids_at(shapes, eye, centre[:, 0])
    top, bottom = np.minimum(upper, lower), np.maximum(upper, lower)
    return np.maximum(top - centre[:, 1], 0), np.maximum(centre[:, 1] - bottom, 0)


def distances_to(shape: Array, points: Indices) -> Array:
    """[478] distance from each point to the nearest of `points`."""
    distances = np.linalg.norm(shape[:, None] - shape[points][None], axis=2)
    nearest: Array = distances.min(axis=1)
    return nearest


def nearness(shape: Array) -> Array:
    """[478, 5] weight of each point in each of `PARTS`; rows add up to 1.

    A drawn point belongs only to its part; other points are weighted by inverse squared distance.
    """
    pieces = [[i for piece in PIECES[name] for i in piece] for name in PARTS]
    near = np.stack([1 / np.maximum(distances_to(shape, p), 1e-3) ** 2 for p in pieces], axis=1)
    for column, points in enumerate(pieces):
        near[points] = np.eye(len(PARTS))[column]
    shares: Array = near / near.sum(axis=1, keepdims=True)
    return shares


def reach_of(shape: Array, piece: Indices) -> Array:
    """[478] 1 on a piece's points, falling off around it, 0 on the other drawn points."""
    reach: Array = np.exp(-((distances_to(shape, piece) / 0.1) ** 2))
    reach[DRAWN_POINTS] = 0
    reach[piece] = 1
    return reach


def narrowing(shape: Array) -> Array:
    """[478] weight of the oval's narrowing at each point: 1 on the oval, 0.5 on the middle line.

    In between, it grows with the square of the distance, so that no points change their order.
    """
    middle = shape[MIDDLE, 0].mean()
    share = np.empty(POINTS)
    half = len(OVAL) // 2
    right, left = OVAL[: half + 1], (OVAL[0], *OVAL[: half - 1 : -1])  # both from the top down
    for side, oval in ((shape[:, 0] < middle, right), (shape[:, 0] >= middle, left)):
        down = np.maximum.accumulate(shape[list(oval), 1])
        out = np.abs(shape[list(oval), 0] - middle)
        width = np.maximum(np.interp(shape[side, 1], down, out), 1e-3)
        share[side] = np.minimum(np.abs(shape[side, 0] - middle) / width, 1)
    share = 0.5 + 0.5 * share**2
    share[list(OVAL)] = 1
    return share
