"""The face mesh: its topology matches MediaPipe's, and the measures computed from it are exact.

One mesh is detected in the drawn face, then rotated, scaled and moved by known amounts, which the
head pose must recover.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from v2v.data.references.choosing import Chooser
from v2v.data.references.memory import References
from v2v.data.references.warping import candidates
from v2v.errors import UnknownName
from v2v.samples import face as drawn_face
from v2v.signals import load_signal
from v2v.signals.face import (
    IRISES,
    LIPS_INNER,
    LIPS_OUTER,
    MIRROR,
    NOSE_BASE,
    NOSE_BRIDGE,
    PARTS,
    POINTS,
    RIGID,
    SIGNAL,
    FaceTrack,
    eye_openness,
    head_pose,
    mouth_openness,
)

SIDE = 256
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def connections() -> dict[str, set[frozenset[int]]]:
    """MediaPipe's own contours, as undirected edges."""
    module = pytest.importorskip("mediapipe").solutions.face_mesh_connections
    return {
        name.removeprefix("FACEMESH_").lower(): {frozenset(edge) for edge in edges}
        for name, edges in vars(module).items()
        if name.startswith("FACEMESH_")
    }


@pytest.fixture(scope="module")
def filmed() -> tuple[Array, Array]:
    """Meshes [T, 478, 3] of the turning drawn face, and its yaw, pitch, roll in degrees."""
    from v2v.preprocess.detectors import detectors

    count, every = 90, 6
    truths = drawn_face.truth(count=count)
    shapes = []
    with detectors().face(tracking=False) as network:
        frames = drawn_face.frames(count=count, height=SIDE, width=SIDE)
        for frame in islice(frames, 0, None, every):
            found = network.find(frame)
            assert found is not None, "no face detected in the drawn frame"
            shapes.append(found[:, :3])
    angles = np.degrees(np.stack([truths[name] for name in ("yaw", "pitch", "roll")], axis=1))
    return np.stack(shapes), angles[::every]


@pytest.fixture(scope="module")
def mesh(filmed: tuple[Array, Array]) -> Array:
    """x, y, z [478, 3] of a frontal face, in pixels of a `SIDE` picture."""
    shapes, angles = filmed
    return shapes[np.abs(angles).max(axis=1).argmin()]


def turn(yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """Roll about the head's own axis, then pitch, then yaw; x right, y down, z away.

    Positive yaw turns the face to the right of the picture (its view direction has x > 0),
    positive pitch downwards (y > 0), positive roll clockwise in the picture (its right axis sinks).
    """
    a, b, c = np.radians([yaw, pitch, roll])
    about_y = [[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    about_z = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    look = np.array([0, 0, -1])
    assert yaw * (np.array(about_y) @ look)[0] >= 0
    assert pitch * (np.array(about_x) @ look)[1] >= 0
    assert roll * (np.array(about_z) @ [1, 0, 0])[1] >= 0
    return np.array(about_y) @ about_x @ about_z


def placed(shapes: NDArray[np.float64]) -> tuple[Array, Array]:
    """Split x, y, z into points [T, 478, 3] and depth [T, 478]."""
    points = np.concatenate([shapes[..., :2], np.ones_like(shapes[..., :1])], axis=-1)
    return points.astype(np.float32), shapes[..., 2].astype(np.float32)


def track(shapes: NDArray[np.float64]) -> FaceTrack:
    points, depth = placed(shapes)
    pose = head_pose(points, depth)
    return FaceTrack(
        points, depth, np.zeros(len(points), np.bool_), pose.rotation, pose.translation,
        pose.scale, SIDE, SIDE,
    )  # fmt: skip


def angle_between(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angle in degrees of the rotation from `a` to `b`."""
    trace = np.einsum("...ij,...ij->...", a, b)
    return np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


# ---------------------------------------------------------------- control points


def test_control_points_cover_the_face_hair_and_neck(mesh: Array) -> None:
    made = track(np.stack([mesh, mesh]).astype(np.float64))
    points, control_points = made.points[0], made.control_points()
    assert control_points.shape[::2] == (2, 3) and not np.isnan(control_points).any()
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    tall = high[1] - low[1]
    found = control_points[0]
    assert high[1] + 0.1 * tall < found[:, 1].max() < high[1] + 0.5 * tall  # at the neck
    assert low[1] - 0.4 * tall < found[:, 1].min() < low[1] - 0.1 * tall  # at the hair
    assert (found[:, 2] > 0.1 * made.scale[0]).all() and (found[:, 2] < made.scale[0]).all()


def test_a_reference_is_warped_with_its_face(mesh: Array) -> None:
    """The reference is warped to the position of the face; the nearer of two is chosen."""
    smooth = np.random.default_rng(0).integers(0, 255, (SIDE // 16, SIDE // 16, 3), np.uint8)
    picture = cv2.resize(smooth, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    wide = mesh * (1.3, 1.0, 1.0)
    kept = track(np.stack([mesh, wide]).astype(np.float64))
    masks = np.full((2, SIDE, SIDE), 255, np.uint8)
    references = References(
        np.stack([picture, np.zeros_like(picture)]), masks, kept, np.arange(2), whole=True
    )
    wanted = track((mesh + (12, 8, 0)).astype(np.float64)[None])
    choice = Chooser(references, 1)(wanted)
    assert (choice.used == 0).all()
    ((found,),) = candidates(references, wanted, choice)
    middle = mesh[:, :2].mean(axis=0).astype(int)
    x, y = slice(middle[0] - 30, middle[0] + 30), slice(middle[1] - 30, middle[1] + 30)
    expected = np.roll(picture, (8, 12), axis=(0, 1))[y, x]
    assert np.abs(found[:3, y, x].transpose(1, 2, 0) - expected).mean() < 3
    assert found[3, y, x].min() > 0.99


def test_without_a_face_there_are_no_control_points(mesh: Array) -> None:
    made = track(np.stack([mesh, mesh]).astype(np.float64))
    points = made.points.copy()
    points[1] = np.nan
    control_points = replace(made, points=points).control_points()
    assert np.isnan(control_points[1]).all() and not np.isnan(control_points[0]).any()


# ---------------------------------------------------------------- topology


def edges(points: tuple[int, ...], closed: bool) -> set[frozenset[int]]:
    following = points[1:] + (points[:1] if closed else ())
    return {frozenset(pair) for pair in zip(points, following, strict=False)}


@pytest.mark.parametrize(
    ("part", "theirs"),
    [("oval", "face_oval"), ("right_eye", "right_eye"), ("left_eye", "left_eye"),
     ("right_iris", "right_iris"), ("left_iris", "left_iris")],
)  # fmt: skip
def test_contours_match_mediapipe(
    part: str, theirs: str, connections: dict[str, set[frozenset[int]]]
) -> None:
    points, closed, _ = PARTS[part]
    assert closed and edges(points, True) == connections[theirs]


def test_both_lips_together_match_mediapipe(connections: dict[str, set[frozenset[int]]]) -> None:
    assert edges(LIPS_OUTER, True) | edges(LIPS_INNER, True) == connections["lips"]
    assert not set(LIPS_OUTER) & set(LIPS_INNER)


@pytest.mark.parametrize("side", ["right", "left"])
def test_brows_are_the_two_lines_of_mediapipe_closed(
    side: str, connections: dict[str, set[frozenset[int]]]
) -> None:
    points, closed, _ = PARTS[f"{side}_brow"]
    added = edges(points, closed) - connections[f"{side}_eyebrow"]
    assert edges(points, closed) >= connections[f"{side}_eyebrow"]
    assert len(added) == 2, "only the two ends are joined"


def test_the_nose_follows_the_mesh(connections: dict[str, set[frozenset[int]]]) -> None:
    for line in (NOSE_BRIDGE, NOSE_BASE):
        assert edges(line, False) <= connections["nose"] | connections["tesselation"]


def test_the_mirror_is_an_involution_that_keeps_the_mesh(
    connections: dict[str, set[frozenset[int]]],
) -> None:
    assert sorted(MIRROR) == list(range(POINTS))
    assert all(MIRROR[MIRROR[i]] == i for i in range(POINTS))
    for name in ("eye", "eyebrow", "iris"):
        mirrored = {frozenset(MIRROR[i] for i in e) for e in connections[f"right_{name}"]}
        assert mirrored == connections[f"left_{name}"]
    for name in ("face_oval", "lips", "contours", "irises"):
        mirrored = {frozenset(MIRROR[i] for i in e) for e in connections[name]}
        assert mirrored == connections[name]
    tesselation = connections["tesselation"]
    mirrored = {frozenset(MIRROR[i] for i in e) for e in tesselation}
    # The diagonals of some quads have the same direction on both sides.
    assert len(mirrored & tesselation) > 0.9 * len(tesselation)


def test_mirrored_points_lie_on_opposite_sides(mesh: Array) -> None:
    middle = mesh[list(RIGID), 0].mean()
    gap = (2 * middle - mesh[list(MIRROR)][:, 0]) - mesh[:, 0]
    width = np.ptp(mesh[:, 0])
    assert np.abs(gap - np.median(gap)).max() < 0.08 * width
    assert mesh[33, 0] < mesh[263, 0], "the person's right eye is on the picture's left"
    assert {MIRROR[i] for i in RIGID} == set(RIGID)


def test_named_contours_map_to_their_mirror_images() -> None:
    for name, (points, _, _) in PARTS.items():
        side, _, rest = name.partition("_")
        twin = {"right": f"left_{rest}", "left": f"right_{rest}"}.get(side, name)
        assert {MIRROR[i] for i in points} == set(PARTS[twin][0]), name
    assert MIRROR[IRISES["right"][0]] == IRISES["left"][0]


# ---------------------------------------------------------------- head pose


TURNS = [(0, 0, 0), (20, 0, 0), (-35, 0, 0), (0, 15, 0), (0, -20, 0), (0, 0, 12), (0, 0, -30),
         (15, 10, 5), (-25, -12, 18), (40, 15, -20)]  # fmt: skip


def test_known_rotations_scales_and_positions_are_recovered(mesh: Array) -> None:
    """Rotation within 0.5 degrees, scale within 1 percent, position within 0.5 pixel."""
    rng = np.random.default_rng(0)
    centre = mesh[list(RIGID)].mean(axis=0)
    turns = np.stack([turn(*angles) for angles in TURNS])
    sizes = rng.uniform(0.5, 2.0, len(TURNS))
    places = rng.uniform(60, 200, (len(TURNS), 3))
    shapes = sizes[:, None, None] * np.einsum("tij,nj->tni", turns, mesh - centre)
    points, depth = placed(shapes + places[:, None])
    pose = head_pose(points, depth)
    straight = pose.rotation[0].astype(float)
    relative = pose.rotation @ straight.T
    assert angle_between(relative, turns).max() < 0.5
    assert np.abs(pose.scale / pose.scale[0] / (sizes / sizes[0]) - 1).max() < 0.01
    assert np.abs(pose.translation - places[:, :2]).max() < 0.5
    np.testing.assert_allclose(np.linalg.det(pose.rotation), 1, atol=1e-5)
    # The scale is the distance between the outer corners of the eyes.
    assert pose.scale[0] == pytest.approx(sizes[0] * np.linalg.norm(mesh[33] - mesh[263]), rel=0.01)


@pytest.mark.parametrize(("axis", "name"), [(0, "yaw"), (1, "pitch"), (2, "roll")])
@pytest.mark.parametrize("degrees", [-30, -10, 10, 30])
def test_the_sign_of_each_angle(mesh: Array, axis: int, name: str, degrees: float) -> None:
    """Positive: yaw to the picture's right, pitch down, roll clockwise."""
    centre = mesh[list(RIGID)].mean(axis=0)
    straight = head_pose(*placed((mesh - centre)[None].astype(float))).rotation[0].astype(float)
    ahead = (mesh - centre) @ straight  # a face whose axes are the camera's
    angles = [0.0, 0.0, 0.0]
    angles[axis] = degrees
    found = head_pose(*placed((ahead @ turn(*angles).T)[None])).angles()[0]
    np.testing.assert_allclose(found, angles, atol=0.5, err_msg=name)


def test_angles_of_a_composed_rotation_are_recovered() -> None:
    rotations = np.stack([turn(*angles) for angles in TURNS]).astype(np.float32)
    count = len(TURNS)
    from v2v.signals.face import HeadPose

    pose = HeadPose(rotations, np.zeros((count, 2), np.float32), np.ones(count, np.float32))
    np.testing.assert_allclose(pose.angles(), TURNS, atol=1e-3)


def test_angles_match_those_of_the_drawn_face(filmed: tuple[Array, Array]) -> None:
    """Checks the signs of the angles on a clip with known rotations."""
    shapes, angles = filmed
    found = head_pose(*placed(shapes.astype(float))).angles()
    for axis, name in enumerate(("yaw", "pitch", "roll")):
        assert np.ptp(angles[:, axis]) > 4, "the face must turn for this test"
        assert np.corrcoef(found[:, axis], angles[:, axis])[0, 1] > 0.8, name


def test_a_frontal_face_has_angles_near_zero(mesh: Array) -> None:
    angles = head_pose(*placed(mesh[None].astype(float))).angles()[0]
    assert np.abs(angles).max() < 12


def test_speaking_does_not_move_the_head(mesh: Array) -> None:
    shapes = np.repeat(mesh[None].astype(float), 6, axis=0)
    jaw = [*LIPS_OUTER, *LIPS_INNER, 152, 148, 377, 176, 400, 200, 199, 175]
    for t in range(6):
        shapes[t, jaw, 1] += 4 * t
    assert np.ptp(mouth_openness(placed(shapes)[0])) >= 0
    pose = head_pose(*placed(shapes))
    assert angle_between(pose.rotation[:1], pose.rotation).max() < 1e-2
    np.testing.assert_allclose(pose.scale, pose.scale[0], rtol=1e-5)
    np.testing.assert_allclose(pose.translation, pose.translation[:1].repeat(6, 0), atol=1e-4)


def test_noise_on_the_points_averages_out(mesh: Array) -> None:
    noise = np.random.default_rng(1).normal(0, 0.5, (40, POINTS, 3))
    angles = head_pose(*placed(mesh + noise)).angles()
    assert angles.std(axis=0).max() < 0.6


def test_frames_without_a_face_stay_missing(mesh: Array) -> None:
    shapes = np.repeat(mesh[None].astype(float), 5, axis=0)
    whole = head_pose(*placed(shapes))
    shapes[[1, 3]] = np.nan
    pose = head_pose(*placed(shapes))
    for values, full in zip(vars(pose).values(), vars(whole).values(), strict=True):
        assert np.isnan(values[[1, 3]]).all()
        np.testing.assert_allclose(values[[0, 2, 4]], full[[0, 2, 4]], atol=1e-4)
    nothing = head_pose(*placed(np.full((3, POINTS, 3), np.nan)))
    assert np.isnan(nothing.rotation).all() and np.isnan(nothing.scale).all()
    assert np.isnan(eye_openness(placed(shapes)[0])[1]).all()


# ---------------------------------------------------------------- openness


def test_openness_is_zero_when_closed_and_linear(mesh: Array) -> None:
    points = np.repeat(placed(mesh[None].astype(float))[0], 5, axis=0)
    lids = [(159, 145), (158, 153), (160, 144)]
    lids += [(MIRROR[a], MIRROR[b]) for a, b in lids]
    lips = [(13, 14), (82, 87), (312, 317)]
    for upper, lower in lids + lips:
        for t in range(5):
            points[t, lower, :2] = points[t, upper, :2] + (0, 2.0 * t)
    eyes, mouth = eye_openness(points), mouth_openness(points)
    assert eyes.shape == (5, 2) and mouth.shape == (5,)
    np.testing.assert_allclose(eyes[0], 0, atol=1e-6)
    assert mouth[0] == pytest.approx(0, abs=1e-6)
    width = np.linalg.norm(points[0, 33, :2] - points[0, 133, :2])
    np.testing.assert_allclose(eyes[:, 0], 2 * np.arange(5) / width, rtol=1e-4)
    width = np.linalg.norm(points[0, 78, :2] - points[0, 308, :2])
    np.testing.assert_allclose(mouth, 2 * np.arange(5) / width, rtol=1e-4)
    np.testing.assert_allclose(eye_openness(points * (3, 3, 1)), eyes, rtol=1e-4)


# ---------------------------------------------------------------- transforms


@pytest.fixture
def walk(mesh: Array) -> FaceTrack:
    """Four frames of a turning face, the third missing."""
    centre = mesh[list(RIGID)].mean(axis=0)
    turns = [(0, 0, 0), (20, 5, 3), (0, 0, 0), (-25, -8, 10)]
    shapes = np.stack([(mesh - centre) @ turn(*angles).T + centre for angles in turns])
    shapes[2] = np.nan
    return track(shapes)


def same(a: FaceTrack, b: FaceTrack) -> None:
    assert (a.width, a.height) == (b.width, b.height)
    for name in ("points", "depth", "filled", "rotation", "translation", "scale"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-4, err_msg=name)


def test_flipping_twice_is_the_identity(walk: FaceTrack) -> None:
    same(walk.flipped().flipped(), walk)


def test_a_flip_mirrors_the_head_pose(walk: FaceTrack) -> None:
    """Yaw and roll change sign; recomputing the pose from the flipped mesh gives the same."""
    flipped = walk.flipped()
    np.testing.assert_allclose(flipped.head.angles(), walk.head.angles() * (-1, 1, -1), atol=1e-3)
    np.testing.assert_allclose(flipped.eyes, walk.eyes[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(flipped.mouth, walk.mouth, atol=1e-4)
    recomputed = head_pose(flipped.points, flipped.depth)
    np.testing.assert_allclose(recomputed.angles(), flipped.head.angles(), atol=1.0)
    np.testing.assert_allclose(recomputed.translation, flipped.translation, atol=1e-3)
    np.testing.assert_allclose(recomputed.scale, flipped.scale, rtol=1e-3)


def test_scaling_and_cropping_move_mesh_and_head_alike(walk: FaceTrack) -> None:
    same(walk.scaled(512, 512).scaled(SIDE, SIDE), walk)
    for changed in (walk.scaled(512, 512), walk.cropped(30, 20, 200, 180)):
        recomputed = head_pose(changed.points, changed.depth)
        np.testing.assert_allclose(recomputed.translation, changed.translation, atol=1e-3)
        np.testing.assert_allclose(recomputed.scale, changed.scale, rtol=1e-4)
        assert np.nanmax(angle_between(recomputed.rotation, changed.rotation)) < 0.1
    assert walk.cropped(30, 20, 200, 180).width == 200


def test_slices_select_frames(walk: FaceTrack) -> None:
    part = walk[1:3]
    assert len(part) == 2
    np.testing.assert_array_equal(part.rotation, walk.rotation[1:3])
    np.testing.assert_array_equal(part.filled, walk.filled[1:3])


# ---------------------------------------------------------------- drawing


def test_the_drawing_passes_through_the_points(walk: FaceTrack) -> None:
    picture = walk.draw()[0]
    for name, (points, _, colour) in PARTS.items():
        seen = 0
        for x, y in walk.points[0, list(points), :2]:
            patch = picture[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].reshape(-1, 3)
            seen += int((np.abs(patch.astype(int) - colour).max(axis=1) < 90).any())
        assert seen > 0.7 * len(points), name
    assert not walk.draw()[2].any(), "no face, no drawing"


def test_drawing_commutes_with_scaling(walk: FaceTrack) -> None:
    small = cv2.blur(walk.draw(256, 256)[0], (5, 5)).astype(float)
    large = cv2.resize(walk.draw(512, 512)[0], (256, 256), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(small.ravel(), cv2.blur(large, (5, 5)).ravel())[0, 1] > 0.98


@pytest.mark.parametrize("far", [1e4, 1e6, 1e9, -1e6])
def test_a_face_far_outside_is_not_drawn(walk: FaceTrack, far: float) -> None:
    moved = replace(walk, points=walk.points + np.array([far, 0, 0], np.float32))
    assert not moved.draw().any()


def test_distance_is_zero_on_an_edge_and_grows(walk: FaceTrack) -> None:
    maps = walk.distance_maps()
    assert maps.shape == (4, SIDE, SIDE, len(PARTS)) and maps.dtype == np.uint8
    assert (maps[2] == 255).all(), "no face: largest distance everywhere"
    step = 255 * 4 / SIDE  # per pixel
    for i, (name, (points, _, _)) in enumerate(PARTS.items()):
        distances = maps[0, ..., i]
        for x, y in walk.points[0, list(points), :2]:
            assert distances[int(y), int(x)] <= 1.5 * step, name
        assert distances.min() == 0 and distances.max() > 100
        jumps = np.abs(np.diff(distances.astype(int), axis=1)).max()
        assert jumps <= step + 1.5, "the distance changes by at most one pixel per pixel"
    # Straight up from the top of the oval, the distance grows by one pixel per pixel.
    x, y = walk.points[0, 10, :2]
    column = maps[0, : int(y) - 1, int(x), list(PARTS).index("oval")]
    away = int(y) - np.arange(len(column))
    near = away < 20
    np.testing.assert_allclose(column[near], away[near] * step, atol=2.5 * step)


def test_the_spec_decides_the_channels(walk: FaceTrack) -> None:
    for spec, count in (
        ({}, 3),
        ({"shape": "points", "distance_maps": False}, 3),
        ({"distance_maps": True}, 3 + len(PARTS)),
    ):
        tensor = SIGNAL.tensor(walk, spec, 64, 64)
        assert tensor.shape == (4, SIGNAL.channels(spec), 64, 64) and SIGNAL.channels(spec) == count
        assert tensor.min() >= -1 and tensor.max() <= 1
        assert torch.equal(tensor[:, :3], walk.tensor(64, 64)), "the drawing comes first"
    maps = torch.from_numpy(walk.distance_maps(64, 64)).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(tensor[:, 3:], maps)


def test_a_mirrored_face_has_the_maps_of_its_own_parts(walk: FaceTrack) -> None:
    """The mirrored right eye of a face is the left eye of the mirrored face."""
    spec, names = {"distance_maps": True}, list(PARTS)
    plain = SIGNAL.tensor(walk, spec, SIDE, SIDE)[:, 3:].flip(-1)
    mirrored = SIGNAL.tensor(walk.flipped(), spec, SIDE, SIDE)[:, 3:]
    pixel = 2 * 4 / SIDE
    for i, name in enumerate(names):
        twin = names.index(
            {"right": "left", "left": "right"}.get(side := name.partition("_")[0], side)
            + name.removeprefix(side)
        )
        assert (mirrored[:, i] - plain[:, twin]).abs().max() < 2.5 * pixel, name
        if twin != i:
            assert (mirrored[0, i] - plain[0, i]).abs().max() > 10 * pixel, name


def test_options_replace_those_of_a_store_s_spec() -> None:
    spec = {"shape": "points", "distance_maps": True}
    assert SIGNAL.with_options(spec, {}) == {"shape": "points"}
    assert SIGNAL.with_options(spec, {"distance_maps": False}) == {"shape": "points"}
    assert SIGNAL.with_options({"shape": "points"}, {"distance_maps": True}) == spec
    with pytest.raises(UnknownName, match="face"):
        SIGNAL.with_options({}, {"edges": True})
    with pytest.raises(UnknownName, match="pose has none"):
        load_signal("pose").with_options({}, {"distance_maps": True})
