"""Tests that the drawn face matches its truth and that MediaPipe's face mesh detects it."""

from __future__ import annotations

import numpy as np
import pytest

from v2v.samples import face


def test_frames_and_truth_have_equal_length():
    frames = list(face.frames(count=3, height=96, width=128))
    truths = face.truth(count=3)
    assert [frame.shape for frame in frames] == [(96, 128, 3)] * 3
    assert frames[0].dtype == np.uint8
    assert {"mouth_openness", "eye_openness", "yaw"} <= truths.keys()
    assert all(series.shape == (3,) and series.dtype == np.float32 for series in truths.values())


def test_clip_depends_only_on_the_seed():
    def clip(seed: int) -> np.ndarray:
        return np.stack(list(face.frames(count=2, height=96, width=96, seed=seed)))

    assert np.array_equal(clip(3), clip(3))
    assert not np.array_equal(clip(3), clip(4))


@pytest.mark.parametrize("seed", range(4))
def test_face_talks_blinks_and_turns(seed):
    truths = face.truth(seed=seed)
    for name in ("mouth_openness", "eye_openness"):
        assert truths[name].min() >= 0 and truths[name].max() <= 1
    assert np.ptp(truths["mouth_openness"]) > 0.6
    assert truths["eye_openness"].min() < 0.15, "no blink"
    assert truths["eye_openness"].max() > 0.9
    assert 0.15 < np.abs(truths["yaw"]).max() < 0.4


def test_backdrop_is_static():
    first, *_, last = face.frames(count=20, height=128, width=128)
    assert np.array_equal(first[:8], last[:8])


@pytest.mark.parametrize("size", [256, pytest.param(512, marks=pytest.mark.slow)])
def test_face_mesh_detects_the_drawn_values(size):
    mediapipe = pytest.importorskip("mediapipe")
    clip = {"count": 40, "fps": 10.0}  # every third frame of the default clip
    truths = face.truth(**clip)
    detected, mouth, eyes, yaw = [], [], [], []
    with mediapipe.solutions.face_mesh.FaceMesh(refine_landmarks=True) as tracker:
        for i, frame in enumerate(face.frames(height=size, width=size, **clip)):
            found = tracker.process(frame).multi_face_landmarks
            if found is None:
                continue
            points = np.array([(p.x, p.y) for p in found[0].landmark])

            def distance(a: int, b: int, points: np.ndarray = points) -> float:
                return float(np.linalg.norm(points[a] - points[b]))

            detected.append(i)
            mouth.append(distance(13, 14) / distance(78, 308))
            eyes.append(
                distance(159, 145) / distance(33, 133) + distance(386, 374) / distance(362, 263)
            )
            middle = (points[234, 0] + points[454, 0]) / 2
            yaw.append((points[1, 0] - middle) / distance(234, 454))
    assert len(detected) >= 0.97 * 40
    for name, measured, minimum in (
        ("mouth_openness", mouth, 0.8),
        ("eye_openness", eyes, 0.7),
        ("yaw", yaw, 0.9),
    ):
        assert np.corrcoef(measured, truths[name][detected])[0, 1] > minimum, name
