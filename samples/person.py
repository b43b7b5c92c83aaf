"""Draws two people, a host and a guest, each dancing alone in a static room.

The figure is drawn over a small 3D skeleton. Body axes, in units of the standing height: x to the
image's right, y down, z to the viewer; the origin is on the floor between the feet. The
projection is orthographic. Left and right are the person's own: when facing the viewer, the
person's left is on the image's right.

`PEOPLE` defines them. The guest has another build, clothes, room, position and dance rhythm, but
does not raise arms and feet further than the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.errors import UnknownName
from v2v.samples._draw import (
    SUPERSAMPLE,
    Canvas,
    Image,
    Points,
    Rgb,
    curve,
    ellipse,
    fill_polygon,
    limb,
    ribbon,
    tube,
)
from v2v.samples.face import Expression, Palette, draw_head

JOINT_NAMES = (
    "nose",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)

_SIDES = (("left", 1), ("right", -1))  # the sign of x on each side of the body
_ANKLE = 0.045  # its height above the floor

# Frequencies of all motion besides the step, in cycles per beat. Their ratios to the beat and to
# each other are irrational, so a dance of any length never repeats a pose.
RIGHT = 3**0.5 / 2  # of the right arm, relative to the left one
SWING = {"left": 19**0.5 / 5, "right": 5**0.5 / 2}  # of hand and forearm
TURN = 7**0.5 / 6  # of the chest
GAZE = 11**0.5 / 9  # of the head
TALK = 13**0.5 / 5  # of the mouth
FIGURE = 17**0.5 / 18  # of the slow change between small and large steps

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Build:
    """Lengths of a body, in units of the standing height."""

    head: float = 0.071  # half the head's height
    neck: float = 0.124  # from the midpoint of the shoulders to the centre of the head
    spine: float = 0.3  # from the midpoint of the hips to the midpoint of the shoulders
    shoulder: float = 0.102  # from the body's midline
    upper_arm: float = 0.165
    forearm: float = 0.145
    hand: float = 0.085
    hip: float = 0.058  # from the body's midline
    thigh: float = 0.235
    shin: float = 0.232
    hips_up: float = 0.497  # height of the hips while dancing
    girth: float = 1.0  # thickness of limbs and pelvis, relative to the host


@dataclass(frozen=True)
class Dance:
    """The timing of a dance; only `reach` changes the range of motion."""

    tempo: float = 0.75  # beats per second; the knees bend twice per beat
    steps: float = 1.0  # side-to-side cycles per beat
    arms: float = 0.42  # raises of the left arm per beat; `RIGHT` scales it for the right arm
    lag: float = 0.8 * np.pi  # phase lead of the right arm over the left, radians
    hold: float = 0.0  # how long a step or a raised arm is held
    reach: float = 1.0  # fraction of the arms' range that is used


@dataclass(frozen=True)
class Clothes:
    shirt: Rgb = (206, 84, 66)
    collar: Rgb = (172, 64, 50)
    trousers: Rgb = (52, 66, 96)
    crease: Rgb = (34, 44, 68)
    shoes: Rgb = (232, 230, 224)
    laces: Rgb = (150, 148, 146)
    soles: Rgb = (96, 92, 92)


@dataclass(frozen=True)
class Room:
    wall: Rgb = (166, 184, 180)
    glow: Rgb = (52, 46, 40)  # added to the wall by the lamp
    floor: Rgb = (186, 150, 116)


@dataclass(frozen=True)
class Person:
    """A drawn person and their room."""

    build: Build = Build()
    dance: Dance = Dance()
    clothes: Clothes = Clothes()
    palette: Palette = Palette()
    room: Room = Room()
    stature: float = 1.0  # standing height in the image, relative to the host
    place: tuple[float, float] = (0.0, 0.0)  # offset right and down from the host, in host heights


PEOPLE = {
    "host": Person(),
    "guest": Person(
        build=Build(
            head=0.077,
            neck=0.128,
            spine=0.345,
            shoulder=0.122,
            upper_arm=0.158,
            forearm=0.134,
            hand=0.082,
            hip=0.064,
            thigh=0.208,
            shin=0.2,
            hips_up=0.441,
            girth=1.12,
        ),
        dance=Dance(tempo=0.9, steps=0.5, arms=1 / 3, lag=0.9 * np.pi, hold=1.3, reach=0.8),
        clothes=Clothes(
            shirt=(232, 178, 62),
            collar=(198, 144, 40),
            trousers=(74, 104, 80),
            crease=(50, 74, 56),
            shoes=(92, 60, 52),
            laces=(212, 196, 176),
            soles=(226, 220, 208),
        ),
        palette=Palette(
            skin=(172, 118, 86),
            hair=(38, 32, 34),
            lips=(150, 76, 72),
            iris=(70, 46, 34),
            blush=(176, 92, 74),
            under_chin=(124, 80, 58),
            fingers=(136, 88, 64),
        ),
        room=Room(wall=(140, 138, 172), glow=(58, 50, 34), floor=(150, 146, 148)),
        stature=0.82,
        place=(0.06, -0.03),
    ),
}


def _find_person(who: str) -> Person:
    if who not in PEOPLE:
        raise UnknownName.among("person", who, PEOPLE)
    return PEOPLE[who]


@dataclass(frozen=True)
class _Body:
    """One posed figure: 3D points in body axes, and a facial expression."""

    points: dict[str, Vector]
    expression: Expression


def _vector(x: float, y: float, z: float) -> Vector:
    return np.array((x, y, z), float)


def _rotated(offset: Vector, yaw: float, roll: float) -> Vector:
    """`offset` rotated by `roll` in the image plane, then by `yaw` about the vertical."""
    x, y, z = offset
    x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
    return _vector(x * np.cos(yaw) + z * np.sin(yaw), y, z * np.cos(yaw) - x * np.sin(yaw))


def _knee(hip: Vector, ankle: Vector, pole: Vector, build: Build) -> Vector:
    """The knee of a leg with fixed bone lengths, bent towards `pole`."""
    thigh, shin = build.thigh, build.shin
    span = ankle - hip
    distance = min(float(np.linalg.norm(span)), (thigh + shin) * 0.9995)
    along = span / np.linalg.norm(span)
    reach = (thigh**2 - shin**2 + distance**2) / (2 * distance)
    out = pole - along * np.dot(pole, along)
    rise = np.sqrt(max(thigh**2 - reach**2, 0.0))
    return np.asarray(hip + along * reach + out / np.linalg.norm(out) * rise)


def _wave(angle: float, hold: float) -> float:
    """A sine that is held at its extremes by `hold`."""
    sine = float(np.sin(angle))
    return float(np.tanh(hold * sine) / np.tanh(hold)) if hold else sine


def _pose(t: float, phase: Vector, person: Person) -> _Body:
    """The dance at time `t` seconds; `phase` [8] in radians depends on the seed."""
    build, dance = person.build, person.dance
    beat = 2 * np.pi * dance.tempo * t + phase[0]
    step = dance.steps * beat
    figure = np.sin(FIGURE * beat + phase[7])
    size = 0.75 + 0.25 * figure  # of steps and knee bends
    sway, bounce = size * _wave(step, dance.hold), size * (0.5 - 0.5 * np.cos(2 * beat))
    turn = 0.16 * np.sin(TURN * beat + phase[1])  # yaw of the chest, radians
    lean = 0.05 * size * np.sin(step + 0.6)

    pelvis = _vector(0.032 * sway, -build.hips_up + 0.022 * bounce, 0.0)
    chest = pelvis + _rotated(_vector(0, -build.spine, 0), 0.0, lean)
    head = chest + _rotated(_vector(0, -build.neck, 0.012), 0.0, 1.4 * lean)
    points = {"pelvis": pelvis, "chest": chest, "head": head}

    for side, sign in _SIDES:
        hip = pelvis + _rotated(_vector(sign * build.hip, 0, 0), 0.5 * turn, -0.07 * sway)
        # The foot without weight steps out and back.
        free = np.clip(-sign * sway, 0, 1) ** 2
        ankle = _vector(sign * (0.088 + 0.05 * free), -_ANKLE - 0.05 * free, 0.01)
        points[f"{side}_hip"] = hip
        points[f"{side}_ankle"] = ankle
        points[f"{side}_knee"] = _knee(hip, ankle, _vector(sign * 0.17, 0, 1), build)
        points[f"{side}_toe"] = ankle + _vector(sign * 0.022, 0.04 + 0.01 * free, 0.09)
        points.update(_arm(side, sign, chest, turn, lean, beat, phase[6] + figure, person))

    expression = Expression(
        yaw=0.25 * np.sin(GAZE * beat + phase[2]) + 0.5 * turn,
        pitch=0.06 * np.sin(beat + phase[3]),
        roll=0.8 * lean,
        mouth=0.25 + 0.2 * np.sin(TALK * beat + phase[4]),
        smile=0.9,
        eyes=1 - 0.95 * np.exp(-((((t + phase[5]) % 2.3 - 0.15) / 0.06) ** 2)),
        brows=0.3 * np.sin(TURN * beat),
    )
    yaw, pitch = expression.yaw, expression.pitch
    nose = _vector(1.05 * np.sin(yaw), 0.37 + 0.95 * np.sin(pitch), 1.0) * build.head
    points["nose"] = head + _rotated(nose, 0.0, expression.roll)
    return _Body(points, expression)


def _arm(
    side: str,
    sign: int,
    chest: Vector,
    turn: float,
    lean: float,
    beat: float,
    phase: float,
    person: Person,
) -> dict[str, Vector]:
    """Shoulder, elbow, wrist and hand of one arm, which moves at its own frequencies."""
    build, dance = person.build, person.dance
    offset = phase if sign > 0 else phase + dance.lag  # the arms alternate
    raises = dance.arms * beat * (1.0 if sign > 0 else RIGHT)
    raised = 0.5 + 0.5 * dance.reach * _wave(raises + offset, dance.hold)
    swing = SWING[side] * beat + offset
    # Elevations in the frontal plane, 0 hanging .. pi straight up; the forearm leads.
    upper = 0.42 + 1.35 * raised + 0.16 * np.sin(swing)
    fore = upper + 1.05 + 0.25 * raised + 0.28 * np.sin(swing + 0.8)
    hand = fore + 0.2 * np.sin(swing + 2.0)
    shrug = -0.018 * max(raised - 0.4, 0.0)

    def bone(elevation: float, length: float, forward: float) -> Vector:
        flat = np.cos(forward) * length
        x, y = sign * np.sin(elevation) * flat, np.cos(elevation) * flat
        return _rotated(_vector(x, y, np.sin(forward) * length), turn, lean)

    shoulder = chest + _rotated(_vector(sign * build.shoulder, shrug, 0), turn, lean)
    elbow = shoulder + bone(upper, build.upper_arm, 0.3)
    wrist = elbow + bone(fore, build.forearm, 0.62)
    points = {"shoulder": shoulder, "elbow": elbow, "wrist": wrist}
    points["hand"] = wrist + bone(hand, build.hand, 0.45)
    return {f"{side}_{name}": point for name, point in points.items()}


@dataclass(frozen=True)
class _Camera:
    """Orthographic view: body units to pixels."""

    origin: Points  # image point of the floor between the feet
    scale: float  # pixels per standing height

    @classmethod
    def fitting(cls, height: int, width: int, person: Person) -> _Camera:
        scale = min(0.75 * height, 1.03 * width)
        right, down = person.place
        origin = np.array((0.5 * width + right * scale, 0.5 * height + (0.54 + down) * scale))
        return cls(origin, scale * person.stature)

    def __call__(self, point: Vector) -> Points:
        return np.asarray(self.origin + self.scale * point[:2])


def _posed_bodies(
    who: str, *, count: int, fps: float, seed: int, finale: int
) -> tuple[Person, Iterator[_Body]]:
    """The person, and their posed body in each frame."""
    person, phase = _find_person(who), _dancer(seed)
    other = next(value for name, value in PEOPLE.items() if name != who)
    encore = replace(person, dance=other.dance)

    def bodies() -> Iterator[_Body]:
        for i in range(count):
            yield _pose(i / fps, phase, person if i < count - finale else encore)

    return person, bodies()


def _dancer(seed: int) -> Vector:
    """The random phases of a seed's dance."""
    spread = np.array((np.pi, 1.0, 1.0, 1.0, np.pi, 1.0, np.pi, np.pi))
    return np.asarray(np.random.default_rng(seed).uniform(-1, 1, 8) * spread)


def joints(
    *,
    count: int = 120,
    height: int = 640,
    width: int = 384,
    fps: float = 30.0,
    seed: int = 0,
    who: str = "host",
    finale: int = 0,
) -> NDArray[np.float32]:
    """The joints in `frames` with the same arguments, float32 [T, J, 2] (x, y) in pixels.

    J is in the order of `JOINT_NAMES`.
    """
    person, bodies = _posed_bodies(who, count=count, fps=fps, seed=seed, finale=finale)
    camera = _Camera.fitting(height, width, person)
    truths = [[camera(body.points[name]) for name in JOINT_NAMES] for body in bodies]
    return np.asarray(truths, np.float32).reshape(count, len(JOINT_NAMES), 2)


def frames(
    *,
    count: int = 120,
    height: int = 640,
    width: int = 384,
    fps: float = 30.0,
    seed: int = 0,
    who: str = "host",
    empty: int = 0,
    finale: int = 0,
) -> Iterator[Image]:
    """`count` RGB frames, uint8 [H, W, 3], of a dance by one of `PEOPLE`.

    No pose repeats, so the end of a clip has poses that its start lacks. The first `empty` frames
    show the empty room, so that the whole background is visible. In the last `finale` frames the
    person dances the other person's dance.
    """
    person, bodies = _posed_bodies(who, count=count, fps=fps, seed=seed, finale=finale)
    camera = _Camera.fitting(height, width, person)

    def drawn() -> Iterator[Image]:
        room = _room(height * SUPERSAMPLE, width * SUPERSAMPLE, camera, person.room)
        empty_room = Canvas(room.copy()).finish() if empty else None
        for i, body in enumerate(bodies):
            if empty_room is not None and i < empty:
                yield empty_room
                continue
            canvas = Canvas(_with_shadow(room, body, camera))
            _draw_body(canvas, body, camera, person)
            yield canvas.finish()

    return drawn()


def _room(height: int, width: int, camera: _Camera, tints: Room) -> Image:
    """A plain wall with a skirting board and a wooden floor, at canvas size."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    unit = camera.scale * SUPERSAMPLE
    edge = camera.origin[1] * SUPERSAMPLE - 0.1 * unit  # where wall and floor meet
    glow = np.exp(-(((x / width - 0.35) / 0.8) ** 2) - ((y / height - 0.25) / 0.7) ** 2)[..., None]
    wall = np.array(tints.wall) + np.array(tints.glow) * glow
    # Floorboards run towards the viewer from a vanishing point high on the wall.
    board = (x - 0.5 * width) / (y - edge + 0.9 * unit) * 9
    seam = np.abs(board - np.round(board))
    tone = 1 + 0.05 * np.sin(np.floor(board + 0.5) * 2.4) - 0.22 * np.exp(-((seam / 0.02) ** 2))
    depth = np.clip((y - edge) / (0.3 * unit), 0, 1)
    floor = np.array(tints.floor) * (tone * (0.86 + 0.14 * depth))[..., None]
    room = np.where((y < edge)[..., None], wall, floor)
    skirting = (y < edge) & (y > edge - 0.055 * unit)
    room[skirting] = (236, 234, 228)
    lip = np.abs(y - (edge - 0.05 * unit)) < 0.003 * unit
    room[lip] = (206, 204, 198)
    ground = np.exp(-np.abs(y - edge) / (0.012 * unit))[..., None]
    room = room * (1 - 0.25 * ground)
    return np.asarray(np.clip(np.round(room), 0, 255), np.uint8)


def _with_shadow(room: Image, body: _Body, camera: _Camera) -> Image:
    """The room with the figure's soft shadow on the floor."""
    shrink = 8  # the shadow is smooth, so a coarse grid is sufficient
    shade = np.zeros((room.shape[0] // shrink + 1, room.shape[1] // shrink + 1), np.float32)
    to_grid = SUPERSAMPLE / shrink
    unit = camera.scale * to_grid
    middle = camera.origin * to_grid + (body.points["pelvis"][0] * unit, 0.012 * unit)
    spots = [(middle, 0.2, 0.035, 0.35)]
    for side, _ in _SIDES:
        foot = body.points[f"{side}_toe"]
        lifted = -body.points[f"{side}_ankle"][1] - _ANKLE
        at = camera.origin * to_grid + (foot[0] * unit, 0.0)
        spots.append((at, 0.055 + lifted, 0.018, 0.5 - 5 * lifted))
    for at, rx, ry, dark in spots:
        spot = np.zeros_like(shade)
        fill_polygon(spot, ellipse(at, rx * unit, ry * unit), dark)
        shade = shade + cv2.GaussianBlur(spot, (0, 0), max(0.02 * unit, 0.5))
    size = (room.shape[1], room.shape[0])
    light = 1 - np.clip(cv2.resize(shade, size, interpolation=cv2.INTER_CUBIC), 0, 0.8)
    rows = slice(int((camera.origin[1] - 0.2 * camera.scale) * SUPERSAMPLE), None)
    shaded = room.copy()
    shaded[rows] = (room[rows] * light[rows, :, None] + 0.5).astype(np.uint8)
    return shaded


def _draw_body(canvas: Canvas, body: _Body, camera: _Camera, person: Person) -> None:
    at = {name: camera(point) for name, point in body.points.items()}
    unit = camera.scale
    for side, sign in sorted(_SIDES, key=lambda entry: body.points[f"{entry[0]}_knee"][2]):
        _draw_leg(canvas, at, side, sign, unit, person)
    for side, sign in _SIDES:
        _draw_arm(canvas, at, side, sign, unit, person)
    _draw_torso(canvas, at, unit, person)
    draw_head(canvas, at["head"], person.build.head * unit, body.expression, person.palette)


def _draw_leg(
    canvas: Canvas, at: dict[str, Points], side: str, sign: int, unit: float, person: Person
) -> None:
    thick = person.build.girth * unit
    clothes = person.clothes
    hip, knee, ankle, toe = (at[f"{side}_{name}"] for name in ("hip", "knee", "ankle", "toe"))
    heel = ankle + (0, 0.022 * unit)
    sole = limb([heel + (0, 0.008 * unit), toe + (0, 0.005 * unit)], [0.022 * unit, 0.026 * unit])
    canvas.fill(sole, clothes.soles, bulge=0.01 * unit)
    shoe = limb([ankle, heel, toe - (0, 0.003 * unit)], [0.02 * unit, 0.022 * unit, 0.024 * unit])
    canvas.fill(shoe, clothes.shoes, bulge=0.016 * unit, relief=0.35)
    laces = ankle * 0.45 + toe * 0.55
    for step in (-0.1, 0.15):
        middle = laces + step * (toe - ankle)
        line = np.stack([middle + (k * 0.012 * unit, 0) for k in (-1, 0, 1)])
        canvas.fill(ribbon(line, 0.005 * unit), clothes.laces)
    cuff = ankle - 0.06 * (ankle - knee)
    leg = tube([hip, knee, cuff], [0.056 * thick, 0.043 * thick, 0.034 * thick], cut=True)
    canvas.fill(leg, clothes.trousers, bulge=0.03 * unit, relief=0.45, shadow=0.45)
    offsets = np.array([(-0.022, 0.0), (sign * 0.004, 0.008), (0.024, -0.002)])
    crease = ribbon(curve(knee + offsets * unit, closed=False), 0.008 * unit)
    canvas.fill(crease, clothes.crease, feather=0.002 * unit, opacity=0.6)


def _draw_torso(canvas: Canvas, at: dict[str, Points], unit: float, person: Person) -> None:
    build, clothes, palette = person.build, person.clothes, person.palette
    thick = build.girth * unit
    left, right = at["left_shoulder"], at["right_shoulder"]
    hip_left, hip_right = at["left_hip"], at["right_hip"]
    across, hips = (left - right) / 2, (hip_left - hip_right) / 2
    chest, pelvis = (left + right) / 2, (hip_left + hip_right) / 2
    down = pelvis - chest

    seat = limb([hip_right - (0, 0.01 * unit), hip_left - (0, 0.01 * unit)], [0.054 * thick] * 2)
    canvas.fill(seat, clothes.trousers, bulge=0.035 * unit, relief=0.35)
    throat = at["head"] + (0, 0.95 * build.head * unit)
    neck = limb([chest + 0.08 * down, throat], [0.04 * thick, 0.033 * thick])
    canvas.fill(neck, palette.skin, bulge=0.02 * unit, relief=0.3, shadow=0.2)
    chin = ellipse(throat + (0, 0.01 * unit), 0.038 * thick, 0.022 * thick)
    canvas.fill(chin, palette.under_chin, feather=0.008 * unit, opacity=0.7, clip=neck[0])

    neckline = np.array([(-0.4, -0.13), (-0.27, -0.02), (0, 0.035), (0.27, -0.02), (0.4, -0.13)])
    collar = chest + neckline[:, :1] * across + neckline[:, 1:] * down
    flank = [(0.62, -0.14), (0.95, -0.105), (1.14, 0.04), (1.0, 0.26)]
    waist = [(0.86, 0.58), (1.03, 0.88), (1.1, 1.07)]
    sides = []
    for sign in (1, -1):
        upper = [chest + sign * k * across + v * down for k, v in flank]
        lower = [chest + v * down + sign * k * (0.42 * across + 1.1 * hips) for k, v in waist]
        sides.append([*upper, *lower])
    hem = [pelvis + 0.1 * down]
    torso = curve(np.stack([*collar, *sides[0], *hem, *sides[1][::-1]]))
    sleeves = []
    for side, _ in _SIDES:
        shoulder, elbow = at[f"{side}_shoulder"], at[f"{side}_elbow"]
        ends = [shoulder, shoulder + 0.62 * (elbow - shoulder)]
        sleeves += tube(ends, [0.036 * thick, 0.041 * thick], cut=True)
    # Shirt and sleeves are one piece of cloth, so they are shaded together.
    canvas.fill([torso, *sleeves], clothes.shirt, bulge=0.055 * unit, relief=0.45, shadow=0.4)
    canvas.fill(ribbon(curve(collar, closed=False), 0.014 * unit), clothes.collar)


def _draw_arm(
    canvas: Canvas, at: dict[str, Points], side: str, sign: int, unit: float, person: Person
) -> None:
    thick = person.build.girth * unit
    shoulder, elbow, wrist, hand = (
        at[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist", "hand")
    )
    _draw_hand(canvas, wrist, hand, sign, unit, person)
    skin = tube([shoulder, elbow, wrist], [0.034 * thick, 0.026 * thick, 0.0185 * thick])
    canvas.fill(skin, person.palette.skin, bulge=0.018 * unit, relief=0.3, shadow=0.4)


def _draw_hand(
    canvas: Canvas, wrist: Points, hand: Points, sign: int, unit: float, person: Person
) -> None:
    """An open hand, palm to the viewer, from `wrist` to the middle fingertip `hand`."""
    along = hand - wrist
    length = max(float(np.hypot(*along)), 0.5 * person.build.hand * unit)
    along = along / np.hypot(*along) * length
    thumbward = np.array((along[1], -along[0])) * sign
    knuckles = wrist + 0.5 * along
    fingers = []
    for k, reach, spread in (
        (0.2, 0.93, 0.1),
        (0.07, 1.0, 0.03),
        (-0.06, 0.95, -0.05),
        (-0.18, 0.8, -0.13),
    ):
        base = knuckles + k * thumbward - 0.03 * abs(k) * along
        tip = wrist + reach * along + (k + spread) * thumbward
        fingers += limb([base, tip], [0.07 * length, 0.052 * length])
    thumb = [
        wrist + 0.15 * along + 0.12 * thumbward,
        wrist + 0.36 * along + 0.34 * thumbward,
        wrist + 0.56 * along + 0.44 * thumbward,
    ]
    fingers += limb(thumb, [0.1 * length, 0.075 * length, 0.055 * length])
    palm = limb([wrist + 0.1 * along, knuckles - 0.06 * along], [0.17 * length, 0.235 * length])
    canvas.fill(fingers + palm, person.palette.skin, bulge=0.05 * length, relief=0.3, shadow=0.4)
    for k in (0.13, 0.0, -0.12):
        gap = np.stack([knuckles + k * thumbward + v * along for v in (-0.04, 0.06, 0.14)])
        canvas.fill(ribbon(gap, 0.03 * length), person.palette.fingers, opacity=0.7)
