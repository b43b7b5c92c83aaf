"""Ray casts the static part of the sample street: ground, house fronts and sky.

World axes, in metres: x right, y down (the ground is y = 0), z along the street. Patterns are
averaged analytically over each pixel's footprint, to avoid flicker and aliasing.

Arrays are float32 [H, W], or [N] for a list of pixels; colours are [..., 3] in 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Array = NDArray[np.float32]

ROAD, SIDEWALK, BUILDING, SKY = 7, 8, 11, 23  # Cityscapes label ids

EYE = 1.45  # camera height above the ground
_KERB, _WALL = 4.5, 8.0  # half widths of the road and of the whole street
_HOUSE, _FLOOR = 12.0, 3.2  # width of a house front, height of a storey
_FAR = 250.0  # beyond this distance, everything is haze and labelled sky
_CLEAR = 90.0  # depth at which haze removes 63 % of the contrast
_HOUSES = 64  # period of the row of houses


def _rgb(red: float, green: float, blue: float) -> Array:
    return np.array((red, green, blue), np.float32)


HAZE = _rgb(206, 216, 224)
_GLASS, _FRAME, _AWNING = _rgb(74, 94, 112), _rgb(232, 228, 218), _rgb(150, 62, 54)
_PLASTERS = ((196, 168, 138), (172, 110, 88), (206, 196, 176), (150, 156, 160), (188, 150, 120))


def clearness(depth: Array | float) -> Array:
    """The fraction of a surface's colour that remains at `depth` metres."""
    return np.asarray(np.exp(np.float32(-1 / _CLEAR) * np.asarray(depth, np.float32)))


@dataclass(frozen=True, eq=False)
class PinholeCamera:
    """Pinhole camera; pixel centres are at integer coordinates."""

    position: Vector  # [3], metres
    yaw: float  # radians, positive looks right
    height: int
    width: int

    @property
    def focal(self) -> float:
        return 0.62 * self.width

    @property
    def principal(self) -> tuple[float, float]:
        return (self.width - 1) / 2, 0.46 * self.height

    @cached_property
    def matrix(self) -> Vector:
        """[3, 4] projection of homogeneous world points to (x * depth, y * depth, depth)."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        turn = np.array([(cos, 0, -sin), (0, 1, 0), (sin, 0, cos)])
        (x, y), f = self.principal, self.focal
        intrinsics = np.array([(f, 0, x), (0, f, y), (0, 0, 1)])
        return np.asarray(intrinsics @ np.column_stack([turn, -turn @ self.position]))

    def rays(self) -> tuple[Array, Array, Array]:
        """World directions (x, y, z) through every pixel, each [H, W] with unit depth."""
        y, x = np.mgrid[0 : self.height, 0 : self.width].astype(np.float32)
        x = (x - self.principal[0]) / self.focal
        y = (y - self.principal[1]) / self.focal
        cos, sin = np.float32(np.cos(self.yaw)), np.float32(np.sin(self.yaw))
        return x * cos + sin, y, cos - x * sin


@dataclass(eq=False)
class Layers:
    """The image being rendered; entries are [H, W] except `rgb` and `before`."""

    rgb: Array  # [H, W, 3]
    labels: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    surface: NDArray[np.int32]  # id of the visible plane, for occlusion
    before: Array  # [2, H, W], previous position of the visible point, pixels


class Backdrop:
    """Ground, house fronts and sky of one seed's street."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng((seed, 1))
        white = np.tile(rng.standard_normal((256, 256)), (3, 3))
        soft = cv2.GaussianBlur(white, (0, 0), 2.5)[256:512, 256:512]
        self._noise = (soft / (2.2 * soft.std())).astype(np.float32)  # tiles, about -1 .. 1
        # [side (left, right), house]: height in metres, plaster colour.
        self._heights = (_FLOOR * rng.integers(3, 6, (2, _HOUSES)) + 0.9).astype(np.float32)
        tones = rng.uniform(0.85, 1.1, (2, _HOUSES, 1))
        plasters = np.array(_PLASTERS)[rng.integers(0, len(_PLASTERS), (2, _HOUSES))]
        self._plasters = (plasters * tones).astype(np.float32)

    def render(self, now: PinholeCamera, previous: PinholeCamera) -> Layers:
        """Render the view of `now`, with the pixel positions of the same points in `previous`."""
        ray_x, ray_y, ray_z = now.rays()
        eye_x, eye_z = np.float32(now.position[0]), np.float32(now.position[2])
        wall_x = np.where(ray_x > 0, np.float32(_WALL), np.float32(-_WALL))
        with np.errstate(divide="ignore"):
            to_wall = np.minimum((wall_x - eye_x) / ray_x, np.float32(1e4))
            to_ground = np.where(ray_y > 1e-6, np.float32(EYE) / ray_y, np.float32(1e9))
        on_ground = to_ground < to_wall
        depth = np.minimum(to_ground, to_wall)
        x, y, z = eye_x + depth * ray_x, depth * ray_y - np.float32(EYE), eye_z + depth * ray_z
        # Pixel footprints: on a surface that faces the camera, and along a receding one.
        blur = depth * np.float32(1.4 / now.focal)
        along = blur * depth / np.where(on_ground, np.float32(EYE), np.abs(wall_x - eye_x))

        # Each pattern is computed only for its own pixels, as flat lists [N].
        solid, cover = np.empty((*depth.shape, 3), np.float32), np.ones_like(depth)
        on_wall = ~on_ground
        solid[on_wall], cover[on_wall] = self._walls(
            x[on_wall], -y[on_wall], z[on_wall], blur[on_wall], along[on_wall]
        )
        solid[on_ground] = self._ground(
            x[on_ground], z[on_ground], blur[on_ground], along[on_ground]
        )
        cover *= depth < _FAR
        solid = HAZE + (solid - HAZE) * clearness(depth)[..., None]
        sky_rows = slice(0, int(np.nonzero((cover < 1).any(axis=1))[0].max(initial=0)) + 1)
        sky = self._sky(ray_x[sky_rows] / ray_z[sky_rows], ray_y[sky_rows] / ray_z[sky_rows])
        solid[sky_rows] = _over(sky, solid[sky_rows], cover[sky_rows])

        visible = cover > 0.5
        labels = np.where(on_ground, np.where(np.abs(x) < _KERB, ROAD, SIDEWALK), BUILDING)
        labels = np.where(visible, labels, SKY).astype(np.uint8)
        surface = np.where(on_ground, 1, np.where(wall_x > 0, 2, 3))
        surface = np.where(visible, surface, 0).astype(np.int32)
        # The sky is at infinity, so only its direction matters (homogeneous coordinate 0).
        point = [np.where(visible, a, b) for a, b in ((x, ray_x), (y, ray_y), (z, ray_z))]
        rows = previous.matrix.astype(np.float32)
        u, v, w = (
            r[0] * point[0] + r[1] * point[1] + r[2] * point[2] + r[3] * visible for r in rows
        )
        return Layers(solid, labels, labels.astype(np.uint16), surface, np.stack([u / w, v / w]))

    def _texture(self, u: Array, v: Array, wavelength: float, footprint: Array | float) -> Array:
        """Noise at (u, v) metres, faded out where a pixel covers more than a few wavelengths."""
        scale = np.float32(12 / wavelength)  # one wave is about 12 texels
        columns = 256  # OpenCV limits the width of maps, so lists are folded into rows
        maps = []
        for place in (u, v):
            place = place.ravel() * scale
            place -= np.floor(place * np.float32(1 / 256)) * 256
            maps.append(np.pad(place, (0, -place.size % columns)).reshape(-1, columns))
        value = cv2.remap(
            self._noise, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        value = np.ravel(value)[: u.size].reshape(u.shape)
        keep = np.clip(1.4 - footprint * np.float32(2.2 / wavelength), 0, 1)
        return np.asarray(value * keep, np.float32)

    def _sky(self, right: Array, down: Array) -> Array:
        """Colour of the sky at image directions `right`, `down` (tangents)."""
        up = np.clip(down * np.float32(-1 / 0.6), 0, 1)
        blue = _over(HAZE, _rgb(112, 160, 212), np.power(up, np.float32(0.7)))
        flat = down * np.float32(2.2)
        cloud = self._texture(right, flat, 0.9, 0.0)
        cloud += 0.5 * self._texture(right + 7, flat, 0.4, 0.0)
        white = np.asarray(np.clip(0.9 * cloud - 0.1, 0, 1) * np.clip(up * 2.5, 0, 1), np.float32)
        return _over(blue, _rgb(246, 247, 248), white)

    def _walls(
        self, x: Array, up: Array, z: Array, blur: Array, along: Array
    ) -> tuple[Array, Array]:
        """Colour of the house fronts, and the fraction of each pixel that they cover."""
        side = (x > 0).astype(np.intp)
        # The roof heights of two neighbours are blended over the pixels on their common edge.
        edge = np.round(z * np.float32(1 / _HOUSE))
        beyond = z - edge * np.float32(_HOUSE)
        share = np.clip(beyond / along + 0.5, 0, 1)
        right_house = side * _HOUSES + edge.astype(np.intp) % _HOUSES
        left_house = side * _HOUSES + (edge.astype(np.intp) - 1) % _HOUSES
        covers = [
            np.clip((self._heights.ravel()[house] - up) / blur + 0.5, 0, 1)
            for house in (left_house, right_house)
        ]
        cover = covers[0] + (covers[1] - covers[0]) * share
        house = np.where(beyond > 0, right_house, left_house)
        colour = self._plasters.reshape(-1, 3)[house]

        lit = np.where(side == 1, np.float32(1.04), np.float32(0.84))
        grain = 0.05 * (self._texture(z, up, 0.7, along) + self._texture(z, up, 4.0, along))
        seam = 1 - 0.35 * _stripes(z + 0.1, _HOUSE, 0.2 / _HOUSE, along)
        ledge = 1 - 0.22 * _stripes(up + 0.1, _FLOOR, 0.2 / _FLOOR, blur)
        foot = 1 - 0.25 * _band(up, -1, 0.5, blur)
        colour *= (lit * (1 + grain) * seam * ledge * foot)[..., None]

        bay = _HOUSE / 4
        storey = up - np.float32(0.9)
        upper = np.clip((up - _FLOOR) / blur + 0.5, 0, 1)
        frame = _stripes(z - 0.72, bay, 1.56 / bay, along)
        frame = frame * _stripes(storey + 0.1, _FLOOR, 0.56, blur) * upper
        pane = _stripes(z - 0.82, bay, 0.45, along) * _stripes(storey, _FLOOR, 0.5, blur) * upper
        # Shop windows on the ground floor, each with an awning.
        shop = _stripes(z - 0.5, 2 * bay, 5 / (2 * bay), along) * _band(up, 0.6, 2.5, blur)
        awning = _stripes(z - 0.4, 2 * bay, 5.2 / (2 * bay), along) * _band(up, 2.5, 2.95, blur)
        gleam = (1 + 0.3 * self._texture(z, up * 0.5, 3.0, along)) * (1 - 0.25 * shop)
        colour = _over(colour, _FRAME, frame)
        colour = _over(colour, _GLASS * gleam[..., None], np.maximum(pane, shop))
        return _over(colour, _AWNING * lit[..., None], awning), cover

    def _ground(self, x: Array, z: Array, blur: Array, along: Array) -> Array:
        """Colour [H, W, 3] of road and pavement."""
        side = np.abs(x)
        grain = 0.09 * self._texture(x, z, 0.25, along) + 0.06 * self._texture(x, z, 1.1, along)
        patches = 0.06 * self._texture(x + 3, z, 5.0, along)
        wear = 0.05 * np.cos(np.clip(side - 1.5, -1.5, 1.5) * 4.2)  # wheel tracks
        road = _rgb(98, 99, 103) * (1 + grain + patches - wear)[..., None]
        dashes = _band(x, -0.07, 0.07, blur) * _stripes(z, 6.0, 0.5, along)
        bays = _band(side, 2.62, 2.72, blur) * 0.8
        road = _over(road, _rgb(224, 222, 212), np.maximum(dashes, bays) * 0.85)

        joints = np.maximum(_stripes(side, 0.9, 0.035, blur), _stripes(z, 0.9, 0.035, along))
        paving = _rgb(172, 166, 158) * (1 + 0.8 * grain + patches - 0.3 * joints)[..., None]
        paving = _over(paving, _rgb(202, 200, 194), _band(side, 4.5, 4.72, blur))
        gutter = 1 - 0.35 * _band(side, 4.32, 4.5, blur) - 0.3 * np.exp((side - _WALL) / 0.4)
        inside = np.clip((side - _KERB) / blur + 0.5, 0, 1)
        return np.asarray(_over(road, paving, inside) * gutter[..., None])


def _band(x: Array, low: float, high: float, blur: Array) -> Array:
    """The fraction of a box of width `blur` around `x` that lies in low..high."""
    above_low = np.clip((x - low) / blur + 0.5, 0, 1)
    return np.asarray(above_low - np.clip((x - high) / blur + 0.5, 0, 1))


def _stripes(x: Array, period: float, duty: float, blur: Array) -> Array:
    """The fraction of a box around `x` covered by stripes [0, duty) of every `period`."""

    def area(u: Array) -> Array:
        whole = np.floor(u)
        return np.asarray(whole * duty + np.minimum(u - whole, duty))

    half = 0.5 * blur / period
    middle = x / period
    return np.asarray((area(middle + half) - area(middle - half)) / (2 * half))


def _over(below: Array, above: Array, cover: Array) -> Array:
    """Alpha-blend `above` over `below` [..., 3] by `cover` [...]."""
    return np.asarray(below + (above - below) * cover[..., None])
