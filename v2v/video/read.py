"""Reads foreign footage as upright frames at a constant rate.

Only PyAV reads foreign footage: it respects timestamps, display rotation, edit lists and pixel
aspect ratios.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext

from v2v.errors import BrokenStream, NotAVideo, NotWritable
from v2v.images import read_animation, read_picture
from v2v.video.media import decoder_of, has_alpha, open_media, packets_of, picture_stream
from v2v.video.plan import FramePlan, Geometry
from v2v.video.probe import ANIMATED_WEBP, Probe, white_of

BT709, SMPTE170M = 1, 6  # ITU-T H.273 matrix coefficients

# Decoder threads, by frames and by slices. How libav decodes damaged data depends on their number.
# By default it uses one per core, so results would differ between machines.
FRAME_THREADS, SLICE_THREADS = 4, 2
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


def read_tags(path: Path) -> dict[str, str]:
    """Read the metadata of a media file, keys in lower case. Raises the errors of `probe`."""
    with open_media(path) as container:
        return {key.lower(): value for key, value in container.metadata.items()}
