"""What a piece of footage is: one pass over its packets, one decoded frame.

Foreign video keeps its truth in the packets' timestamps, not in the header: frame counts are
missing or wrong, the rate varies, edit lists hide frames. So the packets are read once (no
decoding) and every later decision, which frame goes where, rests on that list of times.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from v2v.errors import MediaNotFound, NotAVideo, NotWritable

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg", ".ts", ".mts"}
    | {".m2ts", ".wmv", ".flv", ".3gp", ".ogv", ".mxf", ".y4m", ".apng"}
)
STANDARD_RATES = tuple(
    Fraction(n, d)
    for n, d in (
        (5, 1), (6, 1), (8, 1), (10, 1), (12, 1), (12500, 1000), (15, 1), (16, 1), (20, 1),
        (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1),
        (60000, 1001), (60, 1), (100, 1), (120, 1), (240, 1),
    )
)  # fmt: skip
DEFAULT_IMAGE_RATE = Fraction(10)


@dataclass(frozen=True)
class Audio:
    """The footage's first audio stream."""

    codec: str
    sample_rate: int
    channels: int
    duration: float  # seconds, 0 where the container does not say


@dataclass(frozen=True)
class Probe:
    """Facts about one piece of footage.

    `pts` are the presentation timestamps of all shown frames, sorted, in units of `time_base`;
    where the container has none they are the frame numbers. Sizes are in pixels: `width` and
    `height` as coded, `upright_width` and `upright_height` as shown, that is after the display
    rotation and with square pixels.
    """

    path: Path
    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    upright_width: int
    upright_height: int
    orientation: tuple[int, int, int, int]  # a, b, c, d of the display matrix, each -1, 0 or 1
    pixel_aspect: Fraction
    rate: Fraction
    variable_rate: bool
    pts: NDArray[np.int64]
    time_base: Fraction
    timestamps_known: bool
    matrix: int  # ITU-T H.273 matrix coefficients, 2 = unspecified
    transfer: int  # H.273 transfer characteristics
    full_range: bool
    audio: Audio | None
    images: tuple[Path, ...] = ()  # for a folder of images, its files in order

    @property
    def frames(self) -> int:
        return len(self.pts)

    @property
    def times(self) -> NDArray[np.float64]:
        """[frames] seconds from the first shown frame."""
        seconds: NDArray[np.float64] = (self.pts - self.pts[0]) * float(self.time_base)
        return seconds

    @property
    def duration(self) -> float:
        """Seconds, the last frame's own duration included."""
        return float(self.times[-1]) + 1 / float(self.rate)

    @property
    def rotation(self) -> int:
        """Degrees clockwise by which the coded picture is turned for display."""
        a, b, _, _ = self.orientation
        return {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[(a, b)]

    @property
    def hdr(self) -> bool:
        return self.transfer in (16, 18)  # SMPTE ST 2084 (PQ), ARIB STD-B67 (HLG)


def probe(path: str | Path) -> Probe:
    """Read what `path` is: a video file, a still image, or a folder of images.

    Raises `MediaNotFound`, `NotAVideo`.
    """
    path = Path(path)
    if not path.exists():
        raise MediaNotFound(f"no such file: {path}", hint=_similar(path))
    if path.is_dir():
        return _probe_images(path)
    if path.stat().st_size == 0:
        raise NotAVideo(f"{path} is empty (0 bytes)", hint="copy or export the footage again")
    try:
        with av.open(str(path)) as container:
            return _probe_container(path, container)
    except PermissionError as error:
        raise NotWritable(f"no permission to read {path}", hint=None) from error
    except av.FFmpegError as error:
        raise NotAVideo(
            f"{path} is not a video that can be read ({_reason(error)})",
            hint="play the file to see whether it is whole; any format that ffmpeg decodes is fine",
        ) from error


def _probe_container(path: Path, container: Any) -> Probe:
    streams = [s for s in container.streams.video if "attached_pic" not in str(s.disposition)]
    if not streams:
        kinds = ", ".join(s.type for s in container.streams) or "none"
        raise NotAVideo(
            f"{path} has no video stream (streams: {kinds})", hint="give a file with pictures in it"
        )
    video = streams[0]
    first = _first_frame(container, video)
    if first is None:
        raise NotAVideo(
            f"no frame of {path} can be decoded (codec {video.codec_context.name})",
            hint="the file is cut off or damaged; export it again",
        )
    container.seek(0)  # `demux` goes on behind the decoded frame otherwise
    pts, known = _timestamps(container, video)
    rate = video.average_rate or video.guessed_rate or Fraction(25)
    time_base = video.time_base if known else 1 / Fraction(rate)
    rate, variable = _rate(pts, time_base, Fraction(rate))
    orientation = _orientation(first)
    pixel_aspect = Fraction(video.sample_aspect_ratio or 1) or Fraction(1)
    shown = (round(first.width * pixel_aspect), first.height)
    if orientation[0] == 0:
        shown = shown[::-1]
    return Probe(
        path=path,
        container=container.format.name,
        codec=video.codec_context.codec.canonical_name,
        pixel_format=first.format.name,
        width=first.width,
        height=first.height,
        upright_width=shown[0],
        upright_height=shown[1],
        orientation=orientation,
        pixel_aspect=pixel_aspect,
        rate=rate,
        variable_rate=variable,
        pts=pts,
        time_base=time_base,
        timestamps_known=known,
        matrix=int(first.colorspace),
        transfer=int(first.color_trc),
        full_range=int(first.color_range) == 2 or first.format.name.startswith("yuvj"),
        audio=_audio(container),
    )


def _first_frame(container: Any, video: Any) -> Any | None:
    for packet in container.demux(video):
        try:
            for frame in packet.decode():
                return frame
        except av.FFmpegError:
            continue  # a broken packet; a later one may be sound
    return None


def _timestamps(container: Any, video: Any) -> tuple[NDArray[np.int64], bool]:
    """The presentation times of all shown frames, and whether the container has them."""
    pts: list[int] = []
    untimed = 0
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError:
            break  # cut off: what came before is what there is
        if packet.size == 0 or packet.is_discard:
            continue  # the flush packet; frames hidden by an edit list
        if packet.pts is None:
            untimed += 1
        else:
            pts.append(packet.pts)
    if untimed or not pts or len(set(pts)) != len(pts):
        return np.arange(max(len(pts) + untimed, 1), dtype=np.int64), False
    return np.sort(np.asarray(pts, dtype=np.int64)), True


def _rate(pts: NDArray[np.int64], time_base: Fraction, average: Fraction) -> tuple[Fraction, bool]:
    """The constant rate of the footage, or the nearest standard one to a varying rate.

    A rate is constant when every frame lies within half a frame (and the container's own
    rounding) of its place on the regular grid.
    """
    if len(pts) < 3:
        return average, False
    times = (pts - pts[0]) * float(time_base)
    measured = (len(pts) - 1) / times[-1]
    for rate in (average, _standard(measured)):
        drift = np.abs(times * float(rate) - np.arange(len(pts)))
        if drift.max() < 0.5:
            return rate, False
    # The shortest common interval keeps most moments; screen recordings have long pauses.
    typical = float(np.median(np.diff(times)))
    return _standard(1 / typical), True


def _standard(rate: float) -> Fraction:
    nearest = min(STANDARD_RATES, key=lambda r: abs(float(r) / rate - 1))
    if abs(float(nearest) / rate - 1) < 0.01:
        return nearest
    return Fraction(rate).limit_denominator(1001)


def _orientation(frame: Any) -> tuple[int, int, int, int]:
    """a, b, c, d of the display matrix, x' = a x + c y, y' = b x + d y, as quarter turns."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return (1, 0, 0, 1)
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(memoryview(side)))
    if abs(a) >= abs(b):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def _audio(container: Any) -> Audio | None:
    if not container.streams.audio:
        return None
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None:
        return None
    seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
    return Audio(context.name, context.sample_rate, context.channels, seconds)


def _probe_images(folder: Path) -> Probe:
    from PIL import Image

    files = image_files(folder)
    if not files:
        raise NotAVideo(
            f"{folder} holds no images and is not a video",
            hint="give a video file, or a folder of frames (PNG, JPEG) named in order",
        )
    try:
        with Image.open(files[0]) as image:
            width, height = image.size
            mode = image.mode
            if image.getexif().get(0x0112, 1) >= 5:  # EXIF orientation, the transposing half
                width, height = height, width
    except OSError as error:
        raise NotAVideo(f"{files[0]} is not an image that can be read", hint=None) from error
    return Probe(
        path=folder, container="images", codec=files[0].suffix[1:].lower(), pixel_format=mode,
        width=width, height=height, upright_width=width, upright_height=height,
        orientation=(1, 0, 0, 1), pixel_aspect=Fraction(1), rate=DEFAULT_IMAGE_RATE,
        variable_rate=False, pts=np.arange(len(files), dtype=np.int64),
        time_base=1 / DEFAULT_IMAGE_RATE, timestamps_known=True, matrix=0, transfer=2,
        full_range=True, audio=None, images=tuple(files),
    )  # fmt: skip


def image_files(folder: Path) -> list[Path]:
    """The images directly inside `folder`, in the order of their names (2 before 10)."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()]
    return sorted(files, key=natural_key)


def hash_files(files: list[Path]) -> str:
    """SHA-256 of the files' names and contents."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def natural_key(path: Path) -> tuple[object, ...]:
    parts = re.split(r"(\d+)", path.name.lower())
    return tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts)


def _similar(path: Path) -> str | None:
    from difflib import get_close_matches

    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return f"the folder {path.parent} does not exist either"
    near = get_close_matches(path.name, names, n=1)
    return (
        f"did you mean {path.parent / near[0]}?" if near else f"looked in {path.parent.resolve()}"
    )


def _reason(error: Exception) -> str:
    text = str(error).split(":")[0]
    return text.split("]")[-1].strip() or type(error).__name__
