"""Reads footage as upright frames at a constant rate, and writes video.

Only PyAV reads foreign footage: it respects timestamps, display rotation, edit lists and pixel
aspect ratios. Stores contain H.264 (frames, previews) and FFV1 (label maps, flow).
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, cast

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from v2v.data.media import (
    create_media,
    decoder_of,
    has_alpha,
    open_media,
    packets_of,
    picture_stream,
    sound_stream,
)
from v2v.data.probe import ANIMATED_WEBP, Audio, Probe, white_of
from v2v.data.timing import FASTEST, SLOWEST, ContinuousClock
from v2v.errors import (
    BrokenStream,
    MediaError,
    NotAVideo,
    NotWritable,
    StoreDamaged,
    UsageError,
    writing,
)
from v2v.images import read_animation, read_picture

BT709, SMPTE170M = 1, 6  # ITU-T H.273 matrix coefficients
MOST_FRAMES = 1 << 22  # per clip: 39 hours at 30 frames per second
# Decoder threads, by frames and by slices. How libav decodes damaged data depends on their number.
# By default it uses one per core, so results would differ between machines.
FRAME_THREADS, SLICE_THREADS = 4, 2
GOP = 8  # so a random window decodes at most 7 unneeded frames

Array = NDArray[Any]


# ---------------------------------------------------------------- frame plan


@dataclass(frozen=True)
class FramePlan:
    """Maps each frame of the constant-rate clip to a source frame.

    `sources[k]` is the ordinal (in presentation order) of the source frame shown at
    `start + k / rate` seconds. Ordinals never decrease; they repeat where the footage pauses.
    """

    rate: Fraction
    start: float
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sources)


def plan_frames(
    probe: Probe,
    *,
    fps: Fraction | None = None,
    start: float | None = None,
    end: float | None = None,
) -> FramePlan:
    """Resample the footage's frames to a constant rate.

    At the footage's own constant rate, every frame is kept exactly once. If the rate varies or
    changes, each frame moves to the nearest position and is repeated until the next one, as in
    ffmpeg's `fps` filter.

    Args:
        fps: frames per second of the clip; by default the footage's own.
        start, end: the range to keep, in seconds from the first frame, end excluded.
    """
    rate = probe.rate if fps is None else fps
    if fps is not None and not SLOWEST <= fps <= FASTEST:
        raise UsageError(
            f"--fps {float(fps):g} is out of range", hint="give 0.1 to 1000 frames per second"
        )
    if probe.images:
        # Images have no rate of their own: use this one, without dropping or repeating any.
        probe = replace(probe, rate=rate, time_base=1 / rate)
    begin = 0.0 if start is None else start
    stop = probe.duration if end is None else min(end, probe.duration)
    if begin < 0 or (end is not None and end <= begin):
        raise UsageError(
            f"the range from {begin:g} s to {stop:g} s is empty",
            hint="--start must be at least 0 and --end greater than --start (seconds)",
        )
    if begin >= probe.duration:
        raise UsageError(
            f"--start {begin:g} is beyond the end of {probe.path} ({probe.duration:.2f} s)",
            hint=f"give a --start below {probe.duration:.2f}",
        )
    times = probe.times
    kept = np.flatnonzero((times >= begin - 1e-6) & (times < stop - 1e-6))
    if not len(kept):
        raise UsageError(
            f"{probe.path} has no frame between {begin:g} s and {stop:g} s",
            hint="widen the range of --start and --end",
        )
    if not probe.variable_rate and rate == probe.rate:
        return FramePlan(rate, float(times[kept[0]]), kept)
    # Integer arithmetic: at half-multiple rates, frames lie exactly between two positions.
    positions_per_tick = probe.time_base * rate
    ticks, denominator = (probe.pts[kept] - probe.pts[kept[0]]), positions_per_tick.denominator
    positions = (2 * positions_per_tick.numerator * ticks + denominator) // (2 * denominator)
    count = max(int(np.floor((stop - times[kept[0]]) * float(rate) + 0.5)), 1)
    if count > MOST_FRAMES:
        raise UsageError(
            f"{probe.path} would have {count:,} frames: {stop - times[kept[0]]:,.0f} s at"
            f" {float(rate):g} frames per second",
            hint=f"the limit is {MOST_FRAMES:,}: give a range with --start and --end, or a lower"
            " --fps",
        )
    newest = np.searchsorted(positions, np.arange(count), side="right") - 1
    return FramePlan(rate, float(times[kept[0]]), kept[np.maximum(newest, 0)])


# ---------------------------------------------------------------- crop and size


@dataclass(frozen=True)
class Geometry:
    """Crop box and size that map an upright source frame to the stored frame.

    `box` is x, y, width, height in upright source pixels; `width` and `height` are the size of the
    stored frame. Imported label maps use the same box and size.
    """

    box: tuple[int, int, int, int]
    width: int
    height: int

    @property
    def scale(self) -> tuple[float, float]:
        return self.width / self.box[2], self.height / self.box[3]


def plan_geometry(
    probe: Probe,
    *,
    size: int | tuple[int, int] | None = None,
    box: tuple[int, int, int, int] | None = None,
) -> Geometry:
    """Choose the crop and the stored size; both are even, as required by 4:2:0 video.

    Args:
        size: None keeps the size; a number is the shorter side; (width, height) is exact: the
            frame is scaled to cover it and centre-cropped.
        box: x, y, width, height in upright source pixels; None is the whole frame.

    Raises `UsageError` for a size that is odd or out of range, and if fewer than 16x16 source
    pixels would remain.
    """
    x, y, w, h = box or (0, 0, probe.upright_width, probe.upright_height)
    if w < 16 or h < 16:
        raise UsageError(f"{probe.path} is too small: {w}x{h} pixels", hint="the minimum is 16x16")
    x, y, w, h = x - x % 2, y - y % 2, w - w % 2, h - h % 2
    if size is None:
        return Geometry((x, y, w, h), w, h)
    if isinstance(size, int):
        if not 16 <= size <= 8192:
            raise UsageError(f"--size {size} is out of range", hint="give 16 to 8192")
        factor = size / min(w, h)
        return Geometry((x, y, w, h), _even(w * factor), _even(h * factor))
    width, height = size
    if width % 2 or height % 2 or min(size) < 16 or max(size) > 8192:
        raise UsageError(
            f"--size {width}x{height} is invalid", hint="give even numbers from 16 to 8192"
        )
    cover = max(width / w, height / h)
    inner_w, inner_h = min(_even(width / cover), w), min(_even(height / cover), h)
    if inner_w < 16 or inner_h < 16:
        raise UsageError(
            f"--size {width}x{height} has another aspect ratio than {w}x{h}: only"
            f" {inner_w}x{inner_h} pixels would remain",
            hint="choose a size closer to that aspect ratio; the minimum is 16x16 pixels",
        )
    x += (w - inner_w) // 4 * 2
    y += (h - inner_h) // 4 * 2
    return Geometry((x, y, inner_w, inner_h), width, height)


def _even(value: float) -> int:
    return max(round(value / 2) * 2, 2)


# ---------------------------------------------------------------- reading foreign footage


Numbered = tuple[int, av.VideoFrame]  # (ordinal in presentation order, frame)


@dataclass(frozen=True)
class PlacedFrame:
    """A frame and its index in the clip; `lost` if the footage has no intact frame for it."""

    index: int
    frame: av.VideoFrame
    lost: bool


def read_upright(
    probe: Probe, plan: FramePlan, geometry: Geometry, *, first: int = 0
) -> Iterator[PlacedFrame]:
    """Decode the footage once, in order, from index `first`: yuv420p, upright, final size.

    A frame that cannot be decoded is replaced by the previous one, to keep audio and video in
    sync, and is marked as lost.

    Raises `BrokenStream` if none of the planned frames can be decoded.
    """
    wanted = plan.sources[first:]
    if not len(wanted):
        return
    to_upright = _UprightFilter(probe, geometry)
    # Start one frame earlier, to deinterlace the first.
    frames = _progressive(_decode(probe, max(int(wanted[0]) - 1, 0)))
    current: av.VideoFrame | None = None
    current_ordinal = -1
    ahead: tuple[int, av.VideoFrame] | None = next(frames, None)
    for index, ordinal in enumerate(wanted, start=first):
        while ahead is not None and ahead[0] < ordinal:
            ahead = next(frames, None)  # dropped by a lower rate
        if ahead is not None and ahead[0] == ordinal:
            with suppress(av.FFmpegError):  # too damaged for the filters: lost as well
                current, current_ordinal = to_upright(ahead[1]), ordinal
            ahead = next(frames, None)
        if current is None:
            if ahead is None:
                raise BrokenStream(
                    f"no frame of {probe.path} can be decoded from frame {ordinal} on",
                    hint="the file is damaged or truncated; export it again, or use --end",
                )
            try:
                current = to_upright(ahead[1])  # the start is lost: repeat the first intact frame
            except av.FFmpegError as error:
                raise BrokenStream(
                    f"frame {ahead[0]} of {probe.path} cannot be converted ({error.strerror})",
                    hint="the file is damaged; export it again",
                ) from error
        yield PlacedFrame(index, current, lost=current_ordinal != ordinal)


def _progressive(frames: Iterator[Numbered]) -> Iterator[Numbered]:
    """Deinterlace frames, each from its own and its neighbours' fields.

    yadif also needs the next frame, so its output is delayed by one. Progressive footage passes
    through unchanged.
    """
    previous: Numbered | None = None
    for number, frame in frames:
        if not frame.interlaced_frame:
            previous = (number, frame)
            yield number, frame
            continue
        yield from _deinterlaced(chain([(number, frame)], frames), previous)
        return


def _deinterlaced(frames: Iterator[Numbered], previous: Numbered | None) -> Iterator[Numbered]:
    """Filter `frames` with yadif, which keeps progressive ones among them unchanged."""
    graph: Graph | None = None
    key: tuple[Any, ...] = ()
    pending: list[int] = []
    if previous is not None:  # already returned, but the first frame needs it
        frames = chain([previous], frames)

    def finished(graph: Graph, *, end: bool = False) -> Iterator[Numbered]:
        if end:
            graph.vpush(None)
        while True:
            try:
                deinterlaced = graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            number = pending.pop(0)
            if previous is None or number != previous[0]:
                yield number, deinterlaced

    for number, frame in frames:
        shape = (frame.format.name, frame.width, frame.height)
        if graph is None or shape != key:
            if graph is not None:
                yield from finished(graph, end=True)
            graph, key = _filters(frame, [("yadif", "deint=interlaced")]), shape
        frame.pts = number  # only the filter reads pts; they must increase
        pending.append(number)
        graph.vpush(frame)
        yield from finished(graph)
    if graph is not None:
        yield from finished(graph, end=True)


def _decode(probe: Probe, first: int) -> Iterator[Numbered]:
    """Yield the intact frames as (ordinal, frame) in presentation order, from `first`."""
    if probe.images:
        yield from _decode_images(probe, first)
        return
    if probe.container == ANIMATED_WEBP:
        yield from _decode_animation(probe, first)
        return
    following = first
    with suppress(av.FFmpegError):  # frame threads do not recover from a damaged frame
        for ordinal, frame in _decode_from(probe, first, skip_damaged=False):
            if ordinal > following == first > 0:
                break  # the seek landed too late: the container's index is wrong
            yield ordinal, frame
            following = ordinal + 1
        else:
            if following > first:
                return
    # Continue without frame threads, from a frame known to be intact to detect a late seek.
    for entry in (following - 1, 0) if following > first else (0,):
        frames = _decode_from(probe, entry, skip_damaged=True)
        found = next(frames, None)
        if entry and (found is None or found[0] != entry):
            continue
        for ordinal, frame in chain([found] if found else [], frames):
            if ordinal >= following:
                yield ordinal, frame
        return


def _decode_from(probe: Probe, first: int, *, skip_damaged: bool) -> Iterator[Numbered]:
    """Yield (ordinal, frame) from `first`; damaged frames raise, or are skipped."""
    with open_media(probe.path) as container:
        video = picture_stream(container)
        if video is None:
            raise BrokenStream(
                f"{probe.path} has no video stream any more",
                hint="the file was changed; start again",
            )
        decoder = decoder_of(video)
        decoder.thread_type = "SLICE" if skip_damaged else "AUTO"
        decoder.thread_count = SLICE_THREADS if skip_damaged else FRAME_THREADS
        if probe.codec in ("h264", "hevc"):
            # By default these decoders conceal damaged frames silently.
            decoder.options = {"err_detect": "explode"}
        if first and probe.timestamps_known and probe.stamps is None:
            container.seek(int(probe.pts[first]), stream=video)
        # A frame's pts is the number of its packet. Only B-frames are shown before that position,
        # by at most `delay`, so a number ahead of the count indicates lost packets.
        delay = 2 if probe.codec in ("h264", "hevc") else 1
        count = 0
        for frame in _frames(container, video, decoder, probe, skip_damaged):
            if not probe.timestamps_known:
                if probe.numbered and frame.pts is not None:
                    early = frame.pict_type == av.video.frame.PictureType.B
                    count = max(count, frame.pts - (delay if early else 0))
                ordinal, count = count, count + 1
            elif frame.pts is None:
                continue
            else:
                ordinal = int(np.searchsorted(probe.pts, frame.pts))
                if ordinal == len(probe.pts) or probe.pts[ordinal] != frame.pts:
                    continue
            if ordinal >= first and not frame.is_corrupt:
                yield ordinal, frame


def _frames(
    container: Any, video: Any, decoder: Any, probe: Probe, skip_damaged: bool
) -> Iterator[av.VideoFrame]:
    """Decode frames; their pts are those of `probe`, or their packets' numbers."""
    number = -1
    for packet in packets_of(container, video):
        if packet.size:
            number += 1
            if probe.numbered:
                packet.pts = number
            elif probe.stamps is not None:
                known = number < len(probe.stamps)
                packet.pts = int(probe.stamps[number]) if known else None
        try:
            yield from decoder.decode(packet)
        except av.FFmpegError:
            if not skip_damaged:
                raise


def _decode_images(probe: Probe, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    white = white_of(probe)
    for ordinal, file in enumerate(probe.images[first:], start=first):
        try:
            rgb = read_picture(file, white=white)
        except (NotAVideo, NotWritable):
            continue  # reported as lost
        if rgb.shape[:2] != (probe.upright_height, probe.upright_width):
            height, width = rgb.shape[:2]
            raise BrokenStream(
                f"{file} is {width}x{height} pixels, but the first image is"
                f" {probe.upright_width}x{probe.upright_height}",
                hint="all images of a clip must have the same size",
            )
        yield ordinal, av.VideoFrame.from_ndarray(rgb, format="rgb24")


def _decode_animation(probe: Probe, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode all frames from the start, because each depends on the previous ones."""
    for ordinal, rgb in enumerate(read_animation(probe.path)):
        if ordinal >= first:
            yield ordinal, av.VideoFrame.from_ndarray(rgb, format="rgb24")


class _UprightFilter:
    """A libavfilter chain that converts decoded frames to stored ones."""

    def __init__(self, probe: Probe, geometry: Geometry) -> None:
        self.probe = probe
        self.geometry = geometry
        self.key: tuple[Any, ...] | None = None
        self.graph: Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        transparent = has_alpha(frame)
        key = (frame.format.name, frame.width, frame.height, transparent)
        if key != self.key:  # the size may change midway
            self.key = key
            self.graph = self._build(frame, transparent)
        if self.graph is None:
            return frame
        self.graph.vpush(frame)
        return self.graph.vpull()

    def _build(self, frame: av.VideoFrame, transparent: bool) -> Graph | None:
        probe, geometry = self.probe, self.geometry
        steps: list[tuple[str, str]] = []
        if transparent:  # composite over black: the colour of transparent pixels is arbitrary
            steps += [("format", "gbrap"), ("premultiply", "inplace=1"), ("format", "gbrp")]
        steps += _orientation_filters(probe.orientation)
        upright = (probe.upright_width, probe.upright_height)
        rotated = (frame.width, frame.height)
        if probe.orientation[0] == 0:
            rotated = rotated[::-1]
        if rotated != upright:  # non-square pixels
            steps.append(("scale", f"{upright[0]}:{upright[1]}:flags=bicubic"))
        x, y, w, h = geometry.box
        if (x, y, w, h) != (0, 0, *upright):
            steps.append(("crop", f"{w}:{h}:{x}:{y}:exact=1"))
        resized = (geometry.width, geometry.height) != (w, h)
        unconverted = (
            frame.format.name == "yuv420p" and not probe.full_range and not probe.wide_gamut
        )
        if not resized and unconverted:
            return _filters(frame, steps) if steps else None
        options = f"{geometry.width}:{geometry.height}:flags=bicubic+accurate_rnd:out_range=tv"
        if probe.hdr or probe.wide_gamut:
            if probe.transfer == 2:  # unspecified: assume BT.709
                steps.append(("setparams", "color_trc=bt709"))
            options += ":out_color_matrix=bt709:out_primaries=bt709:out_transfer=bt709"
        elif probe.matrix == 0 or transparent:
            options += f":out_color_matrix={'bt709' if stored_matrix(probe) == BT709 else 'bt601'}"
        steps += [("scale", options), ("format", "yuv420p")]
        return _filters(frame, steps)


def _filters(frame: av.VideoFrame, steps: list[tuple[str, str]]) -> Graph:
    """Build a chain of libavfilter filters (name, options) for the format of `frame`."""
    graph = Graph()
    # `Graph.add_buffer` omits the colour tags, so filters would misinterpret the colours.
    nodes: list[FilterContext] = [
        graph.add(
            "buffer", video_size=f"{frame.width}x{frame.height}", pix_fmt=frame.format.name,
            time_base="1/1000", pixel_aspect="1/1", colorspace=str(int(frame.colorspace)),
            range=str(int(frame.color_range)),
        )
    ]  # fmt: skip
    nodes += [graph.add(name, options) for name, options in steps]
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()
    return graph


def _orientation_filters(orientation: tuple[int, int, int, int]) -> Iterator[tuple[str, str]]:
    a, b, c, d = orientation
    if a == 0:
        # The four transpositions, by the signs of b and c in the display matrix.
        kind = {(1, 1): "cclock_flip", (1, -1): "clock", (-1, 1): "cclock", (-1, -1): "clock_flip"}
        yield "transpose", kind[(b, c)]
        return
    if a < 0:
        yield "hflip", ""
    if d < 0:
        yield "vflip", ""


def stored_matrix(probe: Probe) -> int:
    """Return the matrix coefficients with which stored frames are tagged.

    Stored frames keep the footage's own matrix, to avoid a second conversion. Untagged footage is
    read as SMPTE 170M, as in ffmpeg.
    """
    if probe.hdr or probe.wide_gamut or probe.matrix == 0:
        return BT709
    return SMPTE170M if probe.matrix in (2, 3) else probe.matrix


# ---------------------------------------------------------------- writing


def _stream(
    container: Any, encoder: str, pixel_format: str, *, width: int, height: int, rate: Fraction,
    matrix: int | None,
) -> Any:  # fmt: skip
    """Add a video stream, with colour tags if `matrix` is given."""
    stream = container.add_stream(encoder, rate=rate)
    stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
    context = stream.codec_context
    context.time_base = 1 / rate
    # Encoder output depends on the number of threads: fix it for equal output on all machines.
    context.thread_count = 2
    if matrix is not None:
        context.colorspace = matrix
        context.color_range = 1
        context.color_primaries = context.color_trc = matrix if matrix in (BT709, SMPTE170M) else 2
    return stream


def h264_stream(
    container: Any, *, width: int, height: int, rate: Fraction, crf: float, preset: str,
    matrix: int = BT709, gop: int = GOP,
) -> Any:  # fmt: skip
    """Add an H.264 stream with closed groups of `gop` frames, no B-frames, and colour tags."""
    stream = _stream(
        container, "libx264", "yuv420p", width=width, height=height, rate=rate, matrix=matrix
    )
    stream.codec_context.options = {
        "crf": str(crf), "preset": preset, "bf": "0",
        "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0",
    }  # fmt: skip
    return stream


class RoundTripEncoder:
    """Encodes a segment of frames to a file and returns each frame as decoded from it.

    Signals are extracted from the encoded frames, not from the source, so that they do not change
    when extracted later from the complete store.
    """

    def __init__(
        self, path: Path, *, width: int, height: int, rate: Fraction, crf: float, preset: str,
        matrix: int,
    ) -> None:  # fmt: skip
        self.path = path
        self.rate = rate
        with writing(path):
            self.container = create_media(path, format="mp4")
        self.stream = h264_stream(
            self.container, width=width, height=height, rate=rate, crf=crf, preset=preset,
            matrix=matrix,
        )  # fmt: skip
        self.decoder: Any = None
        self.count = 0

    def encode(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        frame.pts, frame.time_base = self.count, 1 / self.rate
        frame.pict_type = av.video.frame.PictureType.NONE
        self.count += 1
        yield from self._pass(self.stream.encode(frame))

    def close(self) -> Iterator[av.VideoFrame]:
        """Flush: return the remaining frames and complete the file."""
        yield from self._pass(self.stream.encode(None))
        if self.decoder is not None:
            yield from self.decoder.decode(None)
        with writing(self.path):
            self.container.close()
            _flush_to_disk(self.path)

    def _pass(self, packets: Iterable[Any]) -> Iterator[av.VideoFrame]:
        for packet in packets:
            if self.decoder is None:
                self.decoder = av.CodecContext.create("h264", "r")
                self.decoder.extradata = self.stream.codec_context.extradata
                self.decoder.thread_type = "SLICE"  # frame threads would delay frames
            yield from self.decoder.decode(packet)
            with writing(self.path):
                self.container.mux(packet)


class MapWriter:
    """Writes 8-bit or 16-bit grey images losslessly (FFV1 in Matroska)."""

    def __init__(
        self, path: Path, *, width: int, height: int, rate: Fraction, bits: Literal[8, 16]
    ) -> None:
        self.path = path
        self.rate = rate
        self.format = {8: "gray", 16: "gray16le"}[bits]
        with writing(path):
            # Without bitexact, Matroska files contain a random id.
            options = {"fflags": "+bitexact"}
            self.container = create_media(path, format="matroska", options=options)
        self.stream = self.container.add_stream("ffv1", rate=rate)
        self.stream.width, self.stream.height = width, height
        self.stream.pix_fmt = self.format
        self.stream.codec_context.time_base = 1 / rate
        self.stream.codec_context.thread_count = 2
        self.stream.codec_context.options = {"level": "3", "slices": "4", "context": "0"}
        self.count = 0

    def write(self, image: Array) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=self.format)
        frame.pts, frame.time_base = self.count, 1 / self.rate
        self.count += 1
        with writing(self.path):
            self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        with writing(self.path):
            self.container.mux(self.stream.encode(None))
            self.container.close()
            _flush_to_disk(self.path)


@dataclass(frozen=True)
class Codec:
    """Compression settings and file types for rendered video."""

    encoder: str
    pixel_format: str
    container: str  # of segments
    suffixes: tuple[str, ...]  # of supported files
    options: dict[str, str]  # no B-frames or hidden frames: each packet is one frame
    tag: str | None = None  # the codec tag that mp4 players expect
    crf: tuple[float, float] | None = None  # from best to worst; None: lossless


CODECS = {
    "h264": Codec(
        "libx264", "yuv420p", "mp4", (".mp4", ".mov", ".m4v", ".mkv"),
        {"preset": "veryfast", "bf": "0", "x264-params": "scenecut=0:open-gop=0"}, crf=(0, 51),
    ),
    "hevc": Codec(
        "libx265", "yuv420p", "mp4", (".mp4", ".mov", ".m4v", ".mkv"),
        {"preset": "veryfast", "x265-params": "bframes=0:scenecut=0:open-gop=0:log-level=none"},
        tag="hvc1", crf=(0, 51),
    ),
    "vp9": Codec(
        "libvpx-vp9", "yuv420p", "matroska", (".webm", ".mkv", ".mp4"),
        {"deadline": "good", "cpu-used": "5", "row-mt": "1", "auto-alt-ref": "0",
         "lag-in-frames": "0", "b": "0"}, crf=(0, 63),
    ),
    "ffv1": Codec("ffv1", "bgr0", "matroska", (".mkv",), {"level": "3", "slices": "4"}),
}  # fmt: skip
# Pixels. For narrower pictures the SIMD code of x265 writes beyond its buffers and corrupts the
# heap (PyAV 18.1, x86 without AVX-512).
X265_SIMD_WIDTH = 64
RENDERED_GOP = 48


def _rendered_stream(
    container: Any, codec: Codec, *, width: int, height: int, rate: Fraction, crf: float,
    preset: str,
) -> Any:  # fmt: skip
    lossless = codec.crf is None
    stream = _stream(
        container, codec.encoder, codec.pixel_format, width=width, height=height, rate=rate,
        matrix=None if lossless else BT709,
    )  # fmt: skip
    context = stream.codec_context
    context.gop_size = RENDERED_GOP
    context.options = dict(codec.options)
    if not lossless:
        context.options |= {"crf": f"{crf:g}"}
    if "preset" in codec.options:
        context.options |= {"preset": preset}
    if codec.encoder == "libx265" and width < X265_SIMD_WIDTH:
        context.options |= {"x265-params": codec.options["x265-params"] + ":asm=0"}
    if codec.tag:
        context.codec_tag = codec.tag
    return stream


@dataclass(frozen=True)
class Sound:
    """The audio of a video: a range of a file's first decodable audio stream.

    `start` is the time in the file, in seconds, of the video's first frame; `jumps` are those of
    the file's clock (`v2v.data.timing.Timeline`).
    """

    path: Path
    start: float
    jumps: tuple[float, ...] = ()


class VideoWriter:
    """Writes RGB frames as a video file, which appears only once it is complete.

    Args:
        codec: a key of `CODECS`; all players support the default.
        preset: x264 or x265 preset: trades encoding time for compression.
        container: ffmpeg's format name; by default that of the codec's segments.
        audio_offset: time in the video, in seconds, at which `audio` starts.
    """

    def __init__(
        self, path: Path, *, width: int, height: int, rate: Fraction, crf: float = 20,
        codec: str = "h264", preset: str = "veryfast", container: str | None = None,
        audio: Path | None = None, audio_offset: float = 0.0,
    ) -> None:  # fmt: skip
        self.path = path
        self.rate = rate
        self.codec = CODECS[codec]
        self.partial = path.with_name(f".{path.name}.partial")
        container = container or self.codec.container
        with writing(path):
            self.container = create_media(
                self.partial, format=container, options=_container_options(container)
            )
        try:
            self.stream = _rendered_stream(
                self.container, self.codec, width=width, height=height, rate=rate, crf=crf,
                preset=preset,
            )  # fmt: skip
            self.sound = _AudioMuxer(Sound(audio, -audio_offset), self.container) if audio else None
        except BaseException:
            self._discard()
            raise
        self.convert = VideoReformatter()  # reused: creating one takes as long as a frame
        self.count = 0

    def write(self, rgb: Array) -> None:
        """Append a frame, uint8 [H, W, 3]."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        if self.codec.pixel_format == "yuv420p":
            frame = self.convert.reformat(
                frame, format="yuv420p", dst_colorspace=BT709, dst_color_range=1,
                interpolation="BILINEAR",
            )  # fmt: skip
        else:
            frame = self.convert.reformat(frame, format=self.codec.pixel_format)
        frame.pts, frame.time_base = self.count, 1 / self.rate
        self.count += 1
        with writing(self.path):
            self.container.mux(self.stream.encode(frame))
            if self.sound:
                self.sound.write_until(self.count / float(self.rate))

    def close(self) -> None:
        try:
            with writing(self.path):
                self.container.mux(self.stream.encode(None))
                if self.sound:
                    self.sound.close()
                self.container.close()
                _flush_to_disk(self.partial)
                os.replace(self.partial, self.path)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        """Remove the incomplete file."""
        with suppress(OSError, av.FFmpegError):
            self.container.close()
        self.partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def _container_options(container: str) -> dict[str, str]:
    # Without bitexact, Matroska files contain a random id.
    if container in ("mp4", "mov"):
        return {"movflags": "+faststart"}
    return {"fflags": "+bitexact"}


def concatenate(
    parts: list[Path], target: Path, *, container: str, rate: Fraction,
    sound: Sound | None = None, tags: dict[str, str] | None = None, tag: str | None = None,
) -> None:  # fmt: skip
    """Join segments with the same codec and settings by copying their packets.

    Args:
        sound: audio to add, trimmed to their length.
        tags: metadata of the file, e.g. `comment`.
        tag: the codec tag in mp4, for codecs with several.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        with writing(target):
            with create_media(
                partial, format=container, options=_container_options(container)
            ) as out:
                out.metadata.update(tags or {})
                _join(parts, out, rate, sound, tag)
            _flush_to_disk(partial)
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _join(
    parts: list[Path], out: Any, rate: Fraction, sound: Sound | None, tag: str | None
) -> None:
    stream: Any = None
    audio: _AudioMuxer | None = None
    offset = 0
    for part in parts:
        with open_media(part) as source:
            video = source.streams.video[0]
            if stream is None:
                stream = out.add_stream_from_template(video)
                stream.time_base = 1 / rate
                if tag:
                    stream.codec_context.codec_tag = tag
                # All streams must be added before the first packet.
                audio = _AudioMuxer(sound, out) if sound else None
            stream.codec_context.framerate = rate  # not inferred from short clips
            count = 0
            for packet in source.demux(video):
                if packet.size == 0:
                    continue
                # Segments have no B-frames: packets are in order, one per frame.
                packet.stream = stream
                packet.time_base = 1 / rate
                packet.pts = packet.dts = offset + count
                packet.duration = 1
                out.mux(packet)
                count += 1
                if audio:
                    audio.write_until((offset + count) / float(rate))
            offset += count
    if audio:
        audio.close()


def read_tags(path: Path) -> dict[str, str]:
    """Read the metadata of a media file, keys in lower case. Raises the errors of `probe`."""
    with open_media(path) as container:
        return {key.lower(): value for key, value in container.metadata.items()}


AUDIO_CONTAINERS = {
    "wmav1": ("wma", "asf"), "wmav2": ("wma", "asf"),
    "pcm_alaw": ("wav", "wav"), "pcm_mulaw": ("wav", "wav"),
    "aac": ("m4a", "ipod"), "alac": ("m4a", "ipod"), "mp3": ("mp3", "mp3"),
    "opus": ("ogg", "ogg"), "vorbis": ("ogg", "ogg"), "flac": ("flac", "flac"),
}  # fmt: skip


def copy_audio(
    source: Path, folder: Path, *, audio: Audio, start: float, end: float
) -> tuple[Path, float] | None:
    """Copy the audio stream that `audio` describes, without re-encoding, to `folder/audio.*`.

    Only packets that start between `start` and `end` (seconds of the source's video time) are
    kept. Returns the file and the time of its first sample relative to `start`, or None if the
    range has no audio or no container supports the codec.
    """
    codec = audio.codec
    candidates = [
        AUDIO_CONTAINERS.get(codec, ("mka", "matroska")),
        ("mka", "matroska"),
        ("nut", "nut"),
    ]
    if codec.startswith("adpcm_") or (codec.startswith("pcm_") and codec.endswith("le")):
        candidates.insert(0, ("wav", "wav"))
    sound = Sound(source, start, audio.jumps)
    for suffix, container in candidates:
        # The container does not support this codec or its header.
        with suppress(ValueError, NotImplementedError, av.error.PatchWelcomeError):
            return _copy_audio(sound, folder / f"audio.{suffix}", container, end)
    return None


def _copy_audio(
    sound: Sound, target: Path, container: str, end: float
) -> tuple[Path, float] | None:
    partial = target.with_name(f".{target.name}.partial")
    try:
        with writing(target):
            # Without bitexact, Matroska and Ogg files contain a random id.
            options = {"fflags": "+bitexact"}
            with create_media(partial, format=container, options=options) as out:
                copy = _AudioCopy(sound, out)
                written = [_mux(out, packet) for packet in copy.packets(end, from_zero=True)]
            offset = copy.first_time
            if offset is None:
                return None
            if not any(written):
                raise ValueError(f"{container} accepts none of the packets")
            _flush_to_disk(partial)
            os.replace(partial, target)
        return target, offset
    finally:
        partial.unlink(missing_ok=True)


def _mux(out: Any, packet: Any) -> bool:
    """Write a packet; returns False if it is too damaged, e.g. AAC without its header."""
    out.start_encoding()  # raises if the container's header fails, as no packet can follow
    try:
        out.mux(packet)
    except av.FFmpegError as error:
        if isinstance(error, OSError):  # an error of the disk, not of the packet
            raise
        return False
    return True


class _AudioCopy:
    """Copies packets of a file's audio stream into an open container."""

    def __init__(self, sound: Sound, out: Any) -> None:
        self.sound = sound
        self.first_time: float | None = None  # of the first packet, relative to the start
        with open_media(sound.path) as container:
            self.stream = out.add_stream_from_template(sound_stream(container))

    def packets(self, end: float = float("inf"), *, from_zero: bool = False) -> Iterator[Any]:
        """Yield the packets that start between the sound's start and `end` (seconds).

        Args:
            from_zero: whether time 0 is the first packet instead of the sound's start.
        """
        start, clock = self.sound.start, ContinuousClock(self.sound.jumps)
        latest: int | None = None
        with open_media(self.sound.path) as container:
            origin = 0.0  # start of the video on the container's clock
            if (video := picture_stream(container)) is not None:
                origin = float((video.start_time or 0) * (video.time_base or 0))
            for packet in packets_of(container, sound_stream(container)):
                if packet.size == 0 or packet.pts is None:
                    continue
                time = clock(float(packet.pts * packet.time_base)) - origin
                if time < start - 1e-6 or time >= end:
                    continue
                packet.pts -= round(clock.skipped / packet.time_base)
                if self.first_time is None:
                    self.first_time, shift = time - start, packet.pts
                    if not from_zero:
                        shift -= round(self.first_time / packet.time_base)
                packet.stream = self.stream
                # Containers reject times that do not increase, as repeats and jumps do not.
                latest = (
                    packet.pts - shift if latest is None else max(packet.pts - shift, latest + 1)
                )
                packet.pts = packet.dts = latest
                yield packet


class _AudioEncode:
    """Encodes a file's audio stream with a codec that the container's players support."""

    def __init__(self, sound: Sound, out: Any) -> None:
        self.sound = sound
        if out.format.name == "webm":
            self.stream = out.add_stream("libopus", rate=48000, layout="stereo")
            return
        with open_media(sound.path) as container:
            stream = sound_stream(container)
            sample_rate = stream.codec_context.sample_rate if stream is not None else 0
        self.stream = out.add_stream("aac", rate=_aac_rate(sample_rate), layout="stereo")

    def packets(self) -> Iterator[Any]:
        """Yield the encoded packets; time 0 is the sound's start."""
        context, end = self.stream.codec_context, 0  # samples
        offset = round(self.sound.start * context.sample_rate)
        with open_media(self.sound.path) as container:
            for chunk in _resampled(self._from_start(_decoded_audio(container)), context):
                # Damaged audio has frames without times, and times that decrease.
                start = end if chunk.pts is None else chunk.pts - offset
                chunk.pts = max(start, end)
                end = chunk.pts + chunk.samples
                yield from self.stream.encode(chunk)
        yield from self.stream.encode(None)

    def _from_start(self, frames: Iterable[Any]) -> Iterator[Any]:
        """Yield the frames from the sound's start on, with times on a continuous clock."""
        clock, started = ContinuousClock(self.sound.jumps), False
        for frame in frames:
            if frame.pts is not None:
                if clock(frame.time) < self.sound.start:
                    continue
                frame.pts -= round(clock.skipped / frame.time_base)
                started = True
            if started:  # before, the frame's time is unknown
                yield frame


def _resampled(frames: Iterable[Any], context: Any) -> Iterator[Any]:
    """Convert frames to stereo for the encoder; their rate and channels may change."""
    convert, previous = None, None
    for frame in chain(frames, [None]):
        kind = frame and (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != previous:
            if convert is not None:
                yield from convert.resample(None)
            convert, previous = _resampler(context), kind
        if convert is not None and frame is not None:
            yield from convert.resample(frame)


def _resampler(context: Any) -> av.AudioResampler:
    return av.AudioResampler(
        format=context.format, layout="stereo", rate=context.sample_rate,
        frame_size=context.frame_size or 960,
    )  # fmt: skip


def _aac_rate(sample_rate: int) -> int:
    """Return the lowest AAC sampling rate of at least `sample_rate`, at most 48 kHz."""
    rates = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
    return next((rate for rate in rates if rate >= sample_rate), rates[-1])


def _decoded_audio(container: Any) -> Iterator[Any]:
    """Decode the audio frames, skipping damaged ones."""
    for packet in packets_of(container, sound_stream(container)):
        with suppress(av.FFmpegError):
            yield from packet.decode()


class _AudioMuxer:
    """Interleaves audio with a video as it is written, as players require."""

    def __init__(self, sound: Sound, out: Any) -> None:
        self.out = out
        packets = _audio_source(sound, out).packets()
        self.packets = cast(Generator[Any, None, None], packets)
        self.pending: Any = None

    def write_until(self, seconds: float) -> None:
        """Write the packets that start before this time of the video."""
        while True:
            if self.pending is None:
                self.pending = next(self.packets, None)
            packet = self.pending
            if packet is None or float((packet.pts or 0) * packet.time_base) >= seconds:
                return
            _mux(self.out, packet)
            self.pending = None

    def close(self) -> None:
        self.packets.close()


def _audio_source(sound: Sound, out: Any) -> _AudioCopy | _AudioEncode:
    supported = ("opus", "vorbis") if out.format.name == "webm" else ("aac", "mp3")
    with open_media(sound.path) as container:
        stream = sound_stream(container)
        if stream is None:
            raise NotAVideo(f"{sound.path} has no decodable audio stream", hint=None)
        copyable = stream.codec_context.codec.canonical_name in supported
    return _AudioCopy(sound, out) if copyable else _AudioEncode(sound, out)


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


# ---------------------------------------------------------------- reading stored video


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
