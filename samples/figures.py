"""The drawn people: their bodies, clothes, rooms and dances, and where their joints are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from v2v.errors import UnknownName
from v2v.samples._draw import Points, Rgb
from v2v.samples.face import Expression, Palette

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
SIDES = (("left", 1), ("right", -1))  # the sign of x on each side of the body
ANKLE = 0.045  # its height above the floor

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
class PosedBody:
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


def _pose(t: float, phase: Vector, person: Person) -> PosedBody:
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

    for side, sign in SIDES:
        hip = pelvis + _rotated(_vector(sign * build.hip, 0, 0), 0.5 * turn, -0.07 * sway)
        # The foot without weight steps out and back.
        free = np.clip(-sign * sway, 0, 1) ** 2
        ankle = _vector(sign * (0.088 + 0.05 * free), -ANKLE - 0.05 * free, 0.01)
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
    return PosedBody(points, expression)


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
class SceneCamera:
    """Orthographic view: body units to pixels."""

    origin: Points  # image point of the floor between the feet
    scale: float  # pixels per standing height

    @classmethod
    def fitting(cls, height: int, width: int, person: Person) -> SceneCamera:
        scale = min(0.75 * height, 1.03 * width)
        right, down = person.place
        origin = np.array((0.5 * width + right * scale, 0.5 * height + (0.54 + down) * scale))
        return cls(origin, scale * person.stature)

    def __call__(self, point: Vector) -> Points:
        return np.asarray(self.origin + self.scale * point[:2])


def posed_bodies(
    who: str, *, count: int, fps: float, seed: int, finale: int
) -> tuple[Person, Iterator[PosedBody]]:
    """The person, and their posed body in each frame."""
    person, phase = _find_person(who), _dancer(seed)
    other = next(value for name, value in PEOPLE.items() if name != who)
    encore = replace(person, dance=other.dance)

    def bodies() -> Iterator[PosedBody]:
        for i in range(count):
            yield _pose(i / fps, phase, person if i < count - finale else encore)

    return person, bodies()


def _dancer(seed: int) -> Vector:
    """The random phases of a seed's dance."""
    spread = np.array((np.pi, 1.0, 1.0, 1.0, np.pi, 1.0, np.pi, np.pi))
    return np.asarray(np.random.default_rng(seed).uniform(-1, 1, 8) * spread)
