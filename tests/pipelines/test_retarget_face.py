"""Face retargeting on synthetic faces, whose motion is known exactly.

The faces are constructed: the drawn curves on a rounded head, the other points in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from v2v.errors import ConfigError, NothingFound, UnknownName
from v2v.pipelines.retarget.face import FaceTransfer, Strengths
from v2v.pipelines.retarget.face_parts import EYES, LIPS, PARTS
from v2v.pipelines.retarget.face_profile import FaceProfile
from v2v.pipelines.retarget.face_range import out_of_distribution
from v2v.signals.face import (
    LIPS_INNER,
    LIPS_OUTER,
    MIRROR,
    NOSE_BASE,
    NOSE_BRIDGE,
    OVAL,
    POINTS,
    RIGHT_BROW,
    RIGHT_EYE,
    RIGHT_IRIS,
    FaceTrack,
    head_pose,
    mouth_openness,
)

Array = NDArray[np.float64]
SIDE = 256
NOTHING = Strengths(0, 0, 0, 0, 0, 0)


def person(
    *, eye: float = 0.05, mouth: float = 0.26, wide: float = 0.78, high: float = 0.95,
    brow: float = 0.22, seed: int = 0,
) -> Array:  # fmt: skip
    """A neutral canonical face [478, 3], outer eye corners 1 apart, symmetric, mouth closed."""
    rng = np.random.default_rng(seed)
    places = np.full((POINTS, 2), np.nan)
    turn = np.linspace(0, np.pi, 19)
    places[list(OVAL[:19])] = np.stack([-wide * np.sin(turn), 0.3 - high * np.cos(turn)], 1)
    for i, point in enumerate(RIGHT_EYE[:9]):
        places[point] = (-0.5 + 0.3 * i / 8, -eye * np.sin(np.pi * i / 8))
    for i, point in enumerate(RIGHT_EYE[9:], start=1):
        places[point] = (-0.2 - 0.3 * i / 8, 0.8 * eye * np.sin(np.pi * i / 8))
    places[468] = (-0.35, 0)
    for point, way in zip(RIGHT_IRIS, ((1, 0), (0, -1), (-1, 0), (0, 1)), strict=True):
        places[point] = places[468] + 0.055 * np.array(way)
    out = np.array([-0.58, -0.48, -0.38, -0.28, -0.18])
    places[list(RIGHT_BROW[:5])] = np.stack([out, -brow - 0.03 * np.sin(out * 4)], 1)
    places[list(RIGHT_BROW[5:])] = np.stack([out[::-1], -brow - 0.08 + 0 * out], 1)
    places[list(NOSE_BRIDGE)] = np.stack([np.zeros(10), np.linspace(0, 0.5, 10)], 1)
    for point, place in zip(NOSE_BASE[:5], ((-18, 42), (-20, 45), (-17, 49), (-12, 50), (-6, 51)),
                            strict=True):  # fmt: skip
        places[point] = np.array(place) / 100
    for ring, size, thick in ((LIPS_OUTER, 1.0, 0.07), (LIPS_INNER, 0.85, 0.0)):
        for i, point in enumerate(ring):
            angle = np.pi * i / 10
            places[point] = (-mouth * size * np.cos(angle), 0.7 - thick * np.sin(angle))
    for a in range(POINTS):
        if np.isnan(places[a, 0]) and np.isnan(places[MIRROR[a], 0]):
            places[a] = (-rng.uniform(0.1, 0.6) * (MIRROR[a] != a), rng.uniform(-0.55, 1.1))
        if np.isnan(places[MIRROR[a], 0]):
            places[MIRROR[a]] = places[a] * (-1, 1)
    x, y = places.T
    depth = 0.7 * x**2 + 0.25 * (y - 0.3) ** 2
    depth -= 0.3 * np.exp(-(x**2) / 0.02 - (y - 0.4) ** 2 / 0.05)
    return np.stack([x, y, depth], axis=1)


def about(yaw: float = 0, pitch: float = 0, roll: float = 0) -> Array:
    a, b, c = np.radians([yaw, pitch, roll])
    about_y = [[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    about_z = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    return np.array(about_y) @ about_x @ about_z


def filmed(
    shapes: Array, *, turns: Array | None = None, size: float | Array = 70.0,
    place: tuple[float, float] | Array = (128, 110), side: int = SIDE,
) -> FaceTrack:  # fmt: skip
    """The track of canonical shapes [T, 478, 3] after rotating, scaling and placing them."""
    count = len(shapes)
    turns = np.broadcast_to(np.eye(3), (count, 3, 3)) if turns is None else turns
    places = np.broadcast_to(size, (count,))[:, None, None] * shapes @ turns.transpose(0, 2, 1)
    places[..., :2] += np.broadcast_to(place, (count, 2))[:, None]
    points = np.ones_like(places, dtype=np.float32)
    points[..., :2] = places[..., :2]
    depth = places[..., 2].astype(np.float32)
    pose = head_pose(points, depth)
    return FaceTrack(
        points, depth, np.zeros(count, np.bool_), pose.rotation, pose.translation, pose.scale,
        side, side,
    )  # fmt: skip


# ---------------------------------------------------------------- motion of canonical shapes


def closed(shape: Array, share: float, sides: tuple[str, ...] = ("right", "left")) -> Array:
    """Lids closed by `share`; the upper lid moves two thirds of the way."""
    shape = shape.copy()
    for side in sides:
        upper, lower = EYES[side].upper, EYES[side].lower
        gap = share * (shape[lower, 1] - shape[upper, 1])
        shape[upper, 1] += gap * 2 / 3
        shape[lower, 1] -= gap / 3
    return shape


def speaking(shape: Array, gap: float) -> Array:
    """The lower lip and the chin moved down by `gap`, in units of the mouth's width."""
    shape = shape.copy()
    width = shape[291, 0] - shape[61, 0]
    for row in LIPS[2:]:
        shape[row, 1] += gap * width * np.sin(np.pi * np.arange(1, 10) / 10)
    chin = shape[list(OVAL), 1] > 0.8
    shape[np.array(OVAL)[chin], 1] += 0.6 * gap * width
    return shape


def looking(shape: Array, x: float, y: float) -> Array:
    shape = shape.copy()
    for eye in EYES.values():
        shape[eye.iris, :2] += (x, y)
    return shape


def brows_up(shape: Array, up: float) -> Array:
    shape = shape.copy()
    shape[[*RIGHT_BROW, *(MIRROR[i] for i in RIGHT_BROW)], 1] -= up
    return shape


def clip_of(shape: Array, count: int = 60, **place: float) -> FaceTrack:
    """A person who moves, speaks, looks around and blinks; frame 0 is neutral."""
    t = np.arange(count) / 25
    shapes = []
    for i, now in enumerate(t):
        moved = speaking(shape, 0.25 * np.sin(5 * now) ** 2)
        moved = looking(moved, 0.05 * np.sin(3 * now), 0.01 * np.sin(4 * now))
        moved = brows_up(moved, 0.06 * np.sin(2 * now) ** 2)
        shapes.append(closed(moved, max(0.0, 1 - abs(i - count // 2) / 3)))
    turns = np.stack([about(15 * np.sin(2 * s), 8 * np.sin(3 * s), 5 * np.sin(s)) for s in t])
    size = place.get("size", 70.0) * (1 + 0.1 * np.sin(t))
    centre = np.stack([place.get("x", 128) + 12 * np.sin(2 * t), 110 + 6 * np.sin(t)], 1)
    return filmed(np.stack(shapes), turns=turns, size=size, place=centre)


@pytest.fixture(scope="module")
def driver() -> FaceTrack:
    return clip_of(person())


@pytest.fixture(scope="module")
def target() -> FaceTrack:
    """A broader face with larger eyes and a wider mouth, elsewhere in the frame."""
    shape = person(eye=0.08, mouth=0.32, wide=0.85, high=1.0, brow=0.28, seed=1)
    return clip_of(shape, size=85.0, x=115)


def profile_of(track: FaceTrack, neutral: int | None = 0) -> FaceProfile:
    return FaceProfile.remembered(track.points, track.depth, track.width, track.height, neutral)


def moved(
    track: FaceTrack, target: FaceTrack, strengths: Strengths | None = None, **options: object
) -> FaceTrack:
    """The motion of `track` on `target`, both neutral in frame 0."""
    transfer = FaceTransfer(
        FaceProfile.measure(track, neutral=0),
        profile_of(target),
        strengths,
        **options,  # type: ignore[arg-type]
    )
    return transfer.apply(track)


def degrees(a: Array, b: Array) -> Array:
    trace = np.einsum("...ij,...ij->...", a.astype(float), b.astype(float))
    found: Array = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    return found


def max_distance(a: FaceTrack, b: FaceTrack) -> float:
    return float(np.abs(a.points[..., :2] - b.points[..., :2]).max())


# ---------------------------------------------------------------- invariants


@pytest.mark.parametrize("absolute", [False, True])
def test_zero_strengths_give_the_target_s_neutral(
    driver: FaceTrack, target: FaceTrack, absolute: bool
) -> None:
    still = moved(driver, target, NOTHING, absolute=absolute)
    np.testing.assert_allclose(still.points, np.repeat(target.points[:1], 60, 0), atol=1e-3)
    np.testing.assert_allclose(still.depth, np.repeat(target.depth[:1], 60, 0), atol=1e-3)


@pytest.mark.parametrize("absolute", [False, True])
def test_self_reenactment_is_the_identity(driver: FaceTrack, absolute: bool) -> None:
    same = moved(driver, driver, absolute=absolute)
    np.testing.assert_allclose(same.points, driver.points, atol=0.02)
    np.testing.assert_allclose(same.depth, driver.depth, atol=0.02)
    np.testing.assert_allclose(same.rotation, driver.rotation, atol=1e-4)
    np.testing.assert_allclose(same.scale, driver.scale, rtol=1e-4)


def test_each_frame_is_independent(driver: FaceTrack, target: FaceTrack) -> None:
    transfer = FaceTransfer(FaceProfile.measure(driver, neutral=0), profile_of(target))
    whole = transfer.apply(driver)
    parts = [transfer.apply(driver[i : i + 7]).points for i in range(0, 60, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole.points)


def test_frames_without_a_face_stay_missing(driver: FaceTrack, target: FaceTrack) -> None:
    transfer = FaceTransfer(FaceProfile.measure(driver, neutral=0), profile_of(target))
    values = {
        name: getattr(driver, name).copy()
        for name in ("points", "depth", "rotation", "translation", "scale")
    }
    for value in values.values():
        value[[3, 10]] = np.nan
    filled = driver.filled.copy()
    filled[4] = True
    gaps = transfer.apply(replace(driver, filled=filled, **values))
    whole = transfer.apply(driver)
    seen = np.delete(np.arange(60), [3, 10])
    for name in values:
        assert np.isnan(getattr(gaps, name)[[3, 10]]).all(), name
        np.testing.assert_array_equal(getattr(gaps, name)[seen], getattr(whole, name)[seen])
    assert gaps.filled[4] and gaps.filled.sum() == 1
    nobody = transfer.apply(replace(driver, **{k: v * np.nan for k, v in values.items()}))
    assert np.isnan(nobody.points).all() and len(nobody) == 60


# ---------------------------------------------------------------- the head


def test_the_driver_s_size_and_position_do_not_matter(driver: FaceTrack, target: FaceTrack) -> None:
    """A driver twice as large, elsewhere in a larger frame, gives the same result."""
    away = np.array([70, -40], np.float32)
    other = replace(
        driver, points=np.concatenate([2 * driver.points[..., :2] + away,
                                       driver.points[..., 2:]], axis=2),
        depth=2 * driver.depth, translation=2 * driver.translation + away, scale=2 * driver.scale,
        width=640, height=480,
    )  # fmt: skip
    result, expected = moved(other, target), moved(driver, target)
    assert max_distance(result, expected) < 0.01
    assert (result.width, result.height) == (target.width, target.height)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("turn", [(20, 0, 0), (0, -15, 0), (0, 0, 25), (15, 10, -8)])
def test_a_known_rotation(target: FaceTrack, turn: tuple[int, int, int], strength: float) -> None:
    start, end = about(5, -4, 3), about(*turn)
    track = filmed(np.stack([person()] * 2), turns=np.stack([start, end @ start]))
    result = moved(track, target, Strengths(rotation=strength))
    expected = strength * degrees(end, np.eye(3))
    estimated = head_pose(result.points, result.depth).rotation
    for found in (result.rotation, estimated):
        assert degrees(found[1], found[0]) == pytest.approx(expected, abs=0.3)
    if strength == 1:
        assert degrees(result.rotation[1], end @ target.rotation[0]) < 0.3


def test_translation_and_scale_are_relative_to_the_head(target: FaceTrack) -> None:
    track = filmed(
        np.stack([person()] * 2), size=np.array([50.0, 60.0]), place=np.array([[60, 90], [85, 70]])
    )
    result = moved(track, target, Strengths(scale=0.5))
    own = profile_of(target)
    ratio = own.scale / track.scale[0]
    shift = result.translation[1] - result.translation[0]
    driver_shift = track.translation[1] - track.translation[0]
    np.testing.assert_allclose(shift, driver_shift * ratio, rtol=1e-4)
    assert result.scale[1] / result.scale[0] == pytest.approx(1.2**0.5, rel=1e-3)


def test_absolute_mode_uses_the_driver_s_head_pose(target: FaceTrack) -> None:
    turns = np.stack([about(12, 5, 0), about(-18, 0, 6)])
    track = filmed(
        np.stack([person()] * 2), turns=turns, size=140.0, place=(320, 200), side=2 * SIDE
    )
    result = moved(track, target, absolute=True)
    np.testing.assert_allclose(result.rotation, track.rotation, atol=1e-4)
    np.testing.assert_allclose(result.translation, track.translation / 2, atol=1e-3)
    np.testing.assert_allclose(result.scale, track.scale / 2, rtol=1e-4)
    # The shape is still the target's.
    measured = FaceProfile.measure(result, neutral=0)
    np.testing.assert_allclose(measured.shape, profile_of(target).shape, atol=0.01)


# ---------------------------------------------------------------- eyes and mouth


def frontal(*shapes: Array) -> FaceTrack:
    return filmed(np.stack(shapes))


def test_a_blink_closes_larger_eyes(target: FaceTrack) -> None:
    face = person()
    result = moved(frontal(face, closed(face, 0.5), closed(face, 1.0)), target)
    assert result.eyes[2].max() < 0.05
    np.testing.assert_allclose(result.eyes[1] / result.eyes[0], 0.5, atol=0.02)
    assert result.eyes[0].min() > 1.4 * frontal(face).eyes.max(), (
        "the target must keep its larger eyes"
    )
    for eye in EYES.values():
        # The lids meet and do not overlap.
        gaps = result.points[:, eye.lower, 1] - result.points[:, eye.upper, 1]
        assert gaps.min() > -0.05


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 0.95])
def test_irises_stay_in_their_eyes(target: FaceTrack, share: float) -> None:
    """At any gaze and lid opening, if the driver's own irises stay in their eyes."""
    face = person()
    shapes = [face]
    for x, y in ((0.08, 0.0), (-0.08, 0.0), (0.0, 0.03), (0.0, -0.03), (0.06, 0.02)):
        closing = closed(looking(face, x, y * (1 - share)), share)
        for eye in EYES.values():
            lids = closing[[*eye.upper, *eye.lower], 1]
            over = np.clip(closing[eye.iris[0], 1], lids.min(), lids.max())
            closing[eye.iris, 1] += over - closing[eye.iris[0], 1]
        shapes.append(closing)
    for strengths in (Strengths(), Strengths(gaze=2), Strengths(gaze=2, blink=1.3)):
        result = moved(frontal(*shapes), target, strengths)
        for eye in EYES.values():
            rim = result.points[:, [*eye.upper, *eye.lower, *eye.corners], :2]
            centre = result.points[:, eye.iris[0], :2]
            # An eye's width is about 25 pixels here.
            assert (centre > rim.min(axis=1) - 0.6).all() and (centre < rim.max(axis=1) + 0.6).all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_wink_stays_on_its_side(target: FaceTrack, side: str) -> None:
    face = person()
    eyes = moved(frontal(face, closed(face, 1.0, (side,))), target).eyes
    winks = ("right", "left").index(side)
    assert eyes[1, winks] < 0.05
    assert eyes[1, 1 - winks] == pytest.approx(eyes[0, 1 - winks], rel=1e-3)


def test_blink_gaze_and_expression_are_independent(target: FaceTrack) -> None:
    face = person()
    both = closed(looking(brows_up(speaking(face, 0.3), 0.08), 0.06, 0), 0.8)
    track = frontal(face, both)
    neutral = moved(track, target, NOTHING)
    open_eyes = moved(track, target, Strengths(blink=0))
    np.testing.assert_allclose(open_eyes.eyes[1], neutral.eyes[1], rtol=0.01)
    only_blink = moved(track, target, replace(NOTHING, blink=1))
    assert (only_blink.eyes[1] < 0.25 * neutral.eyes[1]).all()
    moving = np.abs(only_blink.points[1] - neutral.points[1]).max(axis=1) > 0.01
    irises = {i for eye in EYES.values() for i in eye.iris}
    lids = {i for eye in EYES.values() for i in (*eye.upper, *eye.lower)}
    assert set(np.flatnonzero(moving)) <= lids | irises
    only_gaze = moved(track, target, replace(NOTHING, gaze=1))
    moving = np.abs(only_gaze.points[1] - neutral.points[1]).max(axis=1) > 0.01
    assert set(np.flatnonzero(moving)) == irises
    only_face = moved(track, target, replace(NOTHING, expression=1))
    np.testing.assert_allclose(only_face.eyes[1], neutral.eyes[1], rtol=0.01)
    assert mouth_openness(only_face.points)[1] > 0.2


def test_gaze_moves_by_the_same_fraction_of_the_eye(target: FaceTrack) -> None:
    face = person()
    for strength in (0.5, 1.0):
        result = moved(frontal(face, looking(face, 0.06, 0)), target, Strengths(gaze=strength))
        for eye in EYES.values():
            left, right = eye.corners
            width = result.points[0, right, :2] - result.points[0, left, :2]
            shift = result.points[1, eye.iris, :2] - result.points[0, eye.iris, :2]
            share = shift @ width / (width @ width)
            np.testing.assert_allclose(share, strength * 0.06 / 0.3, rtol=0.02)


def test_the_mouth_opens_and_closes_like_the_driver_s(target: FaceTrack) -> None:
    face = person()
    track = frontal(face, speaking(face, 0.1), speaking(face, 0.5))
    result = moved(track, target)
    np.testing.assert_allclose(result.mouth, track.mouth, atol=0.01)
    assert result.mouth[0] < 0.01
    half = moved(track, target, Strengths(expression=0.5))
    np.testing.assert_allclose(half.mouth, track.mouth / 2, atol=0.01)
    heights = result.points[:, LIPS, 1]
    assert np.diff(heights, axis=1).min() > -0.05, "the lips overlap"


def test_lips_close_when_the_driver_s_neutral_is_open(target: FaceTrack) -> None:
    """With parted lips in the neutral frame, closed or pressed lips close the target's."""
    face = person()
    pressed = face.copy()
    pressed[LIPS[0], 1] += 0.8 * (face[LIPS[1], 1] - face[LIPS[0], 1])
    pressed[LIPS[3], 1] += 0.8 * (face[LIPS[2], 1] - face[LIPS[3], 1])
    track = frontal(speaking(face, 0.08), face, pressed)
    parted = clip_of(speaking(person(mouth=0.3), 0.05))
    for other in (target, parted):
        result = moved(track, other)
        assert result.mouth[1] < 0.015 and result.mouth[2] < 0.015
        assert np.diff(result.points[:, LIPS, 1], axis=1).min() > -0.2


def test_brow_motion_is_scaled_by_the_brow_ratio(target: FaceTrack) -> None:
    face = person()
    up = moved(frontal(face, brows_up(face, 0.1)), target)
    motion = np.linalg.norm(up.points[1] - up.points[0], axis=1)
    transfer = FaceTransfer(FaceProfile.measure(frontal(face)), profile_of(target))
    expected = 0.1 * transfer.ratios["brows"][1] * up.scale[0]
    assert motion[list(RIGHT_BROW)].mean() == pytest.approx(expected, rel=0.03)
    assert motion[list(LIPS_OUTER)].max() < 0.01 and motion[list(OVAL)].max() < 0.01


def test_a_mirrored_driver_and_target_give_the_mirrored_face(
    driver: FaceTrack, target: FaceTrack
) -> None:
    face = person()
    crooked = closed(looking(speaking(face, 0.2), 0.04, 0.01), 0.6, ("left",))
    track = filmed(np.stack([face, crooked]), turns=np.stack([about(), about(14, 6, 9)]))
    for one in (track, driver):
        straight = moved(one, target)
        mirrored = moved(one.flipped(), target.flipped())
        assert max_distance(mirrored.flipped(), straight) < 0.3


def test_the_target_s_speed_is_bounded_by_the_driver_s(
    driver: FaceTrack, target: FaceTrack
) -> None:
    """Motion between frames is a bounded multiple of the driver's: nothing jumps."""
    for strengths in (Strengths(), Strengths(expression=2, gaze=2, blink=2)):
        result = moved(driver, target, strengths, parts={"face": 0.8, "mouth": 1.2})
        speed = np.linalg.norm(np.diff(result.points[..., :2], axis=0), axis=2).max(axis=1)
        own = np.linalg.norm(np.diff(driver.points[..., :2], axis=0), axis=2).max(axis=1)
        assert (speed / result.scale[0] < 3.5 * own / driver.scale[0]).all()


# ---------------------------------------------------------------- sizes of parts


def widths(track: FaceTrack, points: tuple[int, ...] | list[int]) -> Array:
    extent: Array = np.ptp(track.points[:, list(points), :2], axis=1).astype(float)
    return extent


@pytest.mark.parametrize("size", [0.7, 0.85, 1.2])
def test_the_face_part_scales_the_width(size: float) -> None:
    base = filmed(np.stack([person()] * 2))
    plain, slim = moved(base, base), moved(base, base, parts={"face": size})
    ratio = widths(slim, OVAL) / widths(plain, OVAL)
    np.testing.assert_allclose(ratio[:, 0], size, rtol=0.02)
    np.testing.assert_allclose(ratio[:, 1], 1, rtol=1e-3)
    mouth = (widths(slim, LIPS_OUTER) / widths(plain, LIPS_OUTER))[0]
    assert min(size, 1) < mouth[0] < max(size, 1), "the inside must scale less"
    assert mouth[1] == pytest.approx(1, abs=1e-3)
    # The points on a horizontal line keep their order.
    line = [33, 246, 161, 160, 159, 158, 157, 173, 133]
    assert (np.diff(slim.points[0, line, 0]) > 0).all()
    iris = widths(slim, list(RIGHT_IRIS))[0]
    assert iris[0] == pytest.approx(iris[1], rel=0.01), "the irises are not round"


@pytest.mark.parametrize(
    ("part", "points"),
    [("eyes", RIGHT_EYE), ("brows", RIGHT_BROW), ("mouth", LIPS_OUTER),
     ("nose", (*NOSE_BASE, *NOSE_BRIDGE))],
)  # fmt: skip
def test_each_part_scales_about_its_centre(part: str, points: tuple[int, ...]) -> None:
    base = filmed(np.stack([person()] * 2))
    plain, large = moved(base, base), moved(base, base, parts={part: 1.25})
    np.testing.assert_allclose(widths(large, points) / widths(plain, points), 1.25, rtol=0.01)
    before, after = (t.points[:, list(points), :2].mean(axis=1) for t in (plain, large))
    np.testing.assert_allclose(after, before, atol=2)
    still = [i for i in OVAL if i not in points]
    np.testing.assert_array_equal(large.points[:, still], plain.points[:, still])


# ---------------------------------------------------------------- the neutral frame


def test_a_quiet_frame_is_chosen_as_neutral() -> None:
    """The clip has speech with brief closures, blinks and a long turn of the head."""
    face, count = person(), 300
    rng = np.random.default_rng(0)
    quiet = np.zeros(count, bool)
    quiet[200:225] = True
    shapes, turns = [], []
    for i in range(count):
        moving = face + rng.normal(0, 0.001, face.shape) * (np.arange(POINTS) > 467)[:, None]
        turn = about(2 * np.sin(i / 9), 0, 0)
        if not quiet[i]:
            moving = speaking(moving, max(0.3 * np.sin(i / 2) + 0.2, 0))  # m, b, p
            moving = brows_up(moving, 0.05 + 0.05 * np.sin(i / 7))
        if i in (205, 206, 207):
            moving = closed(moving, (0.5, 1.0, 0.5)[i - 205])
        if i % 50 in (10, 11, 12):
            moving = closed(moving, 0.8)
        if 100 <= i < 160:  # silent, but turned away
            moving, turn = face, about(30, 0, 0)
        shapes.append(moving)
        turns.append(turn)
    track = filmed(np.stack(shapes), turns=np.stack(turns))
    chosen = FaceProfile.measure(track).neutral
    assert quiet[chosen] and not 203 <= chosen <= 209, chosen
    chunks = FaceProfile.measure(lambda: (track[i : i + 41] for i in range(0, count, 41)))
    assert chunks.neutral == chosen
    np.testing.assert_allclose(chunks.shape, FaceProfile.measure(track).shape, atol=1e-6)
    assert FaceProfile.measure(track, neutral=150).neutral == 150
    flipped = FaceProfile.measure(track.flipped()).neutral
    assert quiet[flipped] and not 203 <= flipped <= 209
    assert profile_of(track, None).neutral == chosen


def test_the_neutral_frame_of_short_clips_and_gaps(driver: FaceTrack) -> None:
    assert FaceProfile.measure(driver[7:8]).neutral == 0
    missing = filmed(np.full((3, POINTS, 3), np.nan))
    joined = [missing, driver[:1], missing]

    def chunks() -> Iterator[FaceTrack]:
        yield from joined

    assert FaceProfile.measure(chunks).neutral == 3
    with pytest.raises(NothingFound, match="3 frames") as caught:
        FaceProfile.measure(missing)
    assert caught.value.hint
    with pytest.raises(NothingFound, match="frame 5") as caught:
        FaceProfile.measure(chunks, neutral=5)
    assert "3" in str(caught.value.hint)
    with pytest.raises(NothingFound):
        FaceProfile.measure(lambda: [])


def test_a_long_clip_is_not_kept_in_memory(driver: FaceTrack) -> None:
    """Memory does not grow with the number of chunks."""
    import weakref

    alive: list[Callable[[], object]] = []
    most = 0

    def chunks() -> Iterator[FaceTrack]:
        nonlocal most
        for _ in range(50):
            chunk = replace(driver)
            alive.append(weakref.ref(chunk))
            most = max(most, sum(ref() is not None for ref in alive))
            yield chunk

    FaceProfile.measure(chunks)
    assert most < 6


# ---------------------------------------------------------------- out of distribution


def test_out_of_distribution_segments_are_described(target: FaceTrack) -> None:
    face = person()
    own = profile_of(target)
    count, rate = 200, 25.0
    yaw = np.zeros(count)
    yaw[20:60] = 40
    yaw[64:80] = 35  # after a gap of four frames: the same segment
    yaw[150:153] = 40  # too short
    wide = [speaking(face, 0.9 if 100 <= i < 130 else 0.0) for i in range(count)]
    track = filmed(np.stack(wide), turns=np.stack([about(a, 0, 0) for a in yaw]))
    transfer = FaceTransfer(FaceProfile.measure(track, neutral=0), own)
    found = out_of_distribution(transfer.apply(track), own, rate)
    by_range = {(s.start, s.stop): s for s in found}
    assert len(found) == 2, found
    turned, opened = by_range[20, 80], by_range[100, 130]
    assert "turns 40 degrees to the left" in turned.what and "training went to 16" in turned.what
    assert turned.advice == "film yourself turning the head further to the left"
    assert "the mouth opens to 1.0" in opened.what and "mouth wider" in opened.advice
    assert not any(s.start == 150 for s in found)
    chunks = out_of_distribution(
        lambda: (transfer.apply(track[i : i + 30]) for i in range(0, count, 30)), own, rate
    )
    assert chunks == found
    to_the_right = out_of_distribution(transfer.apply(track).flipped(), own, rate)
    assert any("turns 40 degrees to the right" in s.what for s in to_the_right)


def test_the_training_clip_is_in_distribution(driver: FaceTrack, target: FaceTrack) -> None:
    assert out_of_distribution(target, profile_of(target), 25.0) == []
    empty = filmed(np.full((30, POINTS, 3), np.nan))
    assert out_of_distribution(empty, profile_of(target), 25.0) == []


def test_position_and_size_are_reported(target: FaceTrack) -> None:
    own = profile_of(target)
    far = filmed(np.stack([person()] * 30), size=30.0, place=(230, 110))
    what = " ".join(s.what for s in out_of_distribution(far, own, 25.0))
    assert "90% of the frame's width" in what and "smallest size in training" in what


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan")])
def test_strengths_out_of_range_are_errors(value: float) -> None:
    with pytest.raises(ConfigError, match="gaze") as caught:
        Strengths(gaze=value)
    assert "0 to 2" in str(caught.value.hint)


def test_invalid_parts_and_neutral_frames_are_errors(driver: FaceTrack) -> None:
    face = FaceProfile.measure(driver)
    with pytest.raises(ConfigError, match="mouth is 1.5") as caught:
        FaceTransfer(face, face, parts={"mouth": 1.5})
    assert "0.7 to 1.3" in str(caught.value.hint)
    with pytest.raises(UnknownName, match="face part 'ears'") as unknown:
        FaceTransfer(face, face, parts={"ears": 1.0})
    assert all(part in str(unknown.value.hint) for part in PARTS)
    with pytest.raises(ConfigError, match="neutral frame 60") as caught:
        FaceProfile.measure(driver, neutral=60)
    assert "0 to 59" in caught.value.message
