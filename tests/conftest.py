"""Test footage encoded by the ffmpeg binary, with its ground truth.

Each frame shows its number as a row of eight black and white blocks in the upper half, so a test
can identify the frame after lossy coding. The lower half is a smooth gradient of strong colours
that a wrong colour matrix or range shifts visibly.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # RGB [T, H, W, 3]
BITS = 8


def _numbered_frames(count: int, *, width: int = 64, height: int = 48, first: int = 0) -> Frames:
    assert first + count <= 1 << BITS
    across, down = np.linspace(0, 1, width)[None], np.linspace(0, 1, height)[:, None]
    frames = np.empty((count, height, width, 3), np.uint8)
    for frame, number in zip(frames, range(first, first + count), strict=True):
        phase = 0.5 + 0.5 * np.cos(number / 5)
        frame[..., 0] = 30 + 200 * across
        frame[..., 1] = 220 - 180 * down
        frame[..., 2] = 40 + 180 * phase * (1 - across)
        for bit in range(BITS):
            left, right = bit * width // BITS, (bit + 1) * width // BITS
            frame[: height // 2, left:right] = 235 if number >> bit & 1 else 20
    return frames


def _read_numbers(frames: Frames) -> list[int]:
    numbers = []
    for index, frame in enumerate(frames):
        height, width = frame.shape[:2]
        row = frame[height // 8 : 3 * height // 8].mean(axis=(0, 2))
        middles = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
        light = np.stack([row[middles - 1], row[middles]]).mean(axis=0)
        assert (np.abs(light - 128) > 50).all(), (
            f"frame {index} has no readable number: {light.round()}"
        )
        numbers.append(int(((light > 128) << np.arange(BITS)).sum()))
    return numbers


def _colour_error(decoded: Frames, truth: Frames) -> float:
    assert decoded.shape == truth.shape, (decoded.shape, truth.shape)
    rows = slice(decoded.shape[1] * 5 // 8, None)
    return float(np.abs(decoded[:, rows].astype(int) - truth[:, rows].astype(int)).mean())


@pytest.fixture(scope="session")
def numbered_frames() -> Callable[..., Frames]:
    """`numbered_frames(count, width=64, height=48, first=0)`: frames that show their number."""
    return _numbered_frames


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[Frames], list[int]]:
    """`read_numbers(frames)`: the number in each frame; fails if one is unreadable."""
    return _read_numbers


@pytest.fixture(scope="session")
def colour_error() -> Callable[[Frames, Frames], float]:
    """`colour_error(decoded, truth)`: mean absolute difference (0 to 255) on the lower half."""
    return _colour_error


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    """The path of an ffmpeg binary that is independent of PyAV's libraries."""
    return str(pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe())


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real footage."""
    folder = os.environ.get("V2V_TEST_CLIPS")
    if not folder:
        pytest.skip("real footage: set V2V_TEST_CLIPS to its folder")
    if not Path(folder).is_dir():
        pytest.fail(f"V2V_TEST_CLIPS={folder} is not a folder")
    return Path(folder)


RunFfmpeg = Callable[..., bytes]


@pytest.fixture(scope="session")
def run_ffmpeg(ffmpeg: str) -> RunFfmpeg:
    """`run_ffmpeg(*arguments, stdin=b"")`: ffmpeg's stdout; fails if ffmpeg fails."""

    def run(*arguments: object, stdin: bytes = b"", check: bool = True) -> bytes:
        command = [ffmpeg, "-v", "error", "-y", *map(str, arguments)]
        result = subprocess.run(command, input=stdin, capture_output=True, timeout=120)
        assert not check or result.returncode == 0, result.stderr.decode(errors="replace")[-2000:]
        return result.stdout

    return run


MakeVideo = Callable[..., Path]


@pytest.fixture
def make_video(run_ffmpeg: RunFfmpeg, tmp_path: Path) -> MakeVideo:
    """`make_video("a.mkv", "-c:v", "libx264", ...)`: a small video in `tmp_path`.

    Args (of the returned function):
        name, *options: the file's name and ffmpeg's output options.
        frames: the count of numbered frames, RGB frames, or a lavfi source.
        rate, size: the frame rate and the frame size (width, height).
        inputs: further inputs, e.g. ("-f", "lavfi", "-i", "sine=frequency=440:duration=1").
        before: options of the video input, e.g. ("-itsoffset", "0.5").
    """

    def make(
        name: str,
        *options: object,
        frames: int | str | Frames = 12,
        rate: Fraction | int = 25,
        size: tuple[int, int] = (64, 48),
        inputs: Sequence[object] = (),
        before: Sequence[object] = (),
    ) -> Path:
        path = tmp_path / name
        if isinstance(frames, str):
            run_ffmpeg(*before, "-f", "lavfi", "-i", frames, *inputs, *options, path)
            return path
        if isinstance(frames, int):
            frames = _numbered_frames(frames, width=size[0], height=size[1])
        shape = f"{frames.shape[2]}x{frames.shape[1]}"
        raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", shape, "-r", rate, "-i", "-")
        run_ffmpeg(*before, *raw, *inputs, *options, path, stdin=frames.tobytes())
        return path

    return make


ReferenceDecode = Callable[..., Frames]


@pytest.fixture(scope="session")
def reference_decode(run_ffmpeg: RunFfmpeg) -> ReferenceDecode:
    """`reference_decode(path)`: the ffmpeg binary's frames, RGB uint8 [T, H, W, 3].

    They are rotated upright, follow edit lists, and contain every frame once.

    Args (of the returned function):
        rate: resample to this constant rate with ffmpeg's `fps` filter.
        size: scale to (width, height).
        before: input options.
    """

    def decode(
        path: Path,
        *,
        rate: Fraction | None = None,
        size: tuple[int, int] | None = None,
        before: Sequence[object] = (),
    ) -> Frames:
        filters = [f"fps={rate}"] if rate else []
        if size:
            filters.append(f"scale={size[0]}:{size[1]}:flags=bicubic")
        chain = ["-vf", ",".join(filters)] if filters else []
        # PPM stores the size of each frame; raw video does not.
        output = ("-map", "0:v:0", *chain, "-fps_mode", "passthrough", "-f", "image2pipe")
        data = run_ffmpeg(*before, "-i", path, *output, "-pix_fmt", "rgb24", "-c:v", "ppm", "-")
        frames, offset = [], 0
        while offset < len(data):
            magic, shape, max_value = (line := data[offset : offset + 40]).split(b"\n", 3)[:3]
            assert (magic, max_value) == (b"P6", b"255"), line
            width, height = map(int, shape.split())
            offset += len(magic) + len(shape) + len(max_value) + 3
            pixels = np.frombuffer(data, np.uint8, 3 * width * height, offset)
            frames.append(pixels.reshape(height, width, 3))
            offset += pixels.size
        return np.stack(frames)

    return decode
