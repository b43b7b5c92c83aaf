"""World consistency: the same frame, rendered twice."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from v2v.evaluation.clips import ping_pong
from v2v.evaluation.returns import MOST, difference_on_return, returns
from v2v.video.write import VideoWriter


def write_lossless(path: Path, frames: np.ndarray) -> Path:
    height, width = frames.shape[1:3]
    with VideoWriter(
        path, width=width, height=height, rate=Fraction(25), codec="ffv1"
    ) as writer:  # fmt: skip
        for frame in frames:
            writer.write(frame)
    return path


def test_repeated_frames_are_paired() -> None:
    order = ping_pong(20, 60)
    pairs = returns(order)
    assert len(pairs) == MOST
    for first, again in pairs:
        assert order[first] == order[again] and again - first >= 8
    assert returns(ping_pong(20, 20)) == []


def test_the_difference_of_repeated_frames_is_measured(tmp_path: Path) -> None:
    order = ping_pong(16, 30)
    scene = np.random.default_rng(0).integers(0, 256, (16, 24, 32, 3), np.uint8)
    assert difference_on_return(write_lossless(tmp_path / "a.mkv", scene[order]), order) == 0
    drifted = np.clip(scene[order].astype(int), 20, 235)
    drifted[16:] += 6
    found = difference_on_return(
        write_lossless(tmp_path / "b.mkv", drifted.astype(np.uint8)), order
    )
    assert found is not None and 4 < found < 8
    once = difference_on_return(write_lossless(tmp_path / "c.mkv", scene), np.arange(16))
    assert once is None
