"""Tests that cuts are found exactly, without false positives."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from v2v.preprocess.shots import LOOKAHEAD, find_cuts, thumbnail

Frames = NDArray[np.uint8]


def world(seed: int, *, height: int = 180, width: int = 1280) -> Frames:
    """A textured backdrop, wider than a frame, for camera pans."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height // 12, width // 12, 3))
    smooth = cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0, 255).astype(np.uint8)


def shot(seed: int, count: int, *, speed: float = 2.0, start: float = 0.0) -> Frames:
    """`count` frames of 320x180; the camera moves `speed` pixels per frame."""
    backdrop = world(seed)
    places = [round(start + speed * t) for t in range(count)]
    return np.stack([backdrop[:, x : x + 320] for x in places])


def cuts(*shots: Frames) -> list[int]:
    frames = np.concatenate(shots)
    found = find_cuts(np.stack([thumbnail(frame) for frame in frames]))
    assert found.shape == (len(frames),)
    return np.flatnonzero(found).tolist()


@pytest.mark.parametrize("at", [1, 3, 10, 17, 19])
def test_hard_cut_is_found_at_the_exact_frame(at: int) -> None:
    assert cuts(shot(1, at), shot(2, 20 - at)) == [at]


def test_two_cuts_are_found() -> None:
    assert cuts(shot(1, 8), shot(2, 5), shot(3, 9)) == [8, 13]


def test_jump_within_a_shot_is_a_cut() -> None:
    """With missing frames, motion is not continuous across the jump."""
    assert cuts(shot(1, 10), shot(1, 10, start=120)) == [10]


@pytest.mark.parametrize("length", [1, 2])
def test_flash_is_not_a_cut(length: int) -> None:
    frames = shot(1, 20)
    frames[8 : 8 + length] = 255 - (255 - frames[8 : 8 + length]) // 8
    assert cuts(frames) == []


@pytest.mark.parametrize("speed", [0, 8, 40])
def test_pan_and_its_start_are_not_cuts(speed: float) -> None:
    moving = shot(1, 20, speed=speed)
    still = np.repeat(moving[:1], 10, axis=0)
    assert cuts(still, moving) == []


def test_fade_is_not_a_cut() -> None:
    a, b = shot(1, 30, speed=0), shot(2, 30, speed=0)
    share = np.linspace(0, 1, 30)[:, None, None, None]
    assert cuts((a * (1 - share) + b * share).astype(np.uint8)) == []


@pytest.mark.parametrize("times", [3, 5])
def test_new_frames_among_repeated_ones_are_not_cuts(times: int) -> None:
    """In footage with a raised frame rate, only the real cut is found."""
    slow = np.concatenate([shot(1, 8, speed=6), shot(2, 8, speed=6)])
    change = np.abs(np.diff([thumbnail(f).astype(int) for f in slow[:8]], axis=0)).mean((1, 2))
    assert change.min() > 6, "each new frame must differ as much as at a cut"
    assert cuts(np.repeat(slow, times, axis=0)) == [8 * times]


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_equal_frames_have_no_cuts(count: int) -> None:
    assert cuts(shot(1, count, speed=0)) == []


def test_two_frames_alone_have_no_cut() -> None:
    assert cuts(shot(1, 1), shot(2, 1)) == []


def test_thumbnail_has_the_same_size_for_any_frame() -> None:
    for size in ((16, 16), (18, 32), (99, 37), (720, 1280)):
        picture = np.full((*size, 3), 77, np.uint8)
        assert thumbnail(picture).shape == (18, 32)
        assert abs(int(thumbnail(picture).mean()) - 77) <= 1


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_decision_depends_on_three_previous_frames_and_the_lookahead(
    lengths: list[int], seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    scenes = [rng.integers(0, 256, (18, 32)) for _ in lengths]
    clip = np.concatenate(
        [np.repeat(s[None], n, axis=0) for s, n in zip(scenes, lengths, strict=True)]
    )
    clip = np.clip(clip + rng.integers(-3, 4, clip.shape), 0, 255).astype(np.uint8)
    t = data.draw(st.integers(0, len(clip) - 1))
    first = max(t - 3, 0)
    window = clip[first : t + LOOKAHEAD + 1]
    assert find_cuts(window)[t - first] == find_cuts(clip)[t]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("face/talker_b.mp4", []),
        # The whole frame jumps by 8 and 17 pixels at frame 1, then moves by less than one.
        ("face/talker_c.mp4", [1]),
        ("pose/dancer.mp4", []),
        ("pose/street_crowd.avi", []),
    ],
)
def test_real_footage_has_the_expected_cuts(clips: Path, name: str, expected: list[int]) -> None:
    with av.open(str(clips / name)) as container:
        frames = [thumbnail(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    assert np.flatnonzero(find_cuts(np.stack(frames))).tolist() == expected


def test_street_footage_at_triple_rate_has_no_cuts(clips: Path) -> None:
    files = sorted((clips / "street" / "images").iterdir())
    frames = [thumbnail(cv2.imread(str(file))) for file in files]
    assert len(frames) >= 8
    assert not find_cuts(np.repeat(np.stack(frames), 3, axis=0)).any()
