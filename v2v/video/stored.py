"""Reads video that v2v wrote: constant rate, so frames are found by number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from v2v.errors import MediaError, StoreDamaged
from v2v.video.media import open_media

Array = NDArray[Any]


class PixelReader:
    """Converts decoded frames to arrays, `rgb24` as [H, W, 3]; reuses the costly converter."""

    def __init__(self, pixel_format: str = "rgb24") -> None:
        self.pixel_format = pixel_format
        self.convert = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Array:
        return self.convert.reformat(frame, format=self.pixel_format).to_ndarray()


STORED = {".mp4": "mp4", ".mkv": "matroska"}  # containers of the files that v2v writes
_UNREADABLE = "restore the file, or rebuild it with --overwrite"


def read_stored(
    path: Path, *, first: int = 0, count: int | None = None, pixel_format: str = "rgb24"
) -> Iterator[Array]:
    """Yield `count` frames (default: all) from `first` of a file that `v2v` wrote, in order.

    Frames lie at multiples of 1 / rate, so seeking is exact. Raises `StoreDamaged` if the file
    cannot be read or has fewer frames.
    """
    pixels = PixelReader(pixel_format)
    found = 0
    for frame in islice(stored_frames(path, first=first), count):
        found += 1
        yield pixels(frame)
    if count is not None and found < count:
        raise StoreDamaged(
            f"{path} ends after frame {first + found}: expected frames {first} to {first + count}",
            hint=_UNREADABLE,
        )


def read_range(path: Path, start: int, stop: int, *, pixel_format: str = "rgb24") -> Array:
    """Read frames `start` to `stop` (exclusive) of a file that `v2v` wrote, stacked along time.

    Raises `StoreDamaged` if it cannot be read, has fewer frames, or its frame size changes.
    """
    frames = list(read_stored(path, first=start, count=stop - start, pixel_format=pixel_format))
    if any(frame.shape != frames[0].shape for frame in frames):
        raise StoreDamaged(f"{path} has frames of different sizes", hint=_UNREADABLE)
    return np.stack(frames)


def stored_frames(path: Path, *, first: int = 0) -> Iterator[av.VideoFrame]:
    """Yield all frames from `first` like `read_stored`, in the file's pixel format."""
    with _open_stored(path) as (container, video):
        video.thread_type = "AUTO"
        rate, clock = _clock(path, video)
        if first:
            # Add half a frame, as some containers round times (Matroska: to milliseconds).
            container.seek(int((first + Fraction(1, 2)) / rate / clock), stream=video)
        for frame in container.decode(video):
            if round((frame.pts or 0) * clock * rate) >= first:
                yield frame


def check_stored(path: Path, *, width: int, height: int, frames: int) -> None:
    """Check the header of a file that `v2v` wrote against its record, without decoding.

    Raises `StoreDamaged` if the file is not a video, or has another size or length.
    """
    with _open_stored(path) as (container, video):
        rate, clock = _clock(path, video)
        found = video.frames
        if not found:  # Matroska states the duration instead
            seconds = video.duration * clock if video.duration else container.duration or 0
            seconds = seconds if video.duration else Fraction(int(seconds), av.time_base)
            found = round(seconds * rate)
        if (video.width, video.height, found) != (width, height, frames):
            raise StoreDamaged(
                f"{path} does not match its record: it has {found} frames of"
                f" {video.width}x{video.height} instead of {frames} of {width}x{height}",
                hint=_UNREADABLE,
            )


def _clock(path: Path, video: Any) -> tuple[Fraction, Fraction]:
    """Return frames per second and seconds per tick."""
    if not video.average_rate or not video.time_base:
        raise StoreDamaged(f"{path} has no frame rate", hint=_UNREADABLE)
    return video.average_rate, video.time_base


@contextmanager
def _open_stored(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a local video file that `v2v` wrote: its container and video stream.

    Raises `StoreDamaged` for all errors, also those of decoding inside the `with` block.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a file" if path.is_symlink() else "missing"
        raise StoreDamaged(f"{path} is {what}, expected a video", hint=_UNREADABLE)
    try:
        with open_media(path, format=STORED.get(path.suffix)) as container:
            if not container.streams.video:
                raise StoreDamaged(f"{path} has no video stream", hint=_UNREADABLE)
            yield container, container.streams.video[0]
    except (MediaError, av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StoreDamaged(f"{path} cannot be read: {reason}", hint=_UNREADABLE) from error
