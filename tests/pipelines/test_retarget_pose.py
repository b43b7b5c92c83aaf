"""Pose retargeting on drawn people, whose bones, angles and floor are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from v2v.errors import NothingFound, UnknownName
from v2v.pipelines.retarget.body import FEET, Body, Points
from v2v.pipelines.retarget.pose import RETARGETS, retarget
from v2v.signals.pose import HEAD, LEFT_HAND, MIRROR, NAMES, POINT, RIGHT_HAND

FRAMES = 120
SIZE = (400, 500)
LENGTHS = {
    "spine": 80.0, "neck": 35.0, "shoulder": 26.0, "upper_arm": 48.0, "forearm": 42.0, "hip": 16.0,
    "thigh": 70.0, "shin": 62.0, "foot": 20.0, "hand": 14.0, "head": 9.0,
}  # fmt: skip
LANKY = {**LENGTHS, "spine": 62.0, "thigh": 84.0, "shin": 77.0, "forearm": 50.0, "shoulder": 23.0}
Values = NDArray[np.float64]


def person(
    lengths: dict[str, float] = LENGTHS,
    *,
    size: float = 1.0,
    x: float | Values = 200.0,
    floor: float | Values = 450.0,
    depth: float | Values = 1.0,
    jump: float | Values = 0.0,
    lively: float = 1.0,
    facing: float = 1.0,
    frames: int = FRAMES,
) -> Points:
    """[T, 75, 3] a person who moves around.

    Args:
        floor: y of the lowest foot.
        depth: scale about the floor.
        lively: how far the limbs swing.
        facing: 1 towards the camera, -1 away from it.
    """
    t = np.arange(frames) / 24
    at = np.full((frames, len(NAMES), 2), np.nan)

    def turn(degrees: float | Values) -> Values:
        """Unit vectors [T, 2]: 0 is down, 90 to the right."""
        angle = np.radians(np.broadcast_to(degrees, frames))
        return np.stack([np.sin(angle), np.cos(angle)], axis=1)

    def swing(extent: float, rate: float, phase: float = 0.0) -> Values:
        return lively * extent * np.sin(2 * np.pi * (rate * t + phase))

    hips = np.zeros((frames, 2))
    shoulders = hips + lengths["spine"] * turn(180 + swing(8, 0.3))
    ears = shoulders + lengths["neck"] * turn(180 + swing(12, 0.4, 0.2))
    around = np.linspace(0, 2 * np.pi, HEAD.stop, endpoint=False)
    ring = np.stack([np.cos(around), np.sin(around)], axis=1)
    ring -= ring[[POINT["left_ear"], POINT["right_ear"]]].mean(axis=0)
    at[:, HEAD] = ears[:, None] + lengths["head"] * ring * [facing, 1]
    for side, sign, hand in (("left", facing, LEFT_HAND), ("right", -facing, RIGHT_HAND)):
        phase = 0.0 if side == "left" else 0.5

        def put(name: str, place: Values, side: str = side) -> Values:
            at[:, POINT[f"{side}_{name}"]] = place
            return place

        across = turn(90 + swing(5, 0.3)) * sign
        shoulder = put("shoulder", shoulders + lengths["shoulder"] * across)
        elbow = put("elbow", shoulder + lengths["upper_arm"] * turn(sign * 30 + swing(40, 0.7)))
        fore = turn(sign * 60 + swing(70, 0.9, phase))
        wrist = put("wrist", elbow + lengths["forearm"] * fore)
        for finger, spread in (("pinky", -30), ("index", 0), ("thumb", 30)):
            put(finger, wrist + lengths["hand"] * turn(sign * 60 + spread + swing(70, 0.9, phase)))
        reach = np.linspace(0, 1.5, hand.stop - hand.start)[:, None]
        at[:, hand] = wrist[:, None] + 1 + reach * lengths["hand"] * fore[:, None]
        hip = put("hip", hips + lengths["hip"] * across)
        knee = put("knee", hip + lengths["thigh"] * turn(sign * 8 + swing(18, 0.8, phase)))
        shin = turn(sign * 4 + swing(15, 0.8, phase + 0.1))
        ankle = put("ankle", knee + lengths["shin"] * shin)
        put("heel", ankle + 0.25 * lengths["foot"] * turn(sign * -20))
        put("foot", ankle + lengths["foot"] * turn(sign * 40))
    low = at[:, FEET, 1].max(axis=1)
    scale = np.broadcast_to(np.asarray(depth, float) * size, frames)[:, None, None]
    place = np.broadcast_to(np.stack(np.broadcast_arrays(x, floor), axis=-1), (frames, 2))
    lift = np.stack([np.zeros(frames), np.broadcast_to(jump, frames)], axis=1)
    places = place[:, None] + scale * (at - np.stack([0 * low, low], 1)[:, None] - lift[:, None])
    points = np.ones((frames, len(NAMES), 3), np.float32)
    points[..., :2] = places
    return points


def measured(points: Points, size: tuple[int, int] = SIZE) -> Body:
    return Body.measure(points, *size)


def convert(points: Points, like: Points, mode: str, source: Points | None = None) -> Points:
    """`points` (of the clip `source`) retargeted to the person in the clip `like`."""
    return retarget(points, measured(points if source is None else source), measured(like), mode)


def place(points: Points, name: str) -> Any:
    if name in POINT:
        return points[:, POINT[name], :2].astype(np.float64)
    pair = [POINT[f"{side}_{name.removeprefix('mid_')}"] for side in ("left", "right")]
    return points[:, pair, :2].astype(np.float64).mean(axis=1)


BONES = (
    ("mid_hip", "mid_shoulder"), ("mid_shoulder", "mid_ear"),
    *((f"{side}_{a}", f"{side}_{b}") for side in ("left", "right") for a, b in (
        ("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"),
    )),
    ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"),
    ("left_heel", "left_foot"), ("right_wrist", "right_index"),
)  # fmt: skip


def length(points: Points, bone: tuple[str, str]) -> Any:
    return np.linalg.norm(place(points, bone[1]) - place(points, bone[0]), axis=1)


def angle(points: Points, bone: tuple[str, str]) -> Any:
    along = place(points, bone[1]) - place(points, bone[0])
    return np.degrees(np.arctan2(along[:, 1], along[:, 0]))


def lowest(points: Points) -> Any:
    return points[:, FEET, 1].max(axis=1)


def step(points: Points) -> Any:
    """[T-1] largest motion of any point between consecutive frames."""
    return np.linalg.norm(np.diff(points[..., :2], axis=0), axis=-1).max(axis=1)


def deep(lengths: dict[str, float] = LENGTHS, *, size: float = 1.0, near: float = 460) -> Points:
    """A person who walks away from the camera and back, under a horizon at y = 100."""
    share = 0.5 + 0.5 * np.cos(np.linspace(0, 2 * np.pi, 240))
    floor = near - 140 * size * (1 - share)
    return person(
        lengths, size=size, floor=floor, depth=(floor - 100) / (near - 100), frames=240, x=220
    )


# ---------------------------------------------------------------- identities


def test_none_is_the_identity_in_a_frame_of_the_same_size() -> None:
    points = person()
    np.testing.assert_array_equal(convert(points, person(LANKY), "none"), points)


def test_none_fits_the_frame_and_keeps_its_aspect() -> None:
    points = person()
    source, target = measured(points), measured(person(), (800, 600))
    corners = points[:1].copy()
    corners[0, :2, :2] = (0, 0), SIZE
    (low, high) = retarget(corners, source, target, "none")[0, :2, :2]
    np.testing.assert_allclose(low, (400 - 240, 0), atol=1e-3)
    np.testing.assert_allclose(high, (400 + 240, 600), atol=1e-3)


@pytest.mark.parametrize("mode", ["global", "limbs"])
@pytest.mark.parametrize("clip", ["flat", "deep", "upper"])
def test_retargeting_to_the_same_body_is_the_identity(mode: str, clip: str) -> None:
    points = deep() if clip == "deep" else person(x=200 + 30 * np.sin(np.arange(FRAMES) / 9))
    if clip == "upper":
        points[:, POINT["left_hip"] : LEFT_HAND.start, 2] = 0.1
    body = measured(points)
    assert (body.near > body.far) == (clip == "deep")
    assert body.anchor == ("shoulders" if clip == "upper" else "feet")
    np.testing.assert_allclose(retarget(points, body, body, mode), points, atol=0.01)


# ---------------------------------------------------------------- proportions


def test_limbs_gives_the_target_s_bones_at_the_source_s_angles() -> None:
    source, target = person(LANKY, size=2, x=700, floor=900), person(x=150)
    moved = retarget(source, measured(source, (1400, 1000)), measured(target), "limbs")
    for bone in BONES:
        np.testing.assert_allclose(length(moved, bone), length(target, bone), rtol=0.02)
        turned = (angle(moved, bone) - angle(source, bone) + 180) % 360 - 180
        assert abs(turned).max() < 1, bone  # so the angles between bones are the source's as well


def test_foreshortening_is_kept() -> None:
    source, target = person(LANKY), person()
    short = np.linspace(1, 0.2, FRAMES)[:, None]
    for end in ("wrist", "pinky", "index", "thumb"):
        source[:, POINT[f"left_{end}"], :2] -= (
            (1 - short) * (place(source, "left_wrist") - place(source, "left_elbow"))
        ).astype(np.float32)
    moved = convert(source, target, "limbs")
    ratio = length(moved, ("left_elbow", "left_wrist")) / length(
        source, ("left_elbow", "left_wrist")
    )
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    np.testing.assert_allclose(ratio[0], LENGTHS["forearm"] / LANKY["forearm"], rtol=0.02)


def test_global_keeps_the_source_s_proportions_at_the_target_s_stature() -> None:
    source, target = person(LANKY, size=2), person()
    moved = convert(source, target, "global")
    assert measured(moved).stature == pytest.approx(measured(target).stature, rel=0.01)
    ratios = [length(moved, bone) / length(source, bone) for bone in BONES]
    np.testing.assert_allclose(ratios, ratios[0][0], rtol=1e-3)


def test_stature_does_not_depend_on_the_pose() -> None:
    still, lively = measured(person(lively=0)), measured(person(lively=1))
    assert lively.stature == pytest.approx(still.stature, rel=0.02)
    assert still.stature == pytest.approx(
        sum(LENGTHS[b] for b in ("spine", "neck", "thigh", "shin"))
    )


def test_a_bone_out_of_view_takes_the_ratio_of_the_others() -> None:
    source, target = person(LANKY, size=2), person()
    target[:, [POINT["left_wrist"], POINT["right_wrist"]], 2] = 0.2
    assert "forearm" not in measured(target).bones
    moved = convert(source, target, "limbs")
    ratio = length(moved, ("left_elbow", "left_wrist")) / length(
        source, ("left_elbow", "left_wrist")
    )
    assert ratio.min() > 0.4 and ratio.max() < 0.6


def test_a_shoulder_seen_only_from_the_side_is_not_measured() -> None:
    assert {"shoulder", "hip"} <= measured(person(facing=-1)).bones.keys()
    assert not {"shoulder", "hip"} & measured(person(facing=0.15)).bones.keys()


@pytest.mark.parametrize("mode", RETARGETS)
def test_sides_are_never_swapped(mode: str) -> None:
    away = person(LANKY, facing=-1)
    assert (place(away, "left_shoulder") < place(away, "right_shoulder"))[:, 0].all()
    moved = convert(away, person(), mode)
    assert (place(moved, "left_shoulder") < place(moved, "right_shoulder"))[:, 0].all()
    mirrored = away[:, MIRROR].copy()
    mirrored[..., 0] = SIZE[0] - mirrored[..., 0]
    target = person()
    back = target[:, MIRROR].copy()
    back[..., 0] = SIZE[0] - back[..., 0]
    other = convert(mirrored, back, mode)[:, MIRROR].copy()
    other[..., 0] = SIZE[0] - other[..., 0]
    np.testing.assert_allclose(other, moved, atol=0.05)


# ---------------------------------------------------------------- the floor


@pytest.mark.parametrize("mode", ["global", "limbs"])
@pytest.mark.parametrize("lengths", [LENGTHS, LANKY])
def test_feet_stay_on_the_target_s_floor(mode: str, lengths: dict[str, float]) -> None:
    moved = convert(person(lengths, size=0.5, floor=300, x=90), person(floor=440), mode)
    assert abs(lowest(moved) - 440).max() < 1


def test_planted_feet_do_not_slide() -> None:
    source, target = person(LANKY, lively=0), person()
    sway = 6 * np.sin(np.arange(FRAMES) / 8)
    legs = [POINT[f"{side}_{part}"] for side in ("left", "right") for part in ("knee", "ankle")]
    loose = np.ones(len(NAMES))
    loose[[*legs, *FEET]] = 0
    loose[[POINT["left_knee"], POINT["right_knee"]]] = 0.5
    source[..., 0] += (sway[:, None] * loose).astype(np.float32)
    moved = convert(source, target, "limbs")
    assert np.ptp(moved[:, FEET, 0], axis=0).max() < 0.5
    assert np.ptp(moved[:, POINT["nose"], 0]) > 8


@pytest.mark.parametrize("mode", ["global", "limbs"])
def test_a_jump_leaves_the_floor(mode: str) -> None:
    jump = np.zeros(FRAMES)
    jump[50:62] = 40 * np.sin(np.linspace(0, np.pi, 12))
    source = person(LANKY, size=0.5, floor=300, jump=jump)
    moved = convert(source, person(), mode)
    ratio = measured(person()).stature / measured(source).stature
    np.testing.assert_allclose(450 - lowest(moved), 0.5 * ratio * jump, atol=1)


@pytest.mark.parametrize("mode", ["global", "limbs"])
def test_motion_in_depth_is_mapped_to_the_target_s(mode: str) -> None:
    source, target = deep(LANKY, size=0.5, near=300), deep()
    body = measured(target)
    assert body.shrink == pytest.approx((320 - 100) / (460 - 100), abs=0.1)
    moved = convert(source, target, mode)
    assert abs(lowest(moved) - lowest(target)).max() < 10
    ends = [measured(moved[part], SIZE).stature for part in (slice(0, 20), slice(110, 130))]
    truth = [measured(target[part], SIZE).stature for part in (slice(0, 20), slice(110, 130))]
    np.testing.assert_allclose(ends, truth, rtol=0.08)


def test_a_jump_in_a_clip_with_depth_is_not_motion_in_depth() -> None:
    jump = np.zeros(240)
    jump[115:127] = 30 * np.sin(np.linspace(0, np.pi, 12))
    still, source = deep(), deep()
    source[..., 1] -= jump[:, None].astype(np.float32)
    target = deep(LANKY)
    lifted = lowest(convert(still, target, "global")) - lowest(convert(source, target, "global"))
    assert lifted.max() == pytest.approx(30 * 0.95, rel=0.15)
    assert abs(lifted[jump == 0]).max() < 2


@pytest.mark.parametrize("mode", ["global", "limbs"])
@pytest.mark.parametrize("target", ["flat", "deep"])
def test_noise_in_a_clip_without_depth_is_not_amplified(mode: str, target: str) -> None:
    like = deep() if target == "deep" else person(LANKY)
    still = person(lively=0)
    body, other = measured(still), measured(like)
    scale = other.stature / body.stature
    noise = np.random.default_rng(0).uniform(-1, 1, (FRAMES, len(FEET), 2)).astype(np.float32)
    shaken = still.copy()
    shaken[:, FEET, :2] += noise
    shift = retarget(shaken, measured(shaken), other, mode) - retarget(still, body, other, mode)
    shift = shift - shift.mean(axis=0)  # noise slightly changes the measured body
    assert abs(shift[..., :2]).max() < 2 * scale
    upper = shift[:, POINT["left_shoulder"], :2]
    assert abs(upper).max() < 1 * scale


def test_motion_in_depth_keeps_the_size_on_a_target_without_depth() -> None:
    target = person()
    moved = convert(deep(LANKY), target, "limbs")
    spine = length(moved, ("mid_hip", "mid_shoulder"))
    np.testing.assert_allclose(spine, LENGTHS["spine"], rtol=0.06)


# ---------------------------------------------------------------- missing points


@pytest.mark.parametrize("mode", RETARGETS)
def test_missing_points_stay_missing_and_change_no_others(mode: str) -> None:
    source, target = person(LANKY), person()
    body, other = measured(source), measured(target)
    holes = source.copy()
    holes[20:30, POINT["left_elbow"]] = np.nan
    holes[:, RIGHT_HAND] = np.nan
    holes[40, POINT["right_ear"]] = np.nan
    whole, moved = (retarget(points, body, other, mode) for points in (source, holes))
    lost = np.isnan(moved).any(axis=-1)
    assert lost[np.isnan(holes).any(axis=-1)].all()
    below = [POINT[f"left_{n}"] for n in ("wrist", "pinky", "index", "thumb")]
    below += list(range(LEFT_HAND.start, LEFT_HAND.stop))
    assert lost[20:30, below].all() == (mode == "limbs")
    expected = np.isnan(holes).any(axis=-1)
    expected[20:30, below] |= mode == "limbs"
    np.testing.assert_array_equal(lost, expected)
    there = ~lost
    there[40, HEAD] = False
    np.testing.assert_array_equal(moved[there], whole[there])
    np.testing.assert_allclose(moved[40, :7], whole[40, :7], atol=6)
    np.testing.assert_array_equal(moved[~lost, 2], holes[~lost, 2])


def test_without_hips_the_shoulders_stay_where_they_were() -> None:
    source, target = person(LANKY), person()
    body, other = measured(source), measured(target)
    holes = source.copy()
    holes[50:60, [POINT["left_hip"], POINT["right_hip"]]] = np.nan
    whole, moved = (retarget(points, body, other, "limbs") for points in (source, holes))
    assert np.isnan(moved[50:60, POINT["left_knee"], 0]).all()
    upper = [POINT[f"{side}_{n}"] for side in ("left", "right") for n in ("shoulder", "wrist")]
    gap = np.linalg.norm((moved - whole)[50:60, upper, :2], axis=-1)
    assert gap.max() < 4  # of 450 pixels
    jump = step(moved[45:65][:, upper]) - step(whole[45:65][:, upper])
    assert jump.max() < 1.5


@pytest.mark.parametrize("mode", ["global", "limbs"])
@pytest.mark.parametrize("gone", ["hidden", "missing"])
def test_unseen_feet_do_not_make_the_body_jump(mode: str, gone: str) -> None:
    source, target = deep(LANKY), deep()
    body, other = measured(source), measured(target)
    holes = source.copy()
    for start in (30, 100, 180):
        holes[start : start + 12, FEET] = np.nan if gone == "missing" else (5, 5, 0.1)
    moved, whole = (retarget(points, body, other, mode) for points in (holes, source))
    upper = list(range(POINT["left_hip"] + 2))
    assert (step(moved[:, upper]) - step(whole[:, upper])).max() < 2
    assert abs(moved - whole)[:, upper].max() < 5


def test_flickering_scores_do_not_shake_the_body() -> None:
    source, target = person(LANKY), person()
    body, other = measured(source), measured(target)
    shaky = source.copy()
    scores = np.random.default_rng(0).uniform(0.35, 0.65, (FRAMES, len(FEET)))
    shaky[:, FEET, 2] = scores.astype(np.float32)
    moved, whole = (retarget(points, body, other, "limbs") for points in (shaky, source))
    assert np.linalg.norm((moved - whole)[:, POINT["nose"], :2], axis=-1).max() < 5


def test_feet_that_fade_from_view_lose_weight_gradually() -> None:
    source, target = person(LANKY, lively=0), person()
    body, other = measured(source), measured(target)
    fading = source.copy()
    fading[30:50, FEET, 2] = np.linspace(0.6, 0.1, 20, dtype=np.float32)[:, None]
    fading[50:70, FEET, 2] = 0.1
    fading[30:70, FEET[:3], :2] += (0, 60)  # with guesses below the real position
    fading[30:70, POINT["left_knee"], :2] += (0, 30)
    upper = list(range(POINT["left_hip"]))
    fall = step(retarget(fading, body, other, "limbs")[:, upper])[31:]
    assert fall.max() < 2
    assert fall.sum() > 4  # the body does move in total, but gradually


def test_the_floor_follows_motion_in_depth() -> None:
    points = deep()
    share = measured(points).share(points)
    expected = 0.5 + 0.5 * np.cos(np.linspace(0, 2 * np.pi, 240))
    np.testing.assert_allclose(share, expected, atol=0.04)


def test_little_depth_is_not_exaggerated() -> None:
    wave = 15 * np.sin(np.arange(FRAMES) / 10)
    source, target = person(floor=430 + wave), deep()
    body, other = measured(source), measured(target)
    assert body.near > body.far
    depth = np.ptp(lowest(retarget(source, body, other, "global")))
    assert 30 < depth < 3.2 * 30 * other.stature / body.stature


def test_upper_bodies_are_anchored_at_the_shoulders() -> None:
    source, target = person(LANKY, size=2, x=500, floor=1100), person(x=180)
    source[:, POINT["left_hip"] : LEFT_HAND.start, 2] = 0.1
    body = measured(source, (1000, 700))
    assert body.anchor == "shoulders" and "thigh" not in body.bones
    moved = retarget(source, body, measured(target), "limbs")
    height = place(moved, "mid_shoulder") - place(target, "mid_shoulder")
    assert abs(np.median(height, axis=0)).max() < 8
    upper = [bone for bone in BONES if "hip" not in bone[0] and "knee" not in bone[0]]
    for bone in upper[:6]:
        np.testing.assert_allclose(length(moved, bone), length(target, bone), rtol=0.1)


def test_measurements_are_robust_to_outliers() -> None:
    points = person(LANKY)
    noise = np.random.default_rng(0)
    wild = points.copy()
    frames = noise.choice(FRAMES, FRAMES // 10, replace=False)
    wild[frames, :, :2] = noise.uniform(0, 500, (len(frames), len(NAMES), 2))
    truth, body = measured(points), measured(wild)
    for bone, value in truth.bones.items():
        assert body.bones[bone] == pytest.approx(value, rel=0.03), bone
    assert body.near - body.far == 0
    assert body.heights["feet"] == pytest.approx(truth.heights["feet"], abs=2)
    assert body.x == pytest.approx(truth.x, abs=3)


# ---------------------------------------------------------------- errors


def test_a_clip_without_a_person_is_an_error() -> None:
    nobody = np.full((8, len(NAMES), 3), np.nan, np.float32)
    for points in (nobody, nobody[:0]):
        with pytest.raises(NothingFound, match="no person") as raised:
            measured(points)
        assert raised.value.hint


def test_clips_without_common_bones_are_an_error() -> None:
    legs, bust = person(), person()
    legs[:, : POINT["left_hip"], 2] = 0
    bust[:, POINT["left_hip"] :, 2] = 0
    with pytest.raises(NothingFound, match="shoulders"):
        convert(legs, bust, "global")


def test_an_unknown_mode_is_an_error() -> None:
    body = measured(person())
    with pytest.raises(UnknownName, match="limb"):
        retarget(person(), body, body, "limb")


@pytest.mark.parametrize("mode", RETARGETS)
def test_short_and_empty_clips_are_accepted(mode: str) -> None:
    points = person()
    body = measured(points)
    assert retarget(points[:0], body, body, mode).shape == (0, len(NAMES), 3)
    single = measured(points[:1])
    assert single.frames == 1
    np.testing.assert_allclose(retarget(points[:1], single, single, mode), points[:1], atol=0.01)
    missing = np.full_like(points[:3], np.nan)
    assert np.isnan(retarget(missing, body, body, mode)).all()
    assert retarget(points, body, replace(body, x=body.x + 7), mode).dtype == np.float32
