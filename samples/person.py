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

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.samples._draw import (
    SUPERSAMPLE,
    Canvas,
    Image,
    Points,
    curve,
    ellipse,
    fill_polygon,
    limb,
    ribbon,
    tube,
)
from v2v.samples.face import draw_head
from v2v.samples.figures import (
    ANKLE,
    JOINT_NAMES,
    SIDES,
    Person,
    PosedBody,
    Room,
    SceneCamera,
    posed_bodies,
)


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
    person, bodies = posed_bodies(who, count=count, fps=fps, seed=seed, finale=finale)
    camera = SceneCamera.fitting(height, width, person)
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
    person, bodies = posed_bodies(who, count=count, fps=fps, seed=seed, finale=finale)
    camera = SceneCamera.fitting(height, width, person)

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


def _room(height: int, width: int, camera: SceneCamera, tints: Room) -> Image:
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


def _with_shadow(room: Image, body: PosedBody, camera: SceneCamera) -> Image:
    """The room with the figure's soft shadow on the floor."""
    shrink = 8  # the shadow is smooth, so a coarse grid is sufficient
    shade = np.zeros((room.shape[0] // shrink + 1, room.shape[1] // shrink + 1), np.float32)
    to_grid = SUPERSAMPLE / shrink
    unit = camera.scale * to_grid
    middle = camera.origin * to_grid + (body.points["pelvis"][0] * unit, 0.012 * unit)
    spots = [(middle, 0.2, 0.035, 0.35)]
    for side, _ in SIDES:
        foot = body.points[f"{side}_toe"]
        lifted = -body.points[f"{side}_ankle"][1] - ANKLE
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


def _draw_body(canvas: Canvas, body: PosedBody, camera: SceneCamera, person: Person) -> None:
    at = {name: camera(point) for name, point in body.points.items()}
    unit = camera.scale
    for side, sign in sorted(SIDES, key=lambda entry: body.points[f"{entry[0]}_knee"][2]):
        _draw_leg(canvas, at, side, sign, unit, person)
    for side, sign in SIDES:
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
    for side, _ in SIDES:
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
