"""Probes footage: one pass over its packets and one decoded frame.

The headers of foreign video are unreliable: frame counts are missing or wrong, the rate varies,
edit lists hide frames. So the packets are read once without decoding, and their timestamps
determine the position of every frame.
"""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress
from dataclasses import dataclass, replace
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
from v2v.video.media import (
    decoder_of,
    has_alpha,
    open_media,
    packets_of,
    picture_stream,
    sound_stream,
)
from v2v.video.timing import (
    ASSUMED_RATE,
    SLIDE_RATE,
    SLOWEST,
    Packets,
    Ticks,
    Timeline,
    believable,
    rate_of,
    standard_rate,
    timeline,
)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg", ".ts", ".mts"}
    | {".m2ts", ".wmv", ".flv", ".3gp", ".ogv", ".mxf", ".y4m", ".apng"}
)
DEFAULT_IMAGE_RATE = Fraction(10)
WIDE_PRIMARIES = (4, 8, 9, 11, 12)  # BT.470 M, film, BT.2020, DCI-P3, Display P3
WIDEST = 65_536  # pixels per side; larger values mean a damaged header
SLIDES = Fraction(1, 600)  # frames per second; a lower rate means a damaged header
TS_DISCONT = 0x200  # libav's flag for formats whose timestamps may be discontinuous
LOOK_AHEAD = 48  # frames decoded to check whether their timestamps are in decoding order
ANIMATED_WEBP = "animated webp"  # container name of our own: libav reads only the first frame
TRANSPARENCY_SAMPLES = 8  # images per folder that are checked for transparent pixels


@dataclass(frozen=True)
class Audio:
    """The footage's first decodable audio stream."""

    codec: str
    sample_rate: int
    channels: int
    duration: float  # seconds, 0 if the container states none
    jumps: tuple[float, ...] = ()  # seconds by which the file's clock jumps: see `Timeline`


@dataclass(frozen=True)
class Probe:
    """Properties of one piece of footage.

    `pts` are the presentation timestamps of all shown frames, strictly increasing, in units of
    `time_base`. If the container has none, they are decoding times or frame numbers, and decoded
    frames are counted instead of matched by timestamp (`timestamps_known` is False). If the
    container stores decoding order (`numbered`), packet numbers identify the frames. Sizes are in
    pixels: `width` and `height` as coded, `upright_width` and `upright_height` as shown, that is
    after the display rotation and with square pixels.
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
    images: tuple[Path, ...] = ()  # the files in order, for an image or a folder of images
    stamps: Ticks | None = None  # [packets] repaired times: see `Timeline`
    numbered: bool = False
    primaries: int = 2  # H.273 colour primaries
    interlaced: bool = False
    notes: tuple[str, ...] = ()  # repairs and decisions, for the user

    @property
    def frames(self) -> int:
        return len(self.pts)

    @property
    def times(self) -> NDArray[np.float64]:
        """[frames] seconds since the first shown frame."""
        seconds: NDArray[np.float64] = (self.pts - self.pts[0]) * float(self.time_base)
        return seconds

    @property
    def duration(self) -> float:
        """Seconds, including the duration of the last frame."""
        return float(self.times[-1]) + 1 / float(self.rate)

    @property
    def rotation(self) -> int:
        """Clockwise display rotation of the coded frames in degrees."""
        a, b, _, _ = self.orientation
        return {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[(a, b)]

    @property
    def hdr(self) -> bool:
        return self.transfer in (16, 18)  # SMPTE ST 2084 (PQ), ARIB STD-B67 (HLG)

    @property
    def wide_gamut(self) -> bool:
        """Whether its colour primaries are wider than those of standard displays."""
        return self.primaries in WIDE_PRIMARIES


def probe(path: str | Path) -> Probe:
    """Probe a video file, a still image, an animation or a folder of images.

    The content of an image file determines its format: an APNG named .png is an animation.

    Raises `MediaNotFound`, `NotAVideo`, `NotWritable` (no permission to read).
    """
    path = Path(path)
    if not path.exists():
        raise MediaNotFound(f"no such file: {path}", hint=_similar(path))
    if path.is_dir():
        return _probe_images(path, image_files(path))
    if path.is_file() and path.stat().st_size == 0:
        raise NotAVideo(f"{path} is empty (0 bytes)", hint="copy or export the footage again")
    animation = animation_kind(path)
    if animation == "webp":
        return _probe_animated_webp(path)
    if path.suffix.lower() in IMAGE_SUFFIXES and animation is None:
        return _probe_images(path, [path])
    with open_media(path) as container:
        return _probe_container(path, container)


def _probe_container(path: Path, container: Any) -> Probe:
    video = picture_stream(container)
    if video is None:
        kinds = ", ".join(s.type for s in container.streams) or "none"
        raise NotAVideo(
            f"{path} has no decodable video stream (streams: {kinds})",
            hint="give a file with a video stream",
        )
    first = _first_frame(container, video)
    if first is None:
        raise NotAVideo(
            f"no frame of {path} can be decoded (codec {video.codec_context.name})",
            hint="the file is truncated or damaged; export it again",
        )
    notes: list[str] = []
    claimed = video.average_rate or video.guessed_rate
    average = Fraction(claimed) if claimed and believable(claimed) else ASSUMED_RATE
    with open_media(path) as fresh:  # some containers cannot seek back to their start
        times, numbered = _timeline(fresh, average)
    if not numbered and times.known and times.stamps is None and video.codec_context.has_b_frames:
        numbered = _has_decoding_timestamps(path)
    rate, variable, times = _plausible_rate(times, average, claimed, notes)
    orientation = _orientation(first)
    pixel_aspect = Fraction(video.sample_aspect_ratio or 1) or Fraction(1)
    shown = (round(first.width * pixel_aspect), first.height)
    if not 1 <= shown[0] <= WIDEST or not Fraction(1, 16) <= pixel_aspect <= 16:
        notes.append(
            f"pixels {float(pixel_aspect):g} times as wide as high: square pixels are assumed"
        )
        pixel_aspect, shown = Fraction(1), (first.width, first.height)
    if orientation[0] == 0:
        shown = shown[::-1]
    if first.interlaced_frame:
        notes.append("interlaced: each frame is deinterlaced from its own and neighbouring fields")
    found = Probe(
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
        pts=times.pts,
        time_base=times.time_base,
        timestamps_known=times.known and not numbered,
        matrix=0 if first.format.is_rgb or first.format.name == "pal8" else int(first.colorspace),
        transfer=int(first.color_trc),
        full_range=int(first.color_range) == 2 or first.format.name.startswith("yuvj"),
        audio=_audio(container, times.jumps, notes),
        stamps=times.stamps,
        numbered=numbered,
        primaries=int(first.color_primaries),
        interlaced=bool(first.interlaced_frame),
    )
    if found.wide_gamut and not found.hdr:
        notes.append("wide-gamut colours: converted to BT.709")
    if has_alpha(first):
        notes.append("transparent: composited over black")
    return replace(found, notes=(*times.notes, *notes))


def _first_frame(container: Any, video: Any) -> Any | None:
    decoder = decoder_of(video)
    for packet in packets_of(container, video):
        try:
            for frame in decoder.decode(packet):
                return frame
        except av.FFmpegError:
            continue  # a damaged packet; a later one may be intact
    return None


def _timeline(container: Any, average: Fraction) -> tuple[Timeline, bool]:
    """Return the times of all shown frames, and whether they are in decoding order."""
    video, audio = picture_stream(container), sound_stream(container)
    assert video is not None
    # AVI stores only the decoding order: for reordered frames, libav guesses their pts.
    guessed = container.format.name == "avi" and bool(video.codec_context.has_b_frames)
    pts: list[int | None] = []
    dts: list[int | None] = []
    shown: list[bool] = []
    sound: list[float] = []
    for packet in packets_of(container, *([video] if audio is None else [video, audio])):
        if packet.size == 0:
            continue  # the flush packet
        if packet.stream_index != video.index:
            if packet.pts is not None:
                sound.append(float(packet.pts * packet.time_base))
            continue
        pts.append(packet.dts if guessed else packet.pts)
        dts.append(packet.dts)
        shown.append(not packet.is_discard)
    times = timeline(
        Packets(pts, dts, shown, np.array(sound)), Fraction(video.time_base), average,
        stream=bool(container.format.flags & TS_DISCONT),
    )  # fmt: skip
    return times, guessed or (container.format.name == "avi" and not times.known)


def _has_decoding_timestamps(path: Path) -> bool:
    """Whether the decoder returns frames with decreasing times, which are decoding times.

    AVI and old Matroska files, and copies of their streams, store the decoding time of each frame.
    The sorted times are correct; they are assigned to the frames by counting.
    """
    with open_media(path) as container:
        video = picture_stream(container)
        assert video is not None
        decoder, latest, count = decoder_of(video), None, 0
        for packet in packets_of(container, video):
            with suppress(av.FFmpegError):
                for frame in decoder.decode(packet):
                    if frame.pts is not None and latest is not None and frame.pts < latest:
                        return True
                    latest = frame.pts if frame.pts is not None else latest
                    count += 1
            if count >= LOOK_AHEAD:
                return False
    return False


def _plausible_rate(
    times: Timeline, average: Fraction, claimed: Any, notes: list[str]
) -> tuple[Fraction, bool, Timeline]:
    """Return the rate, whether it varies, and the times; implausible ones are replaced."""
    rate, variable = rate_of(times.pts, times.time_base, average)
    if times.known and believable(rate) and (len(times.pts) >= 3 or believable(claimed)):
        return rate, variable, times
    if times.known and len(times.pts) >= 3 and SLIDES < rate < 1:
        return SLIDE_RATE, True, times
    if times.known and len(times.pts) >= 3 or (claimed and not believable(claimed)):
        notes.append(
            f"implausible rate of {float(claimed or rate):.3g} frames per second: "
            f"{ASSUMED_RATE} are assumed"
        )
        times = replace(times, time_base=1 / ASSUMED_RATE, known=False, stamps=None,
                        pts=np.arange(len(times.pts), dtype=np.int64))  # fmt: skip
        return ASSUMED_RATE, False, times
    return rate, variable, times


def _orientation(frame: Any) -> tuple[int, int, int, int]:
    """Return a, b, c, d of the display matrix (x' = a x + c y, y' = b x + d y), each -1, 0 or 1."""
    try:
        side = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data of a type unknown to PyAV, e.g. EXIF in motion JPEG
        quarters = round(-frame.rotation / 90) % 4
        return ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))[quarters]
    if side is None:
        return (1, 0, 0, 1)
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(memoryview(side)))
    if abs(a) >= abs(b):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def _audio(container: Any, jumps: tuple[float, ...], notes: list[str]) -> Audio | None:
    stream = sound_stream(container)
    skipped = [s for s in container.streams.audio if s.codec_context is None]
    if skipped and (stream is None or skipped[0].index < stream.index):
        note = "an audio track with an unknown codec is skipped"
        notes.append(f"{note}: the next one is used" if stream is not None else note)
    if stream is None:
        return None
    context = stream.codec_context
    seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
    return Audio(
        context.codec.canonical_name, context.sample_rate, context.channels, seconds, jumps
    )


def _probe_images(path: Path, files: list[Path]) -> Probe:
    if not files:
        raise NotAVideo(
            f"{path} contains no images and is not a video",
            hint="give a video file, or a folder of frames (PNG, JPEG) whose names sort in order",
        )
    if path.is_dir() and animation_kind(files[0]):
        raise NotAVideo(
            f"{path} contains animations, such as {files[0].name}, not the frames of one clip",
            hint="give one animation file instead of the folder",
        )
    first, failed = None, None
    for file in files:  # unreadable frames are lost; the first readable one describes the clip
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
        raise NotAVideo(f"{path} is truncated", hint="export the animation again")
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
    """Return the rate behind rounded milliseconds: 41, 42, 42 mean 24 frames per second."""
    measured = Fraction(1000 * (len(pts) - 1), int(pts[-1]))
    if measured < SLOWEST:
        return SLIDE_RATE, True
    if len(set(durations)) == 1:
        return Fraction(1000, durations[0]), False
    return rate_of(pts, Fraction(1, 1000), standard_rate(float(measured)))


def _transparency(files: list[Path]) -> tuple[str, ...]:
    for file in files:
        with suppress(V2VError):
            if has_transparency(file):
                return ("transparent: composited over black",)
    return ()


def white_of(probe: Probe) -> float:
    """Return the value of white in the footage's images, see `float_white`."""
    return float_white(probe.images) if probe.pixel_format == "F" else 1.0


def image_files(folder: Path) -> list[Path]:
    """Return the images directly inside `folder`, sorted by name (2 before 10)."""
    return visible_files(folder, IMAGE_SUFFIXES)


def hash_files(files: list[Path]) -> str:
    """Return the SHA-256 of the files' names and contents.

    Raises `NotWritable` (no permission to read).
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except PermissionError as error:
            raise NotWritable(f"no permission to read {path}", hint=None) from error
        # Names may be invalid UTF-8; surrogateescape preserves their bytes.
        digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0" + content)
    return digest.hexdigest()


def _similar(path: Path) -> str | None:
    from difflib import get_close_matches

    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return f"the folder {path.parent} does not exist either"
    similar = get_close_matches(path.name, names, n=1)
    return (
        f"did you mean {path.parent / similar[0]}?"
        if similar
        else f"looked in {path.parent.resolve()}"
    )
