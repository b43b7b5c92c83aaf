"""Copies or encodes the sound of footage, in sync with the video."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import av

from v2v.errors import NotAVideo, writing
from v2v.files import commit, partial_of
from v2v.video.media import create_media, open_media, packets_of, picture_stream, sound_stream
from v2v.video.probe import Audio
from v2v.video.timing import ContinuousClock


@dataclass(frozen=True)
class Sound:
    """The audio of a video: a range of a file's first decodable audio stream.

    `start` is the time in the file, in seconds, of the video's first frame; `jumps` are those of
    the file's clock (`v2v.video.timing.Timeline`).
    """

    path: Path
    start: float
    jumps: tuple[float, ...] = ()


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
    partial = partial_of(target)
    try:
        with writing(target):
            # Without bitexact, Matroska and Ogg files contain a random id.
            options = {"fflags": "+bitexact"}
            with create_media(partial, format=container, options=options) as out:
                copy = _AudioCopy(sound, out)
                written = [mux(out, packet) for packet in copy.packets(end, from_zero=True)]
            offset = copy.first_time
            if offset is None:
                return None
            if not any(written):
                raise ValueError(f"{container} accepts none of the packets")
            commit(partial, target)
        return target, offset
    finally:
        partial.unlink(missing_ok=True)


def mux(out: Any, packet: Any) -> bool:
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


class AudioMuxer:
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
            mux(self.out, packet)
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
