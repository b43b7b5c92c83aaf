"""What a piece of footage is: one pass over its packets, one decoded frame.

Foreign video keeps its truth in the packets' timestamps, not in the header: frame counts are
missing or wrong, the rate varies, edit lists hide frames. So the packets are read once (no
decoding) and every later decision, which frame goes where, rests on that list of times.
"""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from v2v.errors import MediaNotFound, NotAVideo, NotWritable, V2VError
from v2v.images import (
    animation_durations,
    animation_kind,
    float_white,
    has_transparency,
    inspect_image,
)
from v2v.listing import visible_files

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
ANIMATED_WEBP = "animated webp"  # the container's name: libav reads only the first frame of it
TRANSPARENCY_SAMPLES = 8  # images of a folder that are looked through for transparent pixels


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
    where the container has none they are decoding times or frame numbers, and decoded frames are
    counted, not matched (`timestamps_known` is False). Sizes are in pixels: `width` and
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
    images: tuple[Path, ...] = ()  # for an image or a folder of images, the files in order
    notes: tuple[str, ...] = ()  # what reading the footage changes about it, for the user

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
    """Read what `path` is: a video file, a still image, an animation, or a folder of images.

    Of images the content decides: an APNG named .png is an animation.

    Raises `MediaNotFound`, `NotAVideo`, `NotWritable` (no permission to read).
    """
    path = Path(path)
    if not path.exists():
        raise MediaNotFound(f"no such file: {path}", hint=_similar(path))
    if path.is_dir():
        return _probe_images(path, image_files(path))
    if path.stat().st_size == 0:
        raise NotAVideo(f"{path} is empty (0 bytes)", hint="copy or export the footage again")
    animation = animation_kind(path)
    if animation == "webp":
        return _probe_animated_webp(path)
    if path.suffix.lower() in IMAGE_SUFFIXES and animation is None:
        return _probe_images(path, [path])
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
    video = picture_stream(container)
    if video is None:
        kinds = ", ".join(s.type for s in container.streams) or "none"
        raise NotAVideo(
            f"{path} has no video stream (streams: {kinds})", hint="give a file with pictures in it"
        )
    first = _first_frame(container, video)
    if first is None:
        raise NotAVideo(
            f"no frame of {path} can be decoded (codec {video.codec_context.name})",
            hint="the file is cut off or damaged; export it again",
        )
    average = Fraction(video.average_rate or video.guessed_rate or 25)
    with av.open(str(path)) as anew:  # not every container finds its beginning again by seeking
        pts, time_base, known = _timestamps(anew, average)
    rate, variable = _rate(pts, time_base, average)
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
        matrix=0 if first.format.is_rgb or first.format.name == "pal8" else int(first.colorspace),
        transfer=int(first.color_trc),
        full_range=int(first.color_range) == 2 or first.format.name.startswith("yuvj"),
        audio=_audio(container),
    )


def picture_stream(container: Any) -> Any | None:
    """The container's first video stream that is not cover art."""
    cover = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & cover), None)


def _first_frame(container: Any, video: Any) -> Any | None:
    for packet in container.demux(video):
        try:
            for frame in packet.decode():
                return frame
        except av.FFmpegError:
            continue  # a broken packet; a later one may be sound
    return None


def _timestamps(container: Any, average: Fraction) -> tuple[NDArray[np.int64], Fraction, bool]:
    """The times of all shown frames, their unit, and whether decoded frames carry these times."""
    video: Any = picture_stream(container)
    # AVI stores the order of decoding only: where frames are reordered, libav guesses their pts.
    guessed = container.format.name == "avi" and video.codec_context.has_b_frames
    times: list[int] = []
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
        time = packet.dts if guessed else packet.pts
        if time is None:
            untimed += 1
        else:
            times.append(time)
    if untimed or not times or len(set(times)) != len(times):
        return np.arange(max(len(times) + untimed, 1), dtype=np.int64), 1 / average, False
    return np.sort(np.asarray(times, dtype=np.int64)), video.time_base, not guessed


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
    # The shortest common interval keeps most moments; screen recordings have long pauses. The mean
    # around the median undoes the rounding of clocks that tick in milliseconds.
    steps = np.sort(np.diff(times))
    typical = steps[(len(steps) - 1) // 2]
    common = steps[np.abs(steps - typical) <= max(typical / 4, float(time_base))]
    return _standard(1 / float(common.mean())), True


def _standard(rate: float) -> Fraction:
    nearest = min(STANDARD_RATES, key=lambda r: abs(float(r) / rate - 1))
    if abs(float(nearest) / rate - 1) < 0.01:
        return nearest
    return Fraction(rate).limit_denominator(1001)


def _orientation(frame: Any) -> tuple[int, int, int, int]:
    """a, b, c, d of the display matrix, x' = a x + c y, y' = b x + d y, as quarter turns."""
    try:
        side = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # other side data that PyAV has no name for, e.g. EXIF in motion JPEG
        quarters = round(-frame.rotation / 90) % 4
        return ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))[quarters]
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
    return Audio(context.codec.canonical_name, context.sample_rate, context.channels, seconds)


def _probe_images(path: Path, files: list[Path]) -> Probe:
    if not files:
        raise NotAVideo(
            f"{path} holds no images and is not a video",
            hint="give a video file, or a folder of frames (PNG, JPEG) named in order",
        )
    if path.is_dir() and animation_kind(files[0]):
        raise NotAVideo(
            f"{path} holds animations, such as {files[0].name}, not the frames of one clip",
            hint="give the animations themselves",
        )
    first, failed = None, None
    for file in files:  # frames that cannot be read are lost; any other says what the clip is
        try:
            first = inspect_image(file)
            break
        except V2VError as error:
            failed = failed or error
    if first is None:
        assert failed is not None
        raise failed
    step = -(-len(files) // TRANSPARENCY_SAMPLES)
    return Probe(
        path=path, container="images", codec=files[0].suffix[1:].lower(), pixel_format=first.mode,
        width=first.width, height=first.height, upright_width=first.width,
        upright_height=first.height, orientation=(1, 0, 0, 1), pixel_aspect=Fraction(1),
        rate=DEFAULT_IMAGE_RATE, variable_rate=False, pts=np.arange(len(files), dtype=np.int64),
        time_base=1 / DEFAULT_IMAGE_RATE, timestamps_known=True, matrix=0, transfer=2,
        full_range=True, audio=None, images=tuple(files), notes=_transparency(files[::step]),
    )  # fmt: skip


def _probe_animated_webp(path: Path) -> Probe:
    image = inspect_image(path)
    durations = animation_durations(path)
    if len(durations) < 2:
        raise NotAVideo(f"{path} is cut off", hint="export the animation again")
    pts = np.cumsum([0, *durations[:-1]], dtype=np.int64)
    rate, variable = _animation_rate(pts, durations)
    return Probe(
        path=path, container=ANIMATED_WEBP, codec="webp", pixel_format=image.mode,
        width=image.width, height=image.height, upright_width=image.width,
        upright_height=image.height, orientation=(1, 0, 0, 1), pixel_aspect=Fraction(1), rate=rate,
        variable_rate=variable, pts=pts, time_base=Fraction(1, 1000), timestamps_known=True,
        matrix=0, transfer=2, full_range=True, audio=None, notes=_transparency([path]),
    )  # fmt: skip


def _animation_rate(pts: NDArray[np.int64], durations: list[int]) -> tuple[Fraction, bool]:
    """The rate that whole milliseconds stand for: 41, 42, 42 are 24 frames a second."""
    measured = Fraction(1000 * (len(pts) - 1), int(pts[-1]))
    if measured < Fraction(1, 10):  # slides
        return Fraction(1), True
    if len(set(durations)) == 1:
        return Fraction(1000, durations[0]), False
    rate, variable = _rate(pts, Fraction(1, 1000), _standard(float(measured)))
    if variable:
        exact, varies = _rate(pts, Fraction(1, 1000), measured.limit_denominator(1001))
        if not varies:
            return exact, False
    return rate, variable


def _transparency(files: list[Path]) -> tuple[str, ...]:
    for file in files:
        with suppress(V2VError):
            if has_transparency(file):
                return ("it has transparent parts: they are composed over black",)
    return ()


def white_of(probe: Probe) -> float:
    """The value of white in the footage's images, see `float_white`."""
    return float_white(probe.images) if probe.pixel_format == "F" else 1.0


def image_files(folder: Path) -> list[Path]:
    """The images directly inside `folder`, in the order of their names (2 before 10)."""
    return visible_files(folder, IMAGE_SUFFIXES)


def hash_files(files: list[Path]) -> str:
    """SHA-256 of the files' names and contents. Raises `NotWritable` (no permission to read)."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except PermissionError as error:
            raise NotWritable(f"no permission to read {path}", hint=None) from error
        # Names need not be valid text: the bytes of those that are not are kept.
        digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0" + content)
    return digest.hexdigest()


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
