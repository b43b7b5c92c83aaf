"""Tests that the drawn people match their joints and that MediaPipe detects them."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest

from v2v.config import load_config
from v2v.errors import UnknownName
from v2v.pipelines import demo
from v2v.samples import figures, person
from v2v.samples.clips import write_sample
from v2v.training.settings import TrainSettings

LIMBS = [i for i, name in enumerate(figures.JOINT_NAMES) if name != "nose"]
PEOPLE = list(figures.PEOPLE)


def joint(joints: np.ndarray, name: str) -> np.ndarray:
    """Positions of a joint, float [T, 2]; `middle NAME` is the midpoint of left and right."""
    if name.startswith("middle "):
        kind = name.removeprefix("middle ")
        return (joint(joints, f"left_{kind}") + joint(joints, f"right_{kind}")) / 2
    return joints[:, figures.JOINT_NAMES.index(name)].astype(float)


def lengths(joints: np.ndarray, start: str, end: str) -> np.ndarray:
    return np.linalg.norm(joint(joints, start) - joint(joints, end), axis=1)


def elevation(joints: np.ndarray, side: str, start: str, end: str) -> np.ndarray:
    """Angle of an arm bone from straight down, radians; positive outwards."""
    x, y = (joint(joints, f"{side}_{end}") - joint(joints, f"{side}_{start}")).T
    return np.arctan2(x if side == "left" else -x, y) % (2 * np.pi)


def test_frames_and_joints_agree_in_shape():
    frames = list(person.frames(count=3, height=160, width=96))
    joints = person.joints(count=3, height=160, width=96)
    assert [frame.shape for frame in frames] == [(160, 96, 3)] * 3
    assert frames[0].dtype == np.uint8
    assert joints.shape == (3, len(figures.JOINT_NAMES), 2)
    assert joints.dtype == np.float32


@pytest.mark.parametrize("who", PEOPLE)
def test_dance_depends_only_on_the_seed(who):
    def clip(seed: int) -> np.ndarray:
        return np.stack(list(person.frames(count=2, height=160, width=96, seed=seed, who=who)))

    assert np.array_equal(clip(3), clip(3))
    assert not np.array_equal(clip(3), clip(4))


def test_host_is_the_default_person():
    size = {"count": 1, "height": 160, "width": 96}
    (default,), (host,), (guest,) = (
        person.frames(**size, **who) for who in ({}, {"who": "host"}, {"who": "guest"})
    )
    assert np.array_equal(default, host)
    changed = np.abs(host.astype(int) - guest).max(axis=2) > 12
    assert changed.mean() > 0.9, "body, clothes and room differ"


@pytest.mark.parametrize("draw", [person.frames, person.joints])
def test_unknown_person_is_rejected_before_drawing(draw):
    with pytest.raises(UnknownName, match="unknown person 'gest'") as caught:
        draw(who="gest")
    assert caught.value.hint == "did you mean 'guest'? valid: guest, host"


@pytest.mark.parametrize("who", PEOPLE)
def test_legs_and_trunk_have_the_specified_lengths(who):
    drawn, build = figures.PEOPLE[who], figures.PEOPLE[who].build
    joints = person.joints(who=who, count=300, seed=5)
    height = min(0.75 * 640, 1.03 * 384) * drawn.stature
    for side in ("left", "right"):
        thigh = lengths(joints, f"{side}_hip", f"{side}_knee").max()
        shin = lengths(joints, f"{side}_knee", f"{side}_ankle").max()
        # A knee is never fully straight, and points to the viewer.
        assert 0.96 * build.thigh * height < thigh <= build.thigh * height
        assert 0.96 * build.shin * height < shin <= build.shin * height
    hips = lengths(joints, "left_hip", "right_hip").max()
    assert hips == pytest.approx(2 * build.hip * height, rel=0.01)
    spine = lengths(joints, "middle shoulder", "middle hip").min()  # minimum: no shoulder is raised
    assert spine == pytest.approx(build.spine * height, rel=0.03)


def test_arm_lengths_of_host_and_guest_have_the_specified_ratio():
    shown, truths = {}, {}
    for who, drawn in figures.PEOPLE.items():
        # Over several dances, each bone is parallel to the image plane at some time.
        joints = np.concatenate([person.joints(who=who, seed=seed) for seed in range(6)])
        for bone, ends in {"upper_arm": "shoulder elbow", "forearm": "elbow wrist"}.items():
            start, end = ends.split()
            for side in ("left", "right"):
                shown[who, side, bone] = lengths(joints, f"{side}_{start}", f"{side}_{end}").max()
                truths[who, side, bone] = getattr(drawn.build, bone) * drawn.stature
    for _, *arm in shown:
        ratios = [size["guest", *arm] / size["host", *arm] for size in (shown, truths)]
        assert ratios[0] == pytest.approx(ratios[1], rel=0.02), arm


def test_guest_has_another_build_and_position():
    host, guest = (person.joints(who=who, count=300) for who in ("host", "guest"))

    def legs_to_spine(joints: np.ndarray) -> float:
        legs = joint(joints, "middle ankle") - joint(joints, "middle hip")
        return float(np.mean(legs[:, 1] / lengths(joints, "middle shoulder", "middle hip")))

    def shoulders_to_arm(joints: np.ndarray) -> float:
        arm = lengths(joints, "left_shoulder", "left_elbow").max()
        return float(lengths(joints, "left_shoulder", "right_shoulder").max() / arm)

    assert legs_to_spine(guest) < 0.85 * legs_to_spine(host)
    assert shoulders_to_arm(guest) > 1.2 * shoulders_to_arm(host)
    assert np.ptp(guest[..., 1]) < 0.9 * np.ptp(host[..., 1])
    middle = [float(joint(joints, "middle hip")[:, 0].mean()) / 384 for joints in (host, guest)]
    assert middle[0] == pytest.approx(0.5, abs=0.01)
    assert 0.03 < middle[1] - middle[0] < 0.12


@pytest.mark.parametrize("seed", range(6))
def test_guest_stays_within_the_hosts_range_of_motion(seed):
    host = np.concatenate([person.joints(count=180, seed=other) for other in (0, 11)])
    guest = person.joints(who="guest", count=300, seed=seed)
    for side in ("left", "right"):
        shown = [
            np.stack(
                [elevation(j, side, "shoulder", "elbow"), elevation(j, side, "elbow", "wrist")], 1
            )
            for j in (host, guest)
        ]
        nearest = np.abs(shown[1][:, None] - shown[0][None]).max(axis=2).min(axis=1)
        assert nearest.max() < 0.25, "an arm is outside the host's range"
        assert np.ptp(shown[1][:, 0]) > 1.1, "the arm is barely raised"
    for start, end in (("middle hip", "middle shoulder"), ("left_hip", "left_ankle")):
        slants = []
        for joints in (host, guest):
            x, y = (joint(joints, end) - joint(joints, start)).T
            slants.append(np.arctan(x / y))
        assert slants[0].min() - 0.07 < slants[1].min()
        assert slants[1].max() < slants[0].max() + 0.07


def test_frame_does_not_depend_on_the_count():
    short = list(person.frames(count=2, height=160, width=96))
    long = list(person.frames(count=4, height=160, width=96))
    assert np.array_equal(short[1], long[1])


@pytest.mark.parametrize("who", PEOPLE)
@pytest.mark.parametrize("seed", range(6))
def test_joints_stay_in_the_frame_and_move_smoothly(seed, who):
    joints = person.joints(seed=seed, count=300, who=who)
    assert (joints >= 0).all() and (joints < (384, 640)).all()
    assert np.abs(np.diff(joints, axis=0)).max() < 0.03 * 640
    wrists = joints[:, figures.JOINT_NAMES.index("left_wrist")]
    assert np.ptp(wrists[:, 1]) > 0.1 * 640, "the arm is not raised"


@pytest.mark.parametrize("who", PEOPLE)
def test_joints_scale_with_the_frame(who):
    large = person.joints(count=5, height=640, width=384, who=who)
    small = person.joints(count=5, height=320, width=192, who=who)
    np.testing.assert_allclose(large, 2 * small, rtol=1e-5)


@pytest.mark.parametrize("who", PEOPLE)
def test_background_is_static(who):
    first, *_, last = person.frames(count=12, height=320, width=192, who=who)
    corner = (slice(0, 40), slice(0, 192))  # above any raised hand
    assert np.array_equal(first[corner], last[corner])


@pytest.mark.parametrize(
    ("solution", "who"),
    [
        ("pose", "host"),
        pytest.param("holistic", "host", marks=pytest.mark.slow),
        ("pose", "guest"),
    ],
)
def test_mediapipe_detects_the_joints(solution, who):
    mediapipe = pytest.importorskip("mediapipe")
    make = {
        "pose": lambda: mediapipe.solutions.pose.Pose(model_complexity=1),
        "holistic": lambda: mediapipe.solutions.holistic.Holistic(),
    }[solution]
    names = mediapipe.solutions.pose.PoseLandmark
    clip = {"count": 24, "fps": 6.0, "who": who}  # every fifth frame of the default clip
    joints = person.joints(**clip)
    errors = []
    with make() as tracker:
        for i, frame in enumerate(person.frames(**clip)):
            found = tracker.process(frame).pose_landmarks
            assert found is not None, f"no person in frame {i}"
            points = [found.landmark[names[figures.JOINT_NAMES[k].upper()]] for k in LIMBS]
            points = np.array([(p.x * 384, p.y * 640) for p in points])
            figure = np.ptp(joints[i, :, 1])  # nose to ankles
            # Confusing left and right causes an error of a shoulder width.
            errors.append(np.linalg.norm(points - joints[i, LIMBS], axis=1) / figure)
    assert (np.max(errors, axis=1) < 0.12).mean() >= 0.97
    assert np.mean(errors) < 0.04


def test_each_person_is_written_to_a_separate_file(tmp_path):
    written = [write_sample("person", tmp_path, seconds=0.05, who=who) for who in PEOPLE]
    assert [path.name for path in written] == ["person.mp4", "guest.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guest.mp4", "person.mp4"]


def test_unknown_person_writes_no_file(tmp_path):
    with pytest.raises(UnknownName, match="unknown person"):
        write_sample("person", tmp_path / "out", who="nobody")
    assert not (tmp_path / "out").exists()


def test_room_is_empty_at_the_start():
    clip = {"height": 320, "width": 192, "count": 6}
    shown = np.stack(list(person.frames(**clip, empty=3)))
    danced = np.stack(list(person.frames(**clip)))
    assert np.array_equal(shown[0], shown[2]) and np.array_equal(shown[3:], danced[3:])
    beside = (slice(0, 200), slice(0, 20))
    assert np.array_equal(shown[0][beside], danced[0][beside])
    assert np.abs(shown[0].astype(int) - danced[0]).max() > 60


def test_finale_is_another_dance():
    clip = {"count": 300, "fps": 15.0, "seed": 3}
    plain, joints = person.joints(**clip), person.joints(**clip, finale=40)
    assert np.array_equal(joints[:-40], plain[:-40])
    assert np.linalg.norm(joints[-40:] - plain[-40:], axis=-1).mean() > 5


def novelty(joints: np.ndarray, held_out: int, *, fps: float = 30.0, empty: int = 0) -> np.ndarray:
    """Distance of each of the last `held_out` poses to the nearest earlier pose, [held_out].

    Poses less than a third of a second earlier are excluded: neighbouring poses are always similar.
    Distances are means over joints, relative to the largest distance between two training poses.
    `joints` [T, J, 2] are in pixels; the first `empty` frames show nobody.
    """
    begin, min_gap = len(joints) - held_out, round(fps / 3)
    trained = joints[empty:begin].astype(float)
    spread = np.linalg.norm(trained[:, None] - trained[None], axis=-1).mean(axis=-1).max()
    gaps = np.linalg.norm(joints[begin:, None] - trained[None], axis=-1).mean(axis=-1)
    near = np.arange(empty, begin)[None] > np.arange(begin, len(joints))[:, None] - min_gap
    gaps[near] = np.inf
    return gaps.min(axis=1) / spread


def demo_clip(who: str) -> dict:
    """The arguments of the clip drawn by `v2v demo`."""
    seconds = inspect.signature(demo.demo).parameters["seconds"].default
    return {"count": round(seconds * 30), "fps": 30.0, "seed": demo.SEEDS[who], "who": who}


def test_held_out_poses_of_the_demo_are_not_in_its_training_part():
    clip = demo_clip("host")
    share = load_config(TrainSettings, "train", "train-pose").data.hold_out
    held_out, empty = round(share * clip["count"]), round(30 * demo.EMPTY["host"])
    distances = novelty(person.joints(**clip), held_out, empty=empty)
    assert len(distances) == 27
    assert distances.min() > 0.12 and distances.mean() > 0.2


def test_periodic_dance_repeats_poses(monkeypatch):
    """Rational frequency ratios, as in earlier versions, repeat poses."""
    for name in ("RIGHT", "TURN", "GAZE", "TALK", "FIGURE"):
        monkeypatch.setattr(figures, name, 1.0 if name == "RIGHT" else 0.5)
    monkeypatch.setattr(figures, "SWING", {"left": 1.0, "right": 1.0})
    host = figures.PEOPLE["host"]
    monkeypatch.setitem(figures.PEOPLE, "host", replace(host, dance=replace(host.dance, arms=0.5)))
    assert novelty(person.joints(**demo_clip("host")), 27, empty=12).max() < 0.01


@pytest.mark.parametrize("who", PEOPLE)
@pytest.mark.parametrize(("seconds", "minimum"), [(4, 0.1), (10, 0.08), (60, 0.04)])
def test_no_dance_repeats_within_the_clip(who, seconds, minimum):
    for seed in range(4):
        joints = person.joints(count=30 * seconds, seed=seed, who=who)
        distances = novelty(joints, round(0.15 * len(joints)))
        assert distances.mean() > minimum and distances.min() > 0.01, seed


@pytest.mark.parametrize("who", PEOPLE)
def test_fingertips_stay_in_the_frame(who):
    camera = figures.SceneCamera.fitting(640, 384, figures.PEOPLE[who])
    for seed in range(6):
        phase = figures._dancer(seed)
        for t in np.arange(0, 60, 0.1):
            points = figures._pose(float(t), phase, figures.PEOPLE[who]).points
            for side in ("left", "right"):
                x, y = camera(points[f"{side}_hand"])
                assert 0 < x < 384 and 0 < y < 640, (seed, t)
