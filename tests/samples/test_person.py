"""The drawn person is where it says it is, and MediaPipe follows it."""

from __future__ import annotations

import numpy as np
import pytest

from samples import person

LIMBS = [i for i, name in enumerate(person.JOINT_NAMES) if name != "nose"]


def test_frames_and_joints_agree_in_shape():
    frames = list(person.frames(count=3, height=160, width=96))
    joints = person.joints(count=3, height=160, width=96)
    assert [frame.shape for frame in frames] == [(160, 96, 3)] * 3
    assert frames[0].dtype == np.uint8
    assert joints.shape == (3, len(person.JOINT_NAMES), 2)
    assert joints.dtype == np.float32


def test_same_seed_same_bytes_and_another_seed_another_dance():
    def clip(seed: int) -> np.ndarray:
        return np.stack(list(person.frames(count=2, height=160, width=96, seed=seed)))

    assert np.array_equal(clip(3), clip(3))
    assert not np.array_equal(clip(3), clip(4))


def test_a_frame_does_not_depend_on_the_count():
    short = list(person.frames(count=2, height=160, width=96))
    long = list(person.frames(count=4, height=160, width=96))
    assert np.array_equal(short[1], long[1])


@pytest.mark.parametrize("seed", range(6))
def test_joints_stay_in_the_frame_and_move_smoothly(seed):
    joints = person.joints(seed=seed, count=300)
    assert (joints >= 0).all() and (joints < (384, 640)).all()
    assert np.abs(np.diff(joints, axis=0)).max() < 0.03 * 640
    wrists = joints[:, person.JOINT_NAMES.index("left_wrist")]
    assert np.ptp(wrists[:, 1]) > 0.1 * 640, "the arm is not raised"


def test_joints_scale_with_the_frame():
    large = person.joints(count=5, height=640, width=384)
    small = person.joints(count=5, height=320, width=192)
    np.testing.assert_allclose(large, 2 * small, rtol=1e-5)


def test_the_background_stands_still():
    first, *_, last = person.frames(count=12, height=320, width=192)
    corner = (slice(0, 40), slice(0, 192))  # above any raised hand
    assert np.array_equal(first[corner], last[corner])


@pytest.mark.parametrize("solution", ["pose", "holistic"])
def test_mediapipe_follows(solution):
    mediapipe = pytest.importorskip("mediapipe")
    make = {
        "pose": lambda: mediapipe.solutions.pose.Pose(model_complexity=1),
        "holistic": lambda: mediapipe.solutions.holistic.Holistic(),
    }[solution]
    names = mediapipe.solutions.pose.PoseLandmark
    clip = {"count": 40, "fps": 10.0}  # every third frame of the default clip
    joints = person.joints(**clip)
    errors = []
    with make() as tracker:
        for i, frame in enumerate(person.frames(**clip)):
            found = tracker.process(frame).pose_landmarks
            assert found is not None, f"no person in frame {i}"
            points = [found.landmark[names[person.JOINT_NAMES[k].upper()]] for k in LIMBS]
            points = np.array([(p.x * 384, p.y * 640) for p in points])
            figure = np.ptp(joints[i, :, 1])  # nose to ankles
            # A tracker that took left for right would be a shoulder's width off.
            errors.append(np.linalg.norm(points - joints[i, LIMBS], axis=1) / figure)
    assert (np.max(errors, axis=1) < 0.12).mean() >= 0.97
    assert np.mean(errors) < 0.04
