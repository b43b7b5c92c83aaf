"""Appearance references: frames cut into parts and warped, compared with drawn figures."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from v2v.data.references.choosing import FADE, Chooser, crowded, distances, part_poses
from v2v.data.references.gathering import farthest_points, sharpness
from v2v.data.references.memory import References
from v2v.data.references.pictures import read_references, write_pictures
from v2v.data.references.warping import as_condition, candidates
from v2v.signals.parts import NARROWEST, Part, Rig, regions
from v2v.signals.pose import NAMES, PARTS, POINT, SIGNAL, PoseTrack

HEIGHT, WIDTH = 96, 80
BONES = (  # drawn from back to front: ends, thickness, colour
    (("left_hip", "left_knee"), 9, (60, 60, 200)), (("left_knee", "left_ankle"), 7, (90, 90, 230)),
    (("right_hip", "right_knee"), 9, (60, 160, 60)),
    (("right_knee", "right_ankle"), 7, (90, 200, 90)),
    (("left_shoulder", "left_elbow"), 6, (200, 60, 60)),
    (("left_elbow", "left_wrist"), 5, (240, 120, 60)),
    (("right_shoulder", "right_elbow"), 6, (200, 60, 200)),
    (("right_elbow", "right_wrist"), 5, (240, 160, 240)),
)  # fmt: skip


def body(left: float = 0.4, right: float = 0.4, *, x: float = 40.0, y: float = 20.0) -> Any:
    """[75, 3] a figure that faces the viewer; `left` and `right` are arm angles in radians."""
    points = np.full((len(NAMES), 3), np.nan, np.float32)

    def put(name: str, dx: float, dy: float) -> None:
        points[POINT[name]] = (x + dx, y + dy, 1)

    for index, (dx, dy) in enumerate(
        [(0, -6), (1, -8), (2, -8), (3, -8), (-1, -8), (-2, -8), (-3, -8), (4, -7), (-4, -7),
         (1.5, -4), (-1.5, -4)]
    ):  # fmt: skip
        points[index] = (x + dx, y + dy, 1)
    for side, sign, angle in (("left", 1, left), ("right", -1, right)):
        put(f"{side}_shoulder", 8 * sign, 2)
        put(f"{side}_hip", 5 * sign, 28)
        put(f"{side}_knee", 6 * sign, 44)
        put(f"{side}_ankle", 7 * sign, 60)
        put(f"{side}_heel", 7 * sign, 62)
        put(f"{side}_foot", 9 * sign, 63)
        out, down = np.sin(angle) * sign, np.cos(angle)
        put(f"{side}_elbow", 8 * sign + 12 * out, 2 + 12 * down)
        put(f"{side}_wrist", 8 * sign + 23 * out, 2 + 23 * down)
        for name in ("index", "pinky", "thumb"):
            put(f"{side}_{name}", 8 * sign + 27 * out, 2 + 27 * down)
    return points


def drawn(points: Any) -> tuple[Any, Any]:
    """A coloured figure on grey, and its mask."""
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)

    def fixed(*names: str) -> Any:
        return np.round((points[[POINT[n] for n in names], :2] - 0.5) * 16).astype(np.int32)

    trunk = fixed("left_shoulder", "right_shoulder", "right_hip", "left_hip")
    head = tuple(int(v) for v in np.round((points[0, :2] - 0.5) * 16))
    for canvas, colours in ((picture, None), (mask, 255)):
        for names, thick, colour in BONES[:4]:
            cv2.line(canvas, *map(tuple, fixed(*names).tolist()), colours or colour, thick, 16, 4)
        cv2.fillPoly(canvas, [trunk], colours or (220, 220, 120), 16, 4)
        cv2.circle(canvas, head, 6 * 16, colours or (230, 190, 160), -1, 16, 4)
        for names, thick, colour in BONES[4:]:
            cv2.line(canvas, *map(tuple, fixed(*names).tolist()), colours or colour, thick, 16, 4)
    return picture, mask


def track_of(*bodies: Any) -> PoseTrack:
    points = np.stack(bodies).astype(np.float32)
    return PoseTrack(points, np.zeros(points.shape[:2], bool), WIDTH, HEIGHT)


def references_of(*bodies: Any, whole: bool = False) -> References:
    pictures, masks = zip(*(drawn(points) for points in bodies), strict=True)
    frames = 10 * np.arange(len(bodies), dtype=np.int64)
    return References(np.stack(pictures), np.stack(masks), track_of(*bodies), frames, whole)


def shown(references: References, wanted: Any, count: int = 1, **place: Any) -> Any:
    """Candidates [K, H, W, 5] for one target body."""
    track = track_of(wanted)
    (found,) = candidates(references, track, Chooser(references, count)(track), **place)
    return found.transpose(0, 2, 3, 1)


def error(candidate: Any, truth: Any) -> tuple[float, float]:
    """Mean difference, of 255, where both are valid; fraction of the figure that is covered."""
    picture, mask = truth
    inner = cv2.erode(mask, np.ones((3, 3))) > 127
    valid = candidate[..., 3] > 0.5
    both = inner & valid
    return float(np.abs(candidate[both, :3] - picture[both]).mean()), float(valid[inner].mean())


# ---------------------------------------------------------------- transforms


def rig(motion: str, points: int) -> Rig:
    part = Part("a", tuple(range(points)), ((0, 1),), 0.1, motion=motion)  # type: ignore[arg-type]
    return Rig((part,))


def test_a_similarity_is_fitted_despite_missing_points():
    before = np.random.default_rng(0).uniform(0, 50, (6, 2)).astype(np.float32)
    turn = 1.3 * np.array([[0.8, -0.6], [0.6, 0.8]])
    now = (before @ turn.T + (7, -3)).astype(np.float32)
    before[4] = np.nan
    ((matrix,), (good,)) = rig("similarity", 6).transforms(np.array([0]), before[None], now)
    assert good
    assert matrix == pytest.approx(np.column_stack([turn, (7, -3)]), abs=1e-4)


def test_a_flat_part_shears():
    before = np.array([[0, 0], [20, 0], [0, 30], [20, 30]], np.float32)
    shear = np.array([[1.0, 0.3], [0.0, 0.8]])
    now = (before @ shear.T + 5).astype(np.float32)
    ((matrix,), _) = rig("affine", 4).transforms(np.array([0]), before[None], now)
    assert matrix[:, :2] == pytest.approx(shear, abs=0.03)


def test_a_foreshortened_bone_keeps_its_thickness():
    before, now = np.array([[0, 0], [0, 20]], np.float32), np.array([[5, 5], [15, 5]], np.float32)
    ((matrix,), _) = rig("bone", 2).transforms(np.array([0]), before[None], now)
    assert matrix @ (0, 20, 1) == pytest.approx((15, 5))
    assert np.linalg.norm(matrix[:, :2] @ (1, 0)) == pytest.approx(1)  # across
    ((zoomed,), _) = rig("bone", 2).transforms(np.array([0]), before[None], now, scale=2.0)
    assert np.linalg.norm(zoomed[:, :2] @ (1, 0)) == pytest.approx(2)


def test_a_part_seen_from_the_side_does_not_collapse():
    """Hips seen from the side narrow only to a plausible width."""
    before = np.array([[0, 0], [20, 0], [0, 30], [20, 30]], np.float32)
    now = before * np.array([0.05, 1.0], np.float32)
    fit, grown = rig("affine", 4), np.ones(1, np.float32)
    ((free,), _) = fit.transforms(np.array([0]), before[None], now)
    ((limited,), _) = fit.transforms(np.array([0]), before[None], now, growth=grown)
    ((mirrored,), _) = fit.transforms(np.array([0]), before[None], now * (-1, 1), growth=grown)
    assert mirrored[0, 0] == pytest.approx(limited[0, 0])  # not mirrored within detector noise
    assert np.linalg.norm(free[:, 0]) < 0.1
    assert np.linalg.norm(limited[:, 0]) == pytest.approx(NARROWEST)
    assert limited[:, 1] == pytest.approx((0, 1), abs=0.02)
    middle = np.array((10, 15, 1))
    assert limited @ middle == pytest.approx(now.mean(axis=0), abs=0.1)


@pytest.mark.parametrize(
    ("lean", "mirrored"), [(0.0, False), (0.5, False), (0.0, True), (0.5, True)]
)
def test_a_head_stays_upright_on_its_shoulders(lean, mirrored):
    """From behind, the detected face is a mirror image, which no in-plane rotation explains."""
    before = body()[:, :2]
    turn = np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
    now = before.copy()
    if mirrored:
        now[:11, 0] = 80 - now[:11, 0]
    now = (now @ turn.T + (3, 4)).astype(np.float32)
    head = next(p for p, part in enumerate(PARTS) if part.name == "head")
    ((matrix,), (good,)) = Rig(PARTS).transforms(
        np.array([head]), before[None], now, growth=np.ones(1, np.float32)
    )
    assert good
    assert matrix[:, :2] == pytest.approx(turn, abs=0.02)


def test_a_bowed_head_follows_its_own_points():
    """Bowed towards the camera, it sinks below its shoulders without turning upside down."""
    before = body()[:, :2]
    now = before.copy()
    now[:11, 1] += 14
    head = next(p for p, part in enumerate(PARTS) if part.name == "head")
    ((matrix,), _) = Rig(PARTS).transforms(
        np.array([head]), before[None], now, growth=np.ones(1, np.float32)
    )
    assert matrix[:, :2] == pytest.approx(np.eye(2), abs=0.02)


def test_impossible_fits_are_reported():
    before = np.stack([np.full((3, 2), 4.0), [[0, 0], [np.nan, 1], [np.nan, 2]]]).astype(np.float32)
    now = np.array([[0, 0], [5, 5], [9, 0]], np.float32)
    _, good = rig("similarity", 3).transforms(np.array([0, 0]), before, now)
    assert good.tolist() == [False, False]


def test_a_pixel_belongs_to_the_nearest_bone():
    track = track_of(body())
    own = regions(PARTS, track.part_points()[0], float(track.body_size()[0]), (HEIGHT, WIDTH))
    names = [part.name for part in PARTS]
    for name, point in (("left_knee", (46, 72)), ("head", (40, 13)), ("torso", (40, 33))):
        x, y = point
        assert names[int(own[:, y, x].argmax())] == name
        assert own[names.index(name), y, x] == pytest.approx(1)
    assert own[:, 2, 2].max() == 0  # far from everything


# ---------------------------------------------------------------- candidates


def test_a_reference_in_its_own_pose_is_reproduced():
    own = body(0.5, 1.2)
    difference, covered = error(shown(references_of(own), own)[0], drawn(own))
    assert difference < 4 and covered > 0.98
    assert shown(references_of(own), own)[0, 30, 40, 4] < 0.02  # the distance is 0


@pytest.mark.parametrize("left", [0.2, 0.9, 1.6])
def test_an_unseen_pose_is_composed_of_parts(left):
    """Arms move without pixels of the body or the background."""
    references = references_of(body(0.5, 0.5), body(2.2, 1.4))
    wanted = body(left, 1.0, x=43, y=17)
    difference, covered = error(shown(references, wanted)[0], drawn(wanted))
    assert difference < 12 and covered > 0.93
    unwarped = error(shown(references_of(body(0.5, 0.5)), body(0.5, 0.5))[0], drawn(wanted))
    assert unwarped[0] > 2 * difference  # the unwarped reference is much worse


def test_each_part_uses_the_reference_with_the_nearest_pose():
    references = references_of(body(0.3, 2.4), body(2.4, 0.3))
    chosen = Chooser(references, 1)(track_of(body(0.3, 0.3))).used
    by_name = {part.name: int(chosen[0, p, 0]) for p, part in enumerate(PARTS)}
    assert by_name["left_shoulder"] == by_name["left_elbow"] == 0
    assert by_name["right_shoulder"] == by_name["right_elbow"] == 1


def test_all_parts_of_a_group_use_the_same_reference():
    wide, narrow = body(), body()
    narrow[:11, 0] += 3
    for name in ("left_knee", "left_ankle", "left_heel", "left_foot"):
        wide[POINT[name], 0] += 12
    references = references_of(wide, narrow)
    wanted = body()
    wanted[POINT["left_knee"], 0] += 5  # the thigh is between the two
    wanted[:11, 0] += 1.4
    used = Chooser(references, 1)(track_of(wanted)).used[0, :, 0]
    for group in ("skirt", "head"):
        chosen = {int(r) for r, part in zip(used, PARTS, strict=True) if part.group == group}
        assert len(chosen) == 1


def test_an_arm_uses_a_reference_with_nothing_beside_it():
    """In the nearer one the other forearm lies beside it and would be cut out as well."""
    free, beside = body(2.0, 0.5), body(2.1, 0.5)
    for name in ("elbow", "wrist"):
        beside[POINT[f"right_{name}"], :2] = beside[POINT[f"left_{name}"], :2] + (2, 4)
    references, wanted = references_of(beside, free), track_of(body(2.1, 0.5))
    forearm = next(p for p, part in enumerate(PARTS) if part.name == "left_elbow")
    assert crowded(references)[forearm].tolist() == [1, 0]
    assert distances(references, wanted)[0, forearm].argmin() == 0
    assert Chooser(references, 1)(wanted).used[0, forearm, 0] == 1


def test_no_gap_opens_at_the_neck():
    """The chin is higher above the shoulders than in the reference."""
    own, wanted = body(), body()
    wanted[:11, 1] -= 5
    references = references_of(own)
    cv2.line(references.masks[0], (39, 18), (39, 24), 255, 4)  # the drawn figure lacks a neck
    (found,) = shown(references, wanted)
    assert found[14:24, 39, 3].min() > 0.9


def test_a_part_missing_in_one_reference_comes_from_another():
    """The nearer reference lacks the forearm, as at the edge of a picture."""
    references = references_of(body(0.5, 0.5), body(1.1, 0.5))
    picture, mask = references.pictures[0], references.masks[0]
    elbow, wrist = (references.track.points[0, POINT[f"left_{n}"], :2] for n in ("elbow", "wrist"))
    for canvas, colour in ((picture, (128, 128, 128)), (mask, 0)):
        start = elbow + 0.4 * (wrist - elbow)
        cv2.line(canvas, start.astype(int).tolist(), wrist.astype(int).tolist(), colour, 7)
    chosen = Chooser(references, 1)(track_of(body(0.55, 0.5))).used
    by_name = {part.name: int(chosen[0, p, 0]) for p, part in enumerate(PARTS)}
    assert (by_name["left_shoulder"], by_name["left_elbow"]) == (0, 1)


def test_a_zoomed_window_shows_the_same_figure_larger():
    references, wanted = references_of(body(0.5, 0.5)), body(1.2, 0.8)
    zoomed = wanted.copy()
    zoomed[:, :2] = (wanted[:, :2] - (10, 8)) * 1.25
    (plain,) = shown(references, wanted)
    (found,) = shown(references, zoomed, scale=(1.25, 1.25), shift=(-12.5, -10.0))
    matrix = np.array([[1.25, 0, -12.5], [0, 1.25, -10]])
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    expected = cv2.warpAffine(np.ascontiguousarray(plain), matrix, (WIDTH, HEIGHT))
    both = (expected[..., 3] > 0.9) & (found[..., 3] > 0.9)
    assert both.sum() > 800
    assert np.abs(expected[both, :3] - found[both, :3]).mean() < 8


def test_without_a_background_plate_candidates_include_the_background():
    references = references_of(body(0.4, 0.4), whole=True)
    (found,) = shown(references, body(1.5, 1.5))
    assert found[..., 3].min() == pytest.approx(1)
    assert found[2:6, 2:6, :3] == pytest.approx(128, abs=2)
    # The arm's position in the reference shows background now.
    assert found[38, 54, :3] == pytest.approx(128, abs=25)


def test_candidates_are_converted_to_a_condition():
    found = as_condition(shown(references_of(body()), body(), count=2).transpose(0, 3, 1, 2))
    assert found.shape == (2, 5, HEIGHT, WIDTH)
    assert found[:, :3].abs().max() <= 1
    assert not found[0, :, 0, 0].any()  # nothing is valid there
    assert not found[1].any()  # one reference makes one candidate


# ---------------------------------------------------------------- choices


def test_choices_do_not_flicker():
    references = references_of(body(0.4), body(1.0))
    angles = 0.7 + 0.04 * np.array([-1, 1, -1, 1, -1, 1])  # around the middle between the two
    chosen = Chooser(references, 1)(track_of(*(body(a) for a in angles))).used
    arm = next(p for p, part in enumerate(PARTS) if part.name == "left_elbow")
    assert len(set(chosen[:, arm, 0])) == 1
    chosen = Chooser(references, 1)(track_of(body(0.4), body(1.0))).used
    assert chosen[:, arm, 0].tolist() == [0, 1]  # but they change to a clearly nearer reference


def test_a_new_reference_fades_in():
    """The blending weight falls linearly; the result is opaque where both references are."""
    references = references_of(body(0.4), body(1.0))
    references.pictures[0][references.masks[0] > 127] = 200
    references.pictures[1][references.masks[1] > 127] = 100
    track = track_of(body(0.4), *[body(1.0)] * FADE)
    choice = Chooser(references, 1)(track)
    arm = next(p for p, part in enumerate(PARTS) if part.name == "left_elbow")
    assert choice.used[:, arm, 0].tolist() == [0, *[1] * FADE]
    assert choice.fading[:, arm, 0] == pytest.approx([0, *np.arange(1, FADE)[::-1] / FADE, 0])
    found = [frame[0] for frame in candidates(references, track, choice)]
    elbow, wrist = (track.points[-1, POINT[f"left_{name}"], :2] for name in ("elbow", "wrist"))
    x, y = (0.6 * elbow + 0.4 * wrist).astype(int)
    assert [round(float(frame[0, y, x])) for frame in found[1:]] == pytest.approx(
        [100 + 100 * share for share in (0.75, 0.5, 0.25, 0)], abs=4
    )
    assert min(frame[3, y, x] for frame in found[1:]) > 0.95


def test_a_reference_keeps_its_candidate():
    references = references_of(body(0.2), body(0.8), body(1.4))
    chosen = Chooser(references, 2)(track_of(*(body(a) for a in np.linspace(0.2, 1.4, 9)))).used
    for before, now in zip(chosen, chosen[1:], strict=False):
        for p in range(len(PARTS)):
            kept = set(before[p]) & set(now[p])
            assert all(list(before[p]).index(r) == list(now[p]).index(r) for r in kept)


def test_banned_references_are_never_chosen():
    references = references_of(body(0.4), body(1.0), body(2.0))
    chosen = Chooser(references, 2, banned=[0])(track_of(body(0.4))).used
    assert set(np.unique(chosen)) == {1, 2}
    none = Chooser(references, 2, banned=[0, 1, 2])(track_of(body(0.4))).used
    assert (none == -1).all()


def test_choosing_in_chunks_gives_the_same_result():
    references = references_of(body(0.2), body(0.9), body(1.6))
    track = track_of(*(body(a) for a in np.linspace(0.1, 1.8, 12)))
    whole = Chooser(references, 2)(track).used
    chooser = Chooser(references, 2)
    pieces = [chooser(track[a : a + 4]).used for a in range(0, 12, 4)]
    assert (np.concatenate(pieces) == whole).all()


def test_the_farthest_poses_are_chosen():
    bodies = [body(a, b) for a, b in [(0.4, 0.4)] * 6 + [(2.0, 0.4), (0.4, 2.0)] + [(0.45, 0.4)]]
    assert set(farthest_points(part_poses(track_of(*bodies)), 3)) == {0, 6, 7}


def test_blurred_frames_are_less_sharp():
    picture, mask = drawn(body())
    assert sharpness(cv2.GaussianBlur(picture, (7, 7), 2), mask) < 0.6 * sharpness(picture, mask)


# ---------------------------------------------------------------- on disk


def written(folder: Any) -> tuple[References, dict[str, Any]]:
    references = references_of(body(0.3), body(1.0), body(1.8))
    write_pictures(folder / "references", 0, references)
    return references, references.arrays()


def read(folder: Any, arrays: Any) -> References | None:
    return read_references(
        folder / "references", 0, arrays, signal=SIGNAL, size=(HEIGHT, WIDTH), whole=False
    )


def test_references_survive_writing_and_reading(tmp_path):
    references, arrays = written(tmp_path)
    found = read(tmp_path, arrays)
    assert found is not None
    assert (found.pictures == references.pictures).all() and (found.masks == references.masks).all()
    assert np.array_equal(found.track.part_points(), references.track.part_points(), equal_nan=True)
    assert (shown(found, body(0.7)) == shown(references, body(0.7))).all()


def test_removed_pictures_are_skipped(tmp_path):
    _, arrays = written(tmp_path)
    (tmp_path / "references" / "0-01.png").unlink()
    found = read(tmp_path, arrays)
    assert found is not None and found.frames.tolist() == [0, 20]
    for path in (tmp_path / "references").iterdir():
        path.unlink()
    assert read(tmp_path, arrays) is None


@pytest.mark.parametrize("damage", ["cut", "size", "mode"])
def test_errors_name_damaged_pictures(damage, tmp_path):
    _, arrays = written(tmp_path)
    path = tmp_path / "references" / "0-01.png"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    else:
        mode, size = ("RGBA", (20, 20)) if damage == "size" else ("L", (WIDTH, HEIGHT))
        Image.new(mode, size).save(path)
    with pytest.raises(ValueError, match=r"0-01\.png"):
        read(tmp_path, arrays)


def test_arrays_that_do_not_match_are_refused(tmp_path):
    _, arrays = written(tmp_path)
    with pytest.raises(ValueError, match="points"):
        read(tmp_path, arrays | {"points": arrays["points"][:2]})


def test_join_concatenates_tracks():
    parts = [track_of(body(a)) for a in (0.1, 0.5)]
    whole = track_of(body(0.1), body(0.5))
    joined = PoseTrack.joined(parts).part_points()
    assert np.array_equal(joined, whole.part_points(), equal_nan=True)
