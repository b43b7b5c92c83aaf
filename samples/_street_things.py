"""Draws the objects along the sample street as painted panels in space.

World axes, in metres: x right, y down (the ground is y = 0), z along the street.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import cv2
import numpy as np

from v2v.samples._draw import SUPERSAMPLE, Canvas, Image, Points, Rgb, curve, ellipse, limb, shaded
from v2v.samples._street_view import Vector

POLE, LIGHT, SIGN, VEGETATION, PERSON, CAR = 17, 19, 20, 21, 24, 26  # Cityscapes label ids
SHADOW = -1  # a panel that only darkens the surface below and has no label


@dataclass(frozen=True, eq=False)
class Panel:
    """A flat painted quadrangle.

    corners: float64 [4, 3], metres from the object's origin; clockwise from the texture's top
        left, seen from the painted side.
    texture: uint8 [H, W, 4], premultiplied RGB and alpha.
    label: Cityscapes id, or `SHADOW`.
    solid: visible only from the painted side, like a face of a closed box.
    """

    corners: Vector
    texture: Image
    label: int
    solid: bool = False
    to_space: Vector = field(init=False)  # [4, 3] texture (s, t, 1) in 0..1 -> homogeneous xyz

    def __post_init__(self) -> None:
        # A planar quadrangle is a projective image of the unit square: weight three corners so
        # that their sum is the fourth.
        points = np.concatenate([self.corners, np.ones((4, 1))], axis=1)
        first, second, third, last = points
        basis = np.stack([second, last, first], axis=1)
        weights = np.linalg.lstsq(basis, third, rcond=None)[0]
        assert np.allclose(basis @ weights, third, atol=1e-6), "panel corners are not coplanar"
        origin = -weights[2] * first
        columns = [weights[0] * second - origin, weights[1] * last - origin, origin]
        object.__setattr__(self, "to_space", np.stack(columns, axis=1))


@dataclass(frozen=True)
class Lane:
    """A row of similar objects, about one per `spacing` metres, all moving at `speed` along z."""

    make: Callable[[np.random.Generator], list[Panel]]
    x: float
    spacing: float
    speed: float = 0.0  # metres per second
    share: float = 1.0  # fraction of occupied slots
    first: int | None = None  # slots before this one stay empty
    visible: float = 70.0  # maximum distance of drawn objects, metres


def lanes() -> tuple[Lane, ...]:
    """All objects along the street; traffic drives on the right."""
    return (
        Lane(lambda rng: _car(rng, facing=1), x=3.6, spacing=8.0, share=0.55),
        Lane(lambda rng: _car(rng, facing=-1), x=-3.6, spacing=8.0, share=0.4),
        Lane(lambda rng: _car(rng, facing=-1), x=-1.5, spacing=31.0, speed=-7.0),
        Lane(lambda rng: _car(rng, facing=1), x=1.45, spacing=19.0, speed=6.5, first=1),
        Lane(_tree, x=5.5, spacing=12.0, share=0.85, visible=110),
        Lane(_tree, x=-5.5, spacing=12.0, share=0.85, visible=110),
        Lane(_lamp, x=4.95, spacing=27.0),
        Lane(_traffic_light, x=5.0, spacing=43.0, first=0),
        Lane(_sign, x=-4.95, spacing=21.0),
        Lane(_walker, x=6.5, spacing=9.0, speed=0.9, share=0.8),
        Lane(_walker, x=6.9, spacing=11.0, speed=-1.1, share=0.7),
        Lane(_walker, x=-6.6, spacing=7.0, speed=-0.9, share=0.8),
    )


def _upright(width: float, height: float, texture: Image, label: int, *, y: float = 0.0) -> Panel:
    """A panel facing the viewer, its lower edge `y` metres above the ground."""
    half, top = width / 2, -(y + height)
    corners = [(-half, top, 0), (half, top, 0), (half, -y, 0), (-half, -y, 0)]
    return Panel(np.array(corners, float), texture, label)


def _shadow(width: float, length: float, strength: float = 0.6) -> Panel:
    """A soft dark patch on the ground, centred at the object's origin."""
    patch = np.zeros((48, 48, 4), np.float32)
    patch[10:38, 10:38, 3] = 255 * strength
    texture = cv2.GaussianBlur(patch, (0, 0), 4).astype(np.uint8)
    x, z = 0.5 * width * 48 / 28, 0.5 * length * 48 / 28
    corners = np.array([(-x, 0, z), (x, 0, z), (x, 0, -z), (-x, 0, -z)], float)
    return Panel(corners, texture, SHADOW)


def _canvas(height: int, width: int) -> Canvas:
    return Canvas(np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE, 3), np.uint8))


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


_PAINTS: tuple[Rgb, ...] = (
    (176, 42, 38),
    (46, 84, 140),
    (214, 214, 210),
    (58, 62, 68),
    (120, 134, 142),
    (196, 156, 60),
    (44, 98, 80),
)
_GLASS: Rgb = (62, 80, 94)
_TYRE: Rgb = (34, 34, 36)


def _car(rng: np.random.Generator, *, facing: int) -> list[Panel]:
    """A car of two boxes, body and cabin; `facing` 1 drives away from the viewer, -1 towards it."""
    paint = _PAINTS[rng.integers(len(_PAINTS))]
    half, deck, roof = 0.87, 0.86, 1.42
    near, far = -2.1, 2.1  # z of the ends towards and away from the viewer
    # The cabin is towards the rear; the bonnet is in front.
    base = (-1.75, 0.95) if facing > 0 else (-0.95, 1.75)
    top = (-1.2, 0.35) if facing > 0 else (-0.35, 1.2)
    roof_half = 0.7

    def quad(*corners: tuple[float, float, float]) -> Vector:
        return np.array([(x, -y, z) for x, y, z in corners], float)

    end = _car_end(paint, front=facing < 0)
    side, window = _car_side(paint), _car_window(paint)
    lid = _flat(shaded(paint, 1.1))
    panels = [_shadow(2 * half, far - near)]

    def solid(corners: Vector, texture: Image) -> None:
        panels.append(Panel(corners, texture, CAR, solid=True))

    for sign in (1, -1):  # sides: the corner order makes the painted side face outwards
        a, b = (near, far) if sign > 0 else (far, near)
        x = sign * half
        solid(quad((x, deck, a), (x, deck, b), (x, 0, b), (x, 0, a)), side)
    solid(quad((-half, deck, near), (half, deck, near), (half, 0, near), (-half, 0, near)), end)
    solid(quad((-half, deck, far), (half, deck, far), (half, deck, near), (-half, deck, near)), lid)
    for sign in (1, -1):
        (a, b), (c, d) = (base, top) if sign > 0 else (base[::-1], top[::-1])
        low, high = sign * half, sign * roof_half
        solid(quad((high, roof, c), (high, roof, d), (low, deck, b), (low, deck, a)), window)
    screen = quad(
        (-roof_half, roof, top[0]),
        (roof_half, roof, top[0]),
        (half, deck, base[0]),
        (-half, deck, base[0]),
    )
    solid(screen, _car_screen(paint))
    return panels


@cache
def _flat(rgb: Rgb) -> Image:
    return np.full((8, 8, 4), (*rgb, 255), np.uint8)


@cache
def _car_side(paint: Rgb) -> Image:
    """One side below the windows, 420 x 86 pixels for 4.2 x 0.86 metres."""
    canvas = _canvas(86, 420)
    hull = np.array([(0, 0), (420, 0), (420, 64), (0, 64)], float)
    canvas.fill(hull, shaded(paint, 0.86))
    canvas.fill(_rectangle(0, 0, 420, 20), paint, feather=5)
    canvas.fill(_rectangle(0, 52, 420, 64), shaded(paint, 0.45), feather=1)
    for x in (128, 214, 300):
        canvas.fill(_rectangle(x, 2, x + 2, 54), shaded(paint, 0.5), opacity=0.8)
    for x in (84, 336):
        canvas.fill(ellipse((x, 54), 37, 37), (24, 24, 26), clip=_rectangle(0, 0, 420, 64))
        canvas.fill(ellipse((x, 54), 31, 31), _TYRE)
        canvas.fill(ellipse((x, 54), 18, 18), (150, 154, 158), bulge=6)
        canvas.fill(ellipse((x, 54), 6, 6), (80, 82, 86))
    return canvas.cutout()


@cache
def _car_end(paint: Rgb, *, front: bool) -> Image:
    """The rear or front below the windows, 174 x 86 pixels."""
    canvas = _canvas(86, 174)
    for x in (16, 136):
        canvas.fill(_rectangle(x, 50, x + 22, 85), _TYRE, bulge=3)
    canvas.fill(_rectangle(0, 0, 174, 66), shaded(paint, 0.95))
    canvas.fill(_rectangle(0, 0, 174, 10), shaded(paint, 1.2), feather=3)
    canvas.fill(_rectangle(0, 46, 174, 66), shaded(paint, 0.62), feather=1)
    lamp = (250, 246, 226) if front else (206, 34, 34)
    for x in (6, 136):
        canvas.fill(_rectangle(x, 16, x + 32, 32), lamp, bulge=4)
    if front:
        canvas.fill(_rectangle(48, 20, 126, 36), (36, 38, 42))
    canvas.fill(_rectangle(62, 40, 112, 52), (232, 232, 224))
    canvas.fill(_rectangle(68, 44, 106, 48), (70, 70, 74), feather=1)
    return canvas.cutout()


@cache
def _car_screen(paint: Rgb) -> Image:
    """Windscreen or rear window with its frame, 128 x 64 pixels."""
    texture = np.asarray(cv2.resize(_flat(shaded(paint, 0.9)), (128, 64)), np.uint8)
    texture[6:58, 8:120, :3] = _GLASS
    shine = np.linspace(1.5, 0.8, 52)[:, None, None]
    texture[6:58, 8:120, :3] = np.clip(texture[6:58, 8:120, :3] * shine, 0, 255).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(texture, (0, 0), 1.2), np.uint8)


@cache
def _car_window(paint: Rgb) -> Image:
    """The cabin's side: two windows between pillars, 192 x 64 pixels."""
    texture = cv2.resize(_flat(shaded(paint, 0.8)), (192, 64))
    for left, right in ((14, 92), (102, 178)):
        texture[8:58, left:right, :3] = shaded(_GLASS, 0.85)
    return np.asarray(cv2.GaussianBlur(texture, (0, 0), 1.2), np.uint8)


def _tree(rng: np.random.Generator) -> list[Panel]:
    """A street tree, 3.2 x 5.6 metres."""
    texture = _tree_picture(int(rng.integers(5)))
    return [_shadow(2.6, 2.0, 0.45), _upright(3.2, 5.6, texture, VEGETATION)]


@cache
def _tree_picture(variant: int) -> Image:
    rng = np.random.default_rng(variant)
    canvas = _canvas(224, 128)
    fork, crown = np.array((63.0, 116.0)), np.array((64.0, 68.0))
    canvas.fill(limb([np.array((64.0, 222.0)), fork], [6, 4]), (98, 76, 58), bulge=4)
    for tip in ((40.0, 78.0), (66.0, 60.0), (88.0, 80.0)):
        canvas.fill(limb([fork, np.array(tip)], [4, 2]), (88, 68, 52), bulge=3)
    leaf = np.array((74, 112, 54)) * rng.uniform(0.85, 1.15)
    for i in range(150):
        angle, reach = rng.uniform(0, 2 * np.pi), 46 * np.sqrt(rng.uniform())
        at = crown + (reach * np.cos(angle), 1.15 * reach * np.sin(angle))
        # Later tufts are nearer to the viewer; those facing the sky are brighter.
        tone = leaf * (0.72 + 0.4 * i / 150 - 0.26 * np.sin(angle) * reach / 46)
        size = rng.uniform(4.5, 9)
        tuft = ellipse(at, size, 0.7 * size, angle=rng.uniform(-0.6, 0.6))
        rgb = (float(tone[0]), float(tone[1]), float(tone[2]))
        canvas.fill(tuft, rgb, bulge=3, relief=0.2, shadow=0.15, feather=0.7)
    return canvas.cutout()


def _lamp(rng: np.random.Generator) -> list[Panel]:
    """A street lamp with an arm over the road, 1.6 x 6 metres."""
    panel = _upright(1.6, 6.0, _lamp_picture(), POLE)
    return [Panel(panel.corners - (0.48, 0, 0), panel.texture, POLE)]


@cache
def _lamp_picture() -> Image:
    canvas = _canvas(300, 80)
    path = np.array([(64.0, 298.0), (64.0, 60.0), (56.0, 26.0), (24.0, 16.0)])
    line = curve(path, closed=False)
    canvas.fill(limb(list(line), [3.2] * len(line)), (92, 98, 100), bulge=2)
    canvas.fill(ellipse((22, 18), 16, 4), (226, 222, 204))
    return canvas.cutout()


@cache
def _post() -> Image:
    canvas = _canvas(96, 12)
    canvas.fill(_rectangle(3.5, 0, 8.5, 96), (112, 116, 120), bulge=2)
    return canvas.cutout()


def _traffic_light(rng: np.random.Generator) -> list[Panel]:
    head = _traffic_light_picture(int(rng.integers(3)))
    return [_upright(0.3, 2.7, _post(), POLE), _upright(0.45, 1.08, head, LIGHT, y=2.6)]


@cache
def _traffic_light_picture(lit: int) -> Image:
    canvas = _canvas(96, 40)
    canvas.fill(_rectangle(3, 2, 37, 94), (32, 36, 38), bulge=3)
    for i, rgb in enumerate(((230, 60, 48), (238, 184, 56), (72, 214, 120))):
        canvas.fill(ellipse((20, 18 + 30 * i), 11, 11), shaded(rgb, 1.0 if i == lit else 0.3))
    return canvas.cutout()


def _sign(rng: np.random.Generator) -> list[Panel]:
    return [_upright(0.3, 2.4, _post(), POLE), _upright(0.7, 0.7, _sign_picture(), SIGN, y=1.95)]


@cache
def _sign_picture() -> Image:
    canvas = _canvas(64, 64)
    canvas.fill(ellipse((32, 32), 30, 30), (204, 40, 40))
    canvas.fill(ellipse((32, 32), 22, 22), (240, 240, 236))
    canvas.fill(_rectangle(18, 28, 46, 36), (40, 40, 44))
    return canvas.cutout()


def _walker(rng: np.random.Generator) -> list[Panel]:
    """A rigid pedestrian in mid-stride, 0.9 x 1.75 metres."""
    texture = _walker_picture(int(rng.integers(12)))
    return [_shadow(0.5, 0.35), _upright(0.9, 1.75, texture, PERSON)]


@cache
def _walker_picture(variant: int) -> Image:
    rng = np.random.default_rng(variant)
    canvas = _canvas(224, 115)
    coat = _PAINTS[rng.integers(len(_PAINTS))]
    legs = shaded(_PAINTS[rng.integers(len(_PAINTS))], 0.5)
    skin: Rgb = ((226, 178, 148), (176, 124, 92), (120, 82, 60))[rng.integers(3)]
    stride = 1 if variant % 2 else -1  # the leg in front
    hip, neck = np.array((57.0, 118.0)), np.array((57.0, 42.0))
    for side in (-1, 1):
        knee = hip + (side * 9, 46)
        foot = hip + (side * 11, 98 if side == stride else 92)
        canvas.fill(limb([foot, foot + (side * 4, 5)], [6, 6]), (36, 34, 36), bulge=3)
        canvas.fill(limb([hip + (side * 7, 0), knee, foot], [12, 9, 7]), legs, bulge=6, shadow=0.3)
        hand = neck + (side * 29, 78)
        canvas.fill(ellipse(hand, 5, 6), skin, bulge=3)
        arm = [neck + (side * 19, 12), neck + (side * 27, 44), hand - (0, 4)]
        canvas.fill(limb(arm, [9, 8, 6]), shaded(coat, 0.9), bulge=5)
    body = np.array(
        [(-12, 2), (-24, 10), (-21, 50), (-23, 92), (23, 92), (21, 50), (24, 10), (12, 2)]
    )
    canvas.fill(curve(body + neck), coat, bulge=11, relief=0.4, shadow=0.3)
    canvas.fill(limb([neck + (0, 4), neck - (0, 8)], [6, 6]), skin)
    canvas.fill(ellipse(neck - (0, 20), 12.5, 16), skin, bulge=7)
    hair = (56, 42, 34)
    canvas.fill(ellipse(neck - (0, 27), 13, 11), hair, bulge=5)
    return canvas.cutout()
