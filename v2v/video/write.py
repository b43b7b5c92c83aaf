"""Writes video: H.264 (frames, previews) and FFV1 (label maps, flow) for stores, and renderings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from v2v.errors import writing
from v2v.files import atomic_file, commit, flush_to_disk, partial_of
from v2v.video.audio import AudioMuxer, Sound
from v2v.video.media import create_media, open_media
from v2v.video.read import BT709, SMPTE170M
from v2v.video.stored import Array

GOP = 8  # so a random window decodes at most 7 unneeded frames


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
            flush_to_disk(self.path)

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
            flush_to_disk(self.path)


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
        self.partial = partial_of(path)
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
            self.sound = AudioMuxer(Sound(audio, -audio_offset), self.container) if audio else None
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
                commit(self.partial, self.path)
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
    options = _container_options(container)
    with (
        atomic_file(target) as partial,
        create_media(partial, format=container, options=options) as out,
    ):
        out.metadata.update(tags or {})
        _join(parts, out, rate, sound, tag)


def _join(
    parts: list[Path], out: Any, rate: Fraction, sound: Sound | None, tag: str | None
) -> None:
    stream: Any = None
    audio: AudioMuxer | None = None
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
                audio = AudioMuxer(sound, out) if sound else None
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
