"""Draws a talking face: head and shoulders; the head turns, blinks, looks around and speaks.

Head axes, in units of half the head's height: x to the image's right, y down, z to the viewer;
the origin is the centre of the head, the eyes are at y = 0, the crown at -1, the chin at 1.
The features lie on a rounded surface in these axes and are rotated in 3D, so that head rotation
causes parallax as in a real face.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from v2v.samples._draw import (
    SUPERSAMPLE,
    Canvas,
    Image,
    Points,
    Rgb,
    curve,
    ellipse,
    ribbon,
    shaded,
)


@dataclass(frozen=True)
class Expression:
    """Head rotation and facial expression in one frame."""

    yaw: float = 0.0  # radians; positive turns the face to the image's right
    pitch: float = 0.0  # radians; positive nods down
    roll: float = 0.0  # radians; positive tilts clockwise in the image
    mouth: float = 0.0  # openness, 0 closed .. 1 wide open
    smile: float = 0.3  # corners of the mouth, 0 level .. 1 raised
    eyes: float = 1.0  # openness, 0 shut .. 1 open
    gaze: tuple[float, float] = (0.0, 0.0)  # iris shift right and down, -1 .. 1
    brows: float = 0.0  # -1 lowered .. 1 raised


@dataclass(frozen=True)
class Palette:
    """The colours of a head."""

    skin: Rgb = (233, 186, 156)
    hair: Rgb = (74, 48, 36)
    lips: Rgb = (190, 98, 92)
    iris: Rgb = (84, 110, 92)
    blush: Rgb = (226, 128, 112)
    under_chin: Rgb = (160, 112, 92)  # the neck in the head's shadow
    fingers: Rgb = (188, 132, 108)  # the lines between fingers


def _surface(x: Points, y: Points) -> Points:
    """Depth of the face's surface at head coordinates (x, y)."""
    return np.asarray(0.86 * np.sqrt(np.clip(1 - (x / 0.88) ** 2 - (y / 1.35) ** 2, 0.02, None)))


class _Head:
    """Projects head coordinates to image points for one pose."""

    def __init__(self, centre: Points, radius: float, pose: Expression) -> None:
        self.centre, self.radius = np.asarray(centre, float), radius
        self._yaw = np.cos(pose.yaw), np.sin(pose.yaw)
        self._pitch = np.cos(pose.pitch), np.sin(pose.pitch)
        self._roll = np.cos(pose.roll), np.sin(pose.roll)

    def at(
        self,
        points: Points | tuple[float, float],
        depth: Points | float | None = None,
        lift: Points | float = 0.0,
    ) -> Points:
        """Image points [N, 2] of head points [N, 2] on the surface, or at `depth` if given."""
        x, y = np.atleast_2d(np.asarray(points, float)).T
        z = (_surface(x, y) if depth is None else depth) + lift
        x, z = x * self._yaw[0] + z * self._yaw[1], z * self._yaw[0] - x * self._yaw[1]
        y = y * self._pitch[0] + z * self._pitch[1]
        x, y = x * self._roll[0] - y * self._roll[1], x * self._roll[1] + y * self._roll[0]
        return np.asarray(self.centre + self.radius * np.stack([x, y], axis=1))


def _mirror(points: Points, side: int) -> Points:
    """Mirror `points` of the image's right half to the left half if `side` is -1."""
    return points * (side, 1)


def draw_head(
    canvas: Canvas,
    centre: Points,
    radius: float,
    expression: Expression,
    palette: Palette = Palette(),
) -> None:
    """Paint a head whose chin-to-crown height is 2 * `radius` pixels."""
    head = _Head(centre, radius, expression)
    jaw = 0.13 * expression.mouth  # the chin follows the lower lip
    _draw_skull(canvas, head, palette, jaw)
    _draw_nose(canvas, head, palette)
    for side in (-1, 1):
        _draw_eye(canvas, head, palette, expression, side)
    _draw_mouth(canvas, head, palette, expression)
    _draw_fringe(canvas, head, palette)


def _draw_skull(canvas: Canvas, head: _Head, palette: Palette, jaw: float) -> None:
    r = head.radius
    back = np.array([(0, -1.14), (0.5, -1.04), (0.8, -0.66), (0.86, -0.1), (0.8, 0.34), (0.4, 0.5)])
    back = np.concatenate([back, (back * (-1, 1))[:0:-1]])
    canvas.fill(curve(head.at(back, -0.12)), palette.hair, bulge=0.2 * r, relief=0.35)

    for side in (-1, 1):
        ear = np.array([(0.72, -0.08), (0.83, -0.12), (0.87, 0.06), (0.8, 0.3), (0.72, 0.32)])
        canvas.fill(curve(head.at(_mirror(ear, side), 0.0)), palette.skin, bulge=0.05 * r)
        hollow = np.array([(0.77, 0.0), (0.82, 0.02), (0.79, 0.18), (0.76, 0.16)])
        inner = curve(head.at(_mirror(hollow, side), 0.0))
        canvas.fill(inner, shaded(palette.skin, 0.78), feather=0.02 * r)

    half = [(0.42, -0.9), (0.68, -0.55), (0.745, -0.1), (0.73, 0.25), (0.64, 0.58 + jaw / 2)]
    half += [(0.44, 0.84 + jaw), (0.2, 0.985 + jaw)]
    face = np.array([(0, -0.98), *half, (0, 1.01 + jaw), *((-x, y) for x, y in half[::-1])])
    depth = 0.42 * np.clip((face[:, 1] + 0.1) / 1.1, 0, 1)  # the chin is in front of the ears
    outline = curve(head.at(face, depth))
    canvas.fill(outline, palette.skin, bulge=0.28 * r, relief=0.24, shadow=0.25)
    for side in (-1, 1):
        blush = ellipse(head.at((side * 0.44, 0.38))[0], 0.17 * r, 0.12 * r)
        canvas.fill(blush, palette.blush, feather=0.08 * r, opacity=0.3, clip=outline)
        socket = ellipse(head.at((side * 0.3, -0.03))[0], 0.2 * r, 0.12 * r)
        canvas.fill(socket, shaded(palette.skin, 0.82), feather=0.06 * r, opacity=0.5)
    chin = ellipse(head.at((0, 0.8 + jaw))[0], 0.16 * r, 0.03 * r)
    canvas.fill(chin, shaded(palette.skin, 0.8), feather=0.04 * r, opacity=0.5, clip=outline)


def _draw_nose(canvas: Canvas, head: _Head, palette: Palette) -> None:
    r = head.radius
    shade = shaded(palette.skin, 0.76)
    # The bridge rises from the surface towards the tip; its far side from the light is dark.
    ridge = np.array([0.02, 0.08, 0.2, 0.24, 0.1])
    flank = np.array([(0.07, -0.08), (0.06, 0.12), (0.09, 0.32), (0.17, 0.43), (0.02, 0.46)])
    canvas.fill(curve(head.at(flank, lift=ridge)), shade, feather=0.03 * r, opacity=0.55)
    light = np.array([(-0.02, -0.05), (0.015, 0.15), (0.0, 0.34), (-0.05, 0.34), (-0.05, 0.1)])
    lit = curve(head.at(light, lift=ridge))
    canvas.fill(lit, shaded(palette.skin, 1.1), feather=0.025 * r, opacity=0.7)
    tip = head.at((0, 0.37), lift=0.24)[0]
    for side in (-1, 1):
        wing = np.array([(0.1, 0.33), (0.165, 0.37), (0.175, 0.44), (0.12, 0.475), (0.06, 0.45)])
        outline = curve(head.at(_mirror(wing, side), lift=0.1))
        canvas.fill(outline, shaded(palette.skin, 0.94), bulge=0.04 * r, feather=0.015 * r)
        crease = curve(head.at(_mirror(wing[1:4], side), lift=0.09), closed=False)
        canvas.fill(ribbon(crease, 0.03 * r), shade, feather=0.01 * r, opacity=0.8)
        nostril = head.at((side * 0.075, 0.455), lift=0.14)[0]
        hole = ellipse(nostril, 0.042 * r, 0.022 * r, angle=-0.3 * side)
        canvas.fill(hole, (110, 62, 52), feather=0.01 * r)
    canvas.fill(ellipse(tip, 0.1 * r, 0.085 * r), palette.skin, bulge=0.06 * r, feather=0.03 * r)


def _draw_eye(
    canvas: Canvas, head: _Head, palette: Palette, expression: Expression, side: int
) -> None:
    r = head.radius
    opening = float(np.clip(expression.eyes, 0, 1))
    along = np.linspace(-1, 1, 13)
    arch = 1 - along**2
    x = 0.305 + 0.15 * along
    shut = 0.035 * arch  # closed eyelids meet low, as in real eyes
    upper = shut - arch * opening * (0.13 + 0.02 * along)
    lower = shut + arch * opening * 0.03
    rim = np.stack([x, upper - 0.012 * along], axis=1), np.stack([x, lower - 0.012 * along], axis=1)
    top, bottom = (head.at(_mirror(edge, side), lift=-0.03) for edge in rim)

    if opening > 0.06:
        outline = np.concatenate([top, bottom[::-1]])
        canvas.fill(outline, (244, 240, 234), bulge=0.05 * r, relief=0.12)
        gaze_x, gaze_y = expression.gaze
        pupil = head.at((side * 0.305 + 0.055 * gaze_x, -0.03 + 0.03 * gaze_y), lift=-0.03)[0]
        for size, rgb in ((0.088, shaded(palette.iris, 0.5)), (0.074, palette.iris)):
            canvas.fill(ellipse(pupil, size * r, size * r), rgb, clip=outline)
        canvas.fill(ellipse(pupil, 0.036 * r, 0.036 * r), (18, 16, 16), clip=outline)
        glint = pupil + r * np.array((-0.028, -0.032))
        canvas.fill(ellipse(glint, 0.016 * r, 0.016 * r), (255, 255, 255), clip=outline)
        shade = np.concatenate([top, (top + (0, 0.035 * r))[::-1]])
        canvas.fill(shade, (60, 40, 40), feather=0.012 * r, opacity=0.4, clip=outline)
    canvas.fill(ribbon(top, 0.045 * r), (42, 28, 26))
    canvas.fill(ribbon(bottom, 0.018 * r), shaded(palette.skin, 0.58), opacity=0.8)
    fold = head.at(_mirror(np.stack([x, upper - 0.05], axis=1), side), lift=-0.02)
    canvas.fill(ribbon(fold, 0.02 * r), shaded(palette.skin, 0.66), opacity=0.8)

    lift = 0.07 * expression.brows
    brow = np.array([(0.12, -0.2), (0.24, -0.26), (0.38, -0.275), (0.52, -0.2)]) - (0, lift)
    brow_line = curve(head.at(_mirror(brow, side), lift=0.03), closed=False)
    canvas.fill(ribbon(brow_line, 0.075 * r), shaded(palette.hair, 0.95), feather=0.006 * r)


def _draw_mouth(canvas: Canvas, head: _Head, palette: Palette, expression: Expression) -> None:
    r = head.radius
    opening = float(np.clip(expression.mouth, 0, 1))
    along = np.linspace(-1, 1, 17)
    arch = 1 - np.abs(along) ** 2.2
    width = 0.275 - 0.035 * opening + 0.03 * expression.smile
    x = width * along
    line = 0.64 + 0.05 * opening - 0.06 * expression.smile * (along**2 - 0.4)
    inner_top = line - 0.035 * opening * arch
    inner_bottom = line + 0.2 * opening * arch
    bow = np.exp(-((along / 0.16) ** 2))  # the dent in the middle of the upper lip
    outer_top = inner_top - arch * (0.075 - 0.022 * bow)
    outer_bottom = inner_bottom + arch * 0.095
    # Lips extend slightly beyond the opening at the corners.
    edges = (outer_top, inner_top, inner_bottom, outer_bottom)
    top, mid_top, mid_bottom, bottom = (
        head.at(np.stack([x * (1.0 if i in (1, 2) else 1.06), y], axis=1), lift=0.03)
        for i, y in enumerate(edges)
    )
    shade = ellipse(head.at((0, 0.78 + 0.22 * opening))[0], 0.15 * r, 0.03 * r)
    canvas.fill(shade, shaded(palette.skin, 0.78), feather=0.03 * r, opacity=0.5)
    upper_lip = np.concatenate([top, mid_top[::-1]])
    lower_lip = np.concatenate([mid_bottom, bottom[::-1]])
    if opening > 0.02:
        inside = np.concatenate([mid_top, mid_bottom[::-1]])
        canvas.fill(inside, (72, 22, 26))
        tongue = ellipse(head.at((0, 0.7 + 0.2 * opening))[0], 0.14 * r, 0.07 * r)
        canvas.fill(tongue, (184, 86, 88), feather=0.02 * r, clip=inside)
        drop = (0, min(0.055, 0.11 * opening) * r)
        teeth = np.concatenate([mid_top, (mid_top + drop)[::-1]])
        canvas.fill(teeth, (240, 236, 226), clip=inside)
    canvas.fill(upper_lip, shaded(palette.lips, 0.9), bulge=0.03 * r)
    canvas.fill(lower_lip, palette.lips, bulge=0.05 * r, relief=0.3)
    canvas.fill(ribbon(mid_top, 0.02 * r), (112, 46, 46), opacity=0.9)
    gloss = ellipse(head.at((-0.06, 0.695 + 0.23 * opening), lift=0.05)[0], 0.05 * r, 0.014 * r)
    canvas.fill(gloss, (240, 180, 172), feather=0.012 * r, opacity=0.6)


def _draw_fringe(canvas: Canvas, head: _Head, palette: Palette) -> None:
    """Hair over the forehead, parted on the image's left."""
    r = head.radius
    rim = [(-0.74, 0.12), (-0.84, -0.3), (-0.74, -0.75), (-0.42, -1.06), (0, -1.15)]
    rim += [(0.42, -1.06), (0.74, -0.75), (0.84, -0.3), (0.74, 0.12)]
    line = [
        (0.67, -0.22),
        (0.57, -0.5),
        (0.25, -0.62),
        (-0.22, -0.76),
        (-0.5, -0.58),
        (-0.67, -0.2),
    ]
    points = np.array(rim + line)
    depth = np.interp(np.abs(points[:, 0]), (0.3, 0.7), (0.45, 0.12))
    depth[: len(rim)] = 0.0
    hair = curve(head.at(points, depth))
    canvas.fill(hair, palette.hair, bulge=0.14 * r, relief=0.4, shadow=0.2)
    for start, bend, end in (
        ((-0.26, -0.8), (0.1, -0.95), (0.62, -0.68)),
        ((-0.3, -0.84), (-0.5, -0.78), (-0.7, -0.42)),
        ((-0.2, -0.92), (0.2, -1.05), (0.7, -0.75)),
    ):
        strand = curve(head.at(np.array([start, bend, end]), 0.35), closed=False)
        canvas.fill(ribbon(strand, 0.03 * r), shaded(palette.hair, 1.5), opacity=0.5, clip=hair)


def truth(*, count: int = 120, fps: float = 30.0, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Ground truth of each frame; every entry is float32 [T].

    mouth_openness, eye_openness: 0 closed .. 1 open. yaw, pitch, roll: radians (see
    `Expression`). gaze_x, gaze_y, brows: -1 .. 1. smile: 0 .. 1.
    """
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, 12)
    t = np.arange(count) / fps

    def wave(hertz: float, index: int) -> NDArray[np.float64]:
        return np.asarray(np.sin(2 * np.pi * hertz * t + phase[index]))

    # About three syllables per second, grouped into phrases with pauses between them.
    phrase = 1 / (1 + np.exp(-6 * (wave(0.45, 0) + 0.45)))
    syllables = (0.5 + 0.5 * wave(2.9, 1)) * (0.62 + 0.38 * wave(1.1, 2))
    # A blink takes 0.2 seconds and occurs every 1.6 seconds.
    since = (t + rng.uniform(0.2, 1.2)) % 1.6
    blink = np.exp(-(((since - 0.12) / 0.055) ** 2))
    values = {
        "mouth_openness": phrase * syllables,
        "eye_openness": np.clip(1 - 1.06 * blink, 0, 1) * (0.92 + 0.08 * wave(0.3, 3)),
        "yaw": 0.28 * wave(0.25, 4) + 0.06 * wave(0.6, 5),
        "pitch": 0.09 * wave(0.4, 6) + 0.03 * wave(1.3, 7),
        "roll": 0.05 * wave(0.33, 8),
        "gaze_x": np.tanh(2.5 * wave(0.35, 9)) * 0.8,
        "gaze_y": 0.5 * wave(0.5, 10),
        "brows": 0.7 * wave(0.55, 11),
        "smile": 0.35 + 0.25 * wave(0.2, 6),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


def _studio(height: int, width: int) -> Image:
    """A static backdrop: a soft gradient, brighter behind the head."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    glow = np.exp(-(((x / width - 0.5) / 0.55) ** 2) - ((y / height - 0.38) / 0.5) ** 2)[..., None]
    rim, core = np.array((84, 108, 124), np.float32), np.array((188, 208, 212), np.float32)
    return np.asarray(np.round(rim + (core - rim) * glow), np.uint8)


def frames(
    *, count: int = 120, height: int = 512, width: int = 512, fps: float = 30.0, seed: int = 0
) -> Iterator[Image]:
    """Yield `count` RGB frames, uint8 [H, W, 3], of the talking face described by `truth`."""
    background = _studio(height * SUPERSAMPLE, width * SUPERSAMPLE)
    truths = truth(count=count, fps=fps, seed=seed)
    radius = 0.29 * min(height, width)
    palette = Palette()
    for i in range(count):
        value = {name: float(series[i]) for name, series in truths.items()}
        expression = Expression(
            yaw=value["yaw"],
            pitch=value["pitch"],
            roll=value["roll"],
            mouth=value["mouth_openness"],
            smile=value["smile"],
            eyes=value["eye_openness"],
            gaze=(value["gaze_x"], value["gaze_y"]),
            brows=value["brows"],
        )
        middle = np.array((0.5 * width, 0.44 * height))
        centre = middle + radius * np.array((0.25 * value["yaw"], 0.15 * value["pitch"]))
        canvas = Canvas(background)
        _draw_shoulders(canvas, middle, radius, palette)
        draw_head(canvas, centre, radius, expression, palette)
        yield canvas.finish()


def _draw_shoulders(canvas: Canvas, middle: Points, r: float, palette: Palette) -> None:
    half = [(0.36, 1.2), (0.8, 1.36), (1.4, 1.56), (1.62, 2.0), (1.7, 2.9)]
    shirt = np.array([*((-x, y) for x, y in half[::-1]), *half]) * r + middle
    neck = np.array([(-0.4, 0.5), (-0.4, 1.1), (-0.52, 1.3), (0, 1.72), (0.52, 1.3), (0.4, 1.1)])
    neck = np.concatenate([neck, [(0.4, 0.5)]]) * r + middle
    canvas.fill(curve(shirt), (58, 92, 128), bulge=0.25 * r, relief=0.3)
    canvas.fill(curve(neck), palette.skin, bulge=0.14 * r, relief=0.25)
    under = ellipse(middle + (0.04 * r, 0.95 * r), 0.42 * r, 0.26 * r)
    canvas.fill(under, shaded(palette.skin, 0.66), feather=0.1 * r, opacity=0.7, clip=curve(neck))
    collar = np.array([(-0.54, 1.26), (-0.3, 1.6), (0, 1.8), (0.3, 1.6), (0.54, 1.26)])
    band = curve(collar * r + middle, closed=False)
    canvas.fill(ribbon(band, 0.11 * r), (44, 74, 106), bulge=0.03 * r)
