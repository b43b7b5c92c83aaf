"""Opens all media files, for reading and writing.

libav interprets some file names as URLs (`http:`, `concat:`, `subfile,,:`), and some formats open
further files that they reference (playlists, concat scripts, SDP). Here a path is always a local
file, and a file never opens another one.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from v2v.errors import MediaNotFound, NotAVideo, NotWritable

# Formats that reference other files or devices instead of containing frames.
_REFERENCING = frozenset(
    {"hls", "concat", "concatf", "dash", "imf", "webm_dash_manifest", "sdp", "rtsp", "rtp", "sap",
     "image2", "image2pipe", "lavfi", "alsa", "fbdev", "kmsgrab", "oss", "x11grab",
     "video4linux2,v4l2", "ffmetadata", "mpjpeg", "svg_pipe", "msnwctcp", "data"}
)  # fmt: skip
# First bytes of such files, for a more precise error message.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0", b"<MPD", b"<?xml", b"<svg", b"[playlist]", b"RTSP")


def open_media(path: str | Path, *, format: str | None = None) -> Any:
    """Open a local media file for reading. Returns a PyAV container, for use in `with`.

    Args:
        format: libav's demuxer name, for content that libav would misdetect.

    Raises `MediaNotFound`, `NotAVideo` (not a regular file, a playlist, not media), `NotWritable`
    (no permission to read).
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise MediaNotFound(f"no such file: {path}", hint=None) from None
    except (OSError, ValueError) as error:  # e.g. a link to itself, a NUL in the name
        raise NotAVideo(f"{path} cannot be opened ({_reason(error)})", hint=None) from error
    if not stat.S_ISREG(mode):
        raise NotAVideo(f"{path} is not a regular file", hint="give a video file")
    options = {"protocol_whitelist": "file", "format_whitelist": _allowed()}
    try:
        return av.open(f"file:{path}", format=format, options=options)
    except PermissionError as error:
        raise NotWritable(f"no permission to read {path}", hint=None) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        if _is_playlist(path):
            raise NotAVideo(
                f"{path} is a playlist or script that references other files, not a video",
                hint="give the video files themselves",
            ) from error
        raise NotAVideo(
            f"{path} cannot be read as a video ({_reason(error)})",
            hint="play the file to check that it is complete; all formats that ffmpeg decodes work",
        ) from error


def create_media(path: Path, *, format: str, options: dict[str, str] | None = None) -> Any:
    """Open a local file for writing. Returns a PyAV container; raises `OSError`."""
    return av.open(f"file:{path}", "w", format=format, options=options or {})


@cache
def _allowed() -> str:
    """Return all demuxers except `_REFERENCING`, formatted for libav's `format_whitelist`."""
    names = set()
    for name in av.formats_available:
        try:
            names.add(av.ContainerFormat(name, "r").name)
        except ValueError:  # only a muxer
            continue
    return ",".join(sorted(names - _REFERENCING))


def _is_playlist(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return False
    return head.startswith(_PLAYLISTS)


def picture_stream(container: Any) -> Any | None:
    """Return the first decodable video stream that is not cover art."""
    cover = av.stream.Disposition.attached_pic
    streams = (s for s in container.streams.video if s.codec_context is not None)
    return next((s for s in streams if not s.disposition & cover), None)


def sound_stream(container: Any) -> Any | None:
    """Return the first decodable audio stream."""
    return next((s for s in container.streams.audio if s.codec_context is not None), None)


def packets_of(container: Any, *streams: Any) -> Iterator[Any]:
    """Yield the packets of `streams` in file order, until the end or a truncation."""
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        yield packet


def decoder_of(video: Any) -> Any:
    """Return the codec context for a video stream: libav's default unless it drops alpha.

    WebM stores the alpha of VP8 and VP9 separately, and only libvpx decodes it.
    """
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(video.codec_context.name)
    if name is None or video.metadata.get("alpha_mode") != "1":
        return video.codec_context
    try:
        context = av.CodecContext.create(name, "r")
    except (av.FFmpegError, ValueError):  # a build without libvpx
        return video.codec_context
    context.extradata = video.codec_context.extradata
    return context


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether any pixel of a frame is transparent."""
    components = frame.format.components
    if len(components) not in (2, 4) or not any(c.is_alpha for c in components):
        return False
    deep = max(c.bits for c in components) > 8
    if len(frame.planes) == len(components):  # planar: alpha is the last plane
        plane = frame.planes[-1]
        row = plane.line_size // (2 if deep else 1)
        values = np.frombuffer(memoryview(plane), np.uint16 if deep else np.uint8).reshape(-1, row)
        alpha = values[: frame.height, : frame.width]
        opaque = (1 << next(c.bits for c in components if c.is_alpha)) - 1
        return bool(alpha.min() < opaque)
    packed = frame.reformat(format="rgba").to_ndarray()
    return bool(packed[..., 3].min() < 255)


def _reason(error: Exception) -> str:
    text = str(error).split(":")[0]
    return text.split("]")[-1].strip() or type(error).__name__
