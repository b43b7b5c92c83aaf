"""Footage as it really comes goes in; what is stored is what ffmpeg shows of it, frame by frame."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from v2v.data.probe import Probe, probe
from v2v.data.video import (
    EchoEncoder,
    FramePlan,
    copy_audio,
    plan_frames,
    plan_geometry,
    read_stored,
    read_upright,
    stored_matrix,
)
from v2v.errors import BrokenStream, MediaNotFound, NotAVideo, UsageError

CODEC_ERROR = 3.0  # of 255: H.264 at crf 16 and chroma at half size, on smooth content
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast", "-crf", "12")
SAFE = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "fast", "-crf", "12", "-bf", "2")


@dataclass(frozen=True)
class Stored:
    """Footage that went the whole way, as a reader of the store sees it."""

    probe: Probe
    plan: FramePlan
    frames: np.ndarray  # RGB [T, H, W, 3]
    lost: list[int]


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Stored]:
    def run(path: Path, *, size: Any = None, first: int = 0, **plan_options: Any) -> Stored:
        footage = probe(path)
        plan = plan_frames(footage, **plan_options)
        geometry = plan_geometry(footage, size=size)
        target = tmp_path / "stored.mp4"
        encoder = EchoEncoder(
            target, width=geometry.width, height=geometry.height, rate=plan.rate, crf=16,
            preset="ultrafast", matrix=stored_matrix(footage),
        )  # fmt: skip
        indices, lost, echoed = [], [], 0
        for placed in read_upright(footage, plan, geometry, first=first):
            indices.append(placed.index)
            if placed.lost:
                lost.append(placed.index)
            echoed += len(list(encoder.encode(placed.frame)))
        echoed += len(list(encoder.close()))
        assert indices == list(range(first, len(plan)))
        frames = np.stack(list(read_stored(target)))
        assert len(frames) == echoed == len(plan) - first
        return Stored(footage, plan, frames, lost)

    return run


def even(frames: np.ndarray) -> np.ndarray:
    """Without the odd last row and column, which 4:2:0 cannot hold."""
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


# ---------------------------------------------------------------- every codec and container

FORMATS = {
    "h264": ("a.mp4", *SAFE),
    "h264-open-gop": ("a.mp4", *SAFE, "-g", 6, "-x264-params", "open-gop=1:scenecut=0"),
    "h264-10bit": ("a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-crf", 12),
    "h264-422": ("a.mkv", "-c:v", "libx264", "-pix_fmt", "yuv422p", "-crf", 12),
    "h264-444": ("a.mkv", "-c:v", "libx264", "-pix_fmt", "yuv444p", "-crf", 12),
    "h264-rgb": ("a.mkv", "-c:v", "libx264rgb", "-pix_fmt", "rgb24", "-crf", 12),
    "h264-grey": ("a.mp4", "-c:v", "libx264", "-pix_fmt", "gray", "-crf", 12),
    "h264-avi": ("a.avi", *SAFE),
    "h264-interlaced": ("a.mp4", *X264, "-flags", "+ildct+ilme", "-x264-params", "tff=1"),
    "h264-ts": ("a.ts", *SAFE, "-g", 5),
    "hevc": ("a.mp4", "-c:v", "libx265", "-x265-params", "log-level=none:keyint=5", "-crf", 12),
    "hevc-10bit": (
        "a.mkv", "-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none",
        "-crf", 12,
    ),
    "vp8": ("a.webm", "-c:v", "libvpx", "-b:v", "2M", "-auto-alt-ref", 1, "-lag-in-frames", 8),
    "vp9": ("a.webm", "-c:v", "libvpx-vp9", "-b:v", 0, "-crf", 8, "-lag-in-frames", 8),
    "av1": ("a.mkv", "-c:v", "libaom-av1", "-cpu-used", 8, "-crf", 8, "-lag-in-frames", 4),
    "gif": ("a.gif",),
    "apng": ("a.apng", "-c:v", "apng"),
    "mpeg4-avi": ("a.avi", "-c:v", "mpeg4", "-q:v", 1, "-bf", 2),
    "mpeg4-packed": ("a.avi", "-c:v", "libxvid", "-q:v", 1, "-bf", 2),
    "mpeg2-ps": ("a.mpg", "-c:v", "mpeg2video", "-q:v", 1, "-bf", 2, "-g", 5),
    "mpeg2-ts": ("a.ts", "-c:v", "mpeg2video", "-q:v", 1, "-bf", 2, "-g", 5),
    "wmv": ("a.wmv", "-c:v", "wmv2", "-q:v", 1),
    "flv": ("a.flv", *SAFE),
    "mjpeg-full-range": ("a.avi", "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", 1),
    "prores": ("a.mov", "-c:v", "prores_ks", "-profile:v", 2),
    "prores-4444": ("a.mov", "-c:v", "prores_ks", "-profile:v", 4, "-pix_fmt", "yuva444p10le"),
    "ffv1-rgb": ("a.mkv", "-c:v", "ffv1", "-pix_fmt", "gbrp"),
    "raw-bgr": ("a.avi", "-c:v", "rawvideo", "-pix_fmt", "bgr24"),
    "png-in-mov": ("a.mov", "-c:v", "png"),
    "y4m": ("a.y4m", "-pix_fmt", "yuv444p"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMATS)
def test_every_frame_of_every_format(
    case, make_video, store, reference_decode, read_numbers, colour_error
):
    name, *options = FORMATS[case]
    path = make_video(name, *options, frames=23)
    stored = store(path)
    assert read_numbers(stored.frames) == list(range(23))
    assert stored.lost == []
    assert colour_error(stored.frames, even(reference_decode(path))) < CODEC_ERROR
    assert (stored.probe.rate, stored.probe.variable_rate) == (25, False)
    assert (stored.probe.upright_width, stored.probe.upright_height) == (64, 48)


@pytest.mark.parametrize("case", FORMATS)
def test_begin_at_any_frame(case, make_video, read_numbers):
    """A run that is taken up again begins in the middle: it must see what the first one saw."""
    name, *options = FORMATS[case]
    footage = probe(make_video(name, *options, frames=23))
    plan, geometry = plan_frames(footage), plan_geometry(footage)

    def planes(first: int) -> list[np.ndarray]:
        return [p.frame.to_ndarray() for p in read_upright(footage, plan, geometry, first=first)]

    whole = planes(0)
    for first in range(1, 23, 3):
        tail = planes(first)
        assert len(tail) == 23 - first
        for index, (seen, truth) in enumerate(zip(tail, whole[first:], strict=True), start=first):
            assert np.array_equal(seen, truth), f"frame {index}, begun at {first}"
