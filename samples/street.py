"""Draws a drive along a street with exact labels, instances, flow and occlusion.

World axes, in metres: x right, y down (the ground is y = 0), z along the street. A pinhole
camera moves along z and sways slightly. Ground, house fronts and sky are ray cast per pixel
(`_street_view`); cars, trees, poles and people are painted panels in space (`_street_things`).
Every surface is a rigid plane, so exact flow follows from projecting a pixel's point with the
previous camera and the object's previous position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.samples._draw import fill_polygon
from v2v.samples._street_things import CAR, PERSON, SHADOW, Lane, Panel, lanes
from v2v.samples._street_view import (
    EYE,
    HAZE,
    Array,
    Backdrop,
    Layers,
    PinholeCamera,
    Vector,
    clearness,
)

_SPEED = 6.0  # metres per second
_SHADOW_RANGE = 40.0  # maximum distance of drawn shadows, metres
_NEAR = 0.25  # near clipping plane of panels, metres


@dataclass(frozen=True, eq=False)
class StreetFrame:
    """One frame and its ground truth.

    rgb: uint8 [H, W, 3].
    labels: uint8 [H, W], Cityscapes label ids.
    instances: uint16 [H, W]; the label id, or label id * 1000 + n for the n-th car or person.
    flow: float32 [2, H, W], pixels (right, down), backward:
        frame_t(p) ~ frame_{t-1}(p + flow_t(p)). Zeros for the first frame.
    occlusion: float32 [H, W] in 0..1; 1 where the point was not visible in the previous frame.
        Ones for the first frame.
    """

    rgb: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    flow: Array
    occlusion: Array


@dataclass(frozen=True, eq=False)
class _Object:
    """An object: panels around an origin that moves along z."""

    panels: list[Panel]
    surface: int  # surface id of its first panel
    instance: int  # n of its instance id
    x: float
    z: float  # at time 0
    speed: float

    def place(self, t: float) -> Vector:
        return np.array((self.x, 0.0, self.z + self.speed * t))


def _drive(t: float, height: int, width: int) -> PinholeCamera:
    """The camera at time `t` seconds."""
    position = np.array((1.3 + 0.12 * np.sin(0.9 * t), -EYE, _SPEED * t))
    return PinholeCamera(position, 0.012 * np.sin(0.7 * t + 1.0), height, width)


class _Traffic:
    """The objects along the street, created when they first come into view."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lanes = lanes()
        self._objects: dict[tuple[int, int], _Object | None] = {}

    def around(self, t: float, z: float) -> list[_Object]:
        """The objects near the camera at `z`, farthest first."""
        found = []
        for row, lane in enumerate(self._lanes):
            start = z - 6 - lane.speed * t
            low, high = (int(np.floor((start + d) / lane.spacing)) for d in (0.0, lane.visible))
            for place in range(low if lane.first is None else max(low, lane.first), high):
                item = self._object(row, lane, place)
                if item is not None:
                    found.append(item)
        return sorted(found, key=lambda item: -float(item.place(t)[2]))

    def _object(self, row: int, lane: Lane, place: int) -> _Object | None:
        """The object in one slot of a lane, None if the slot is empty."""
        key = (row, place)
        if key not in self._objects:
            # Slots behind the start are negative, but seeds must not be.
            rng = np.random.default_rng((self._seed, 2, row, place + 1_000_000))
            shift, shift_x, occupied = rng.uniform(size=3)
            number = len(self._objects) + 1
            self._objects[key] = (
                _Object(
                    panels=lane.make(rng),
                    surface=16 * number,
                    instance=number % 1000,
                    x=lane.x + 0.24 * (shift_x - 0.5),
                    z=(place + 0.35 + 0.3 * shift) * lane.spacing,
                    speed=lane.speed,
                )
                if occupied < lane.share
                else None
            )
        return self._objects[key]


def _paint(
    layers: Layers,
    item: _Object,
    t: float,
    before: float,
    now: PinholeCamera,
    previous: PinholeCamera,
) -> None:
    """Draw one object over the layers; `before` is the time of the previous frame."""
    view, view_before = now.matrix.copy(), previous.matrix.copy()
    view[:, 3] += now.matrix[:, :3] @ item.place(t)
    view_before[:, 3] += previous.matrix[:, :3] @ item.place(before)
    for number, panel in enumerate(item.panels):
        to_pixels = view @ panel.to_space
        if panel.solid and np.linalg.det(to_pixels) < 0:
            continue  # seen from behind
        corners = panel.corners @ view[:, :3].T + view[:, 3]
        if panel.label == SHADOW and corners[:, 2].max() > _SHADOW_RANGE:
            continue
        patch = _patch(panel, corners, to_pixels, *layers.labels.shape)
        if patch is None:
            continue
        colour, rows, cols = patch
        alpha = colour[..., 3:] * np.float32(1 / 255)
        contrast = clearness(max(float(corners[:, 2].mean()), 0.0))
        below = layers.rgb[rows, cols]
        if panel.label == SHADOW:
            below *= 1 - alpha * contrast
            continue
        below += (colour[..., :3] - alpha * HAZE) * contrast + alpha * (HAZE - below)

        y, x = np.nonzero(alpha[..., 0] > 0.5)
        y, x = y + rows.start, x + cols.start
        chain = view_before @ panel.to_space @ np.linalg.inv(to_pixels)
        u, v, w = chain @ np.stack([x, y, np.ones(len(x))])
        layers.before[:, y, x] = u / w, v / w
        layers.surface[y, x] = item.surface + number
        layers.labels[y, x] = panel.label
        has_instances = panel.label in (CAR, PERSON)
        layers.instances[y, x] = (
            1000 * panel.label + item.instance if has_instances else panel.label
        )


def _patch(
    panel: Panel, corners: Vector, to_pixels: Vector, height: int, width: int
) -> tuple[Array, slice, slice] | None:
    """Render a panel: premultiplied float32 [h, w, 4], with its rows and columns in the frame.

    corners: [4, 3] (x * depth, y * depth, depth). Returns None if the panel is out of view.
    """
    outline = _clipped(corners)
    if outline is None:
        return None
    first, last = outline.min(axis=0), outline.max(axis=0)
    x0, y0 = np.maximum(np.floor(first).astype(int) - 1, 0).tolist()
    x1, y1 = np.minimum(np.ceil(last).astype(int) + 2, (width, height)).tolist()
    if x0 >= x1 or y0 >= y1 or (last - first).min() < 0.5:
        return None
    size = (x1 - x0, y1 - y0)
    cover = np.zeros(size[::-1], np.uint8)
    fill_polygon(cover, outline - (x0, y0))

    texture = panel.texture
    if (corners[:, 2] > _NEAR).all():  # downsample the texture to about one texel per pixel
        fitting = np.minimum(np.ceil(last - first).clip(2), texture.shape[1::-1]).astype(int)
        if (fitting < texture.shape[1::-1]).any():
            shrunk = cv2.resize(texture, fitting.tolist(), interpolation=cv2.INTER_AREA)
            texture = np.asarray(shrunk, np.uint8)
    h, w = texture.shape[:2]
    from_texels = np.array([(1 / w, 0, 0.5 / w), (0, 1 / h, 0.5 / h), (0, 0, 1)])
    to_box = np.array([(1, 0, -x0), (0, 1, -y0), (0, 0, 1)])
    place = to_box @ to_pixels @ from_texels
    warped = cv2.warpPerspective(texture, place, size, borderMode=cv2.BORDER_REPLICATE)
    colour = warped * (cover * np.float32(1 / 255))[..., None]
    return colour, slice(y0, y1), slice(x0, x1)


def _clipped(corners: Vector) -> Vector | None:
    """Image outline [N, 2] of a quadrangle [4, 3] (x * depth, y * depth, depth), cut at _NEAR."""
    if (corners[:, 2] > _NEAR).all():
        return np.asarray(corners[:, :2] / corners[:, 2:])
    kept = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if a[2] > _NEAR:
            kept.append(a)
        if (a[2] > _NEAR) != (b[2] > _NEAR):
            kept.append(a + (b - a) * (_NEAR - a[2]) / (b[2] - a[2]))
    if len(kept) < 3:
        return None
    points = np.stack(kept)
    # Points far outside are clipped: large coordinates would overflow the polygon fill.
    return np.asarray(np.clip(points[:, :2] / points[:, 2:], -4000, 4000))


def _occlusion(
    before: Array, surface: NDArray[np.int32], previous_surface: NDArray[np.int32]
) -> Array:
    """Occlusion: the fraction of a pixel's previous position with another surface or out of view.

    before: previous positions [2, H, W]; surface, previous_surface: surface ids in this and the
    previous frame. The four pixels around a position count by their bilinear weights.
    """
    height, width = surface.shape
    place = np.clip(before, -2, max(height, width) + 2)
    corner = np.floor(place)
    fraction = place - corner
    x, y = corner.astype(np.int64) + 1
    framed = np.pad(previous_surface, 1, constant_values=-1)
    framed = np.pad(framed, ((0, 1), (0, 1)), constant_values=-1)
    visible = np.zeros((height, width), np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dx - fraction[0]) * np.abs(1 - dy - fraction[1])
            found = framed[np.clip(y + dy, 0, height + 1), np.clip(x + dx, 0, width + 1)]
            visible += weight * (found == surface)
    return np.clip(1 - visible, 0, 1)


def frames(
    *, count: int = 60, height: int = 256, width: int = 512, fps: float = 15.0, seed: int = 0
) -> Iterator[StreetFrame]:
    """Yield `count` frames of the drive."""
    backdrop, traffic = Backdrop(seed), _Traffic(seed)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)
    surface: NDArray[np.int32] | None = None
    for i in range(count):
        t, before = i / fps, (i - 1) / fps
        now, previous = _drive(t, height, width), _drive(before, height, width)
        layers = backdrop.render(now, previous)
        for item in traffic.around(t, float(now.position[2])):
            _paint(layers, item, t, before, now, previous)
        if surface is None:
            flow, occlusion = np.zeros_like(grid), np.ones((height, width), np.float32)
        else:
            flow = layers.before - grid
            occlusion = _occlusion(layers.before, layers.surface, surface)
        surface = layers.surface
        rgb = np.clip(layers.rgb + np.float32(0.5), 0, 255).astype(np.uint8)
        yield StreetFrame(rgb, layers.labels, layers.instances, flow, occlusion)
