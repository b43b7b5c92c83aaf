"""The clip store: one folder per clip, readable with a player, numpy and a text editor.

    data/dance/
      clip.json           properties of the clip, its source and its signals
      frames.mp4          upright, constant frame rate, H.264, groups of 8, no B-frames
      audio.*             the footage's audio stream, copied
      pose.npz face.npz   points and scores
      segmentation.mkv    label ids, lossless (instances.mkv: instance ids)
      flow.mkv            u above v above occlusion, lossless
      preview.mp4         each frame beside its signals

clip.json is written last and replaced atomically: the files that it lists are complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from v2v import records
from v2v.data import verified
from v2v.errors import (
    SignalMissing,
    StoreDamaged,
    StoreNotFound,
    StoreSchemaError,
    UsageError,
)
from v2v.files import atomic_file, file_sha256
from v2v.pixels import planes
from v2v.progress import Reporter, Silent
from v2v.records import (
    MOST_SIDE,
    Bytes,
    Count,
    FileName,
    Frames,
    Plain,
    Rate,
    Record,
    Share,
    Side,
)
from v2v.signals import Track, TraitT, find, load_signal, signal_names
from v2v.video.stored import check_stored, read_range

if TYPE_CHECKING:
    import torch

SCHEMA = 1
CLIP_FILE = "clip.json"
LARGE = 1 << 30  # bytes; verifying more than this shows a progress bar


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileRecord(Record):
    bytes: Bytes
    sha256: Digest


class SourceRecord(Record):
    name: str
    sha256: str
    bytes: Bytes
    modified_ns: int
    container: str
    codec: str
    pixel_format: str
    width: Side
    height: Side
    rotation: int
    pixel_aspect: str
    fps: Rate
    variable_rate: bool
    frames: Count
    duration: Annotated[float, Field(ge=0)]
    audio: Plain | None
    notes: tuple[str, ...] = ()  # repairs and decisions made while reading it


class FramesRecord(Record):
    width: Side
    height: Side
    fps: Rate
    count: Frames
    start: float  # time of frame 0 in the source, in seconds
    box: tuple[int, int, int, int]  # x, y, width, height in upright source pixels
    shots: tuple[int, ...]  # the first frame of each shot; always includes 0
    lost: tuple[int, ...]  # frames missing in the footage, repeated from the previous one
    settings: Plain
    file: FileRecord

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Shots start at 0; shots and lost frames increase and lie within the clip."""
        inside = all(0 <= frame < self.count for frame in (*self.shots, *self.lost))
        if self.shots[:1] != (0,) or not _increasing(self.shots) or not inside:
            raise ValueError(f"shots and lost frames must increase and lie below {self.count}")
        if min(self.box[:2]) < 0 or min(self.box[2:]) < 1 or max(self.box) > MOST_SIDE:
            raise ValueError("the box must lie within the source")
        return self


class AudioRecord(Record):
    name: FileName
    codec: str
    offset: float  # time of the first sample relative to frame 0, in seconds
    file: FileRecord


class SignalRecord(Record):
    spec: Plain  # needed for reading, e.g. classes
    backend: str
    version: str
    settings: Plain
    coverage: Share  # fraction of frames with the signal
    measured: Plain = {}  # e.g. jitter before and after
    warnings: tuple[str, ...] = ()
    files: dict[FileName, FileRecord]


class ClipRecord(Record):
    schema_version: int
    tool: str
    source: SourceRecord
    frames: FramesRecord
    audio: AudioRecord | None = None
    signals: dict[str, SignalRecord] = {}

    @model_validator(mode="after")
    def _specs(self) -> Self:
        for name, signal in self.signals.items():
            if name in signal_names():  # otherwise its package is not installed
                load_signal(name).check_spec(signal.spec)
        return self

    def find(self, trait: type[TraitT]) -> TraitT | None:
        """The clip's signal that has a trait of `v2v.signals.traits`, or None.

        The first in the order of `signal_names`, if several have it.
        """
        return find(trait, (name for name in signal_names() if name in self.signals))

    @property
    def files(self) -> dict[str, FileRecord]:
        """Every file of the store, by name."""
        found = {"frames.mp4": self.frames.file}
        if self.audio:
            found[self.audio.name] = self.audio.file
        for signal in self.signals.values():
            found |= signal.files
        return found


def read_record(folder: Path) -> ClipRecord:
    """Parse clip.json. Raises `StoreNotFound`, `StoreSchemaError`, `StoreDamaged`."""
    path = folder / CLIP_FILE
    if not path.is_file():
        kind = "has no clip.json" if folder.is_dir() else "does not exist"
        raise StoreNotFound(
            f"{folder} is not a clip store: it {kind}",
            hint="create one with: v2v preprocess VIDEO --signal pose",
        )
    return records.read_record(
        path, ClipRecord, StoreDamaged, hint="undo the edit, or rebuild the store with"
        " --overwrite", check=lambda data: _check_schema(folder, data),
    )  # fmt: skip


def _check_schema(folder: Path, data: dict[str, Any]) -> None:
    if "schema_version" not in data:
        raise StoreDamaged(
            f"{folder / CLIP_FILE}: schema_version: field required",
            hint="rebuild the store with --overwrite",
        )
    version = data["schema_version"]
    if version != SCHEMA or not isinstance(version, int):
        newer = isinstance(version, int) and version > SCHEMA
        raise StoreSchemaError(
            f"{folder} was written by {'a newer' if newer else 'another'} version of v2v (schema"
            f" {records.shown(version)}, this one reads {SCHEMA})",
            hint="update v2v, or rebuild the store with --overwrite",
        )


def _increasing(numbers: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise(numbers))


def write_record(folder: Path, record: ClipRecord) -> None:
    content = record.model_dump(mode="json")
    if not record.source.notes:  # most footage has none
        del content["source"]["notes"]
    with atomic_file(folder / CLIP_FILE) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def file_record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=file_sha256(path))


@dataclass(frozen=True)
class Window:
    """T consecutive frames and their signals as tensors.

    `frames` is float32 [T, 3, H, W], RGB in [-1, 1]; each of `signals` is float32 [T, C, H, W] from
    its `Track.tensor`; `tracks` contains the same signals as points, labels and flow.
    """

    start: int
    frames: torch.Tensor
    signals: dict[str, torch.Tensor]
    tracks: dict[str, Track]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n}{list(t.shape)}" for n, t in self.signals.items())
        return f"Window(start={self.start}, frames{list(self.frames.shape)}, {shapes})"


class ClipStore:
    """Reads a complete or growing clip store. Opening one per worker process is cheap."""

    def __init__(self, folder: Path, record: ClipRecord) -> None:
        self.folder = folder
        self.record = record
        self._reader: Any = None
        self._checked: set[str] = set()  # parts whose shape was checked

    @classmethod
    def open(cls, path: str | Path) -> ClipStore:
        """Open a store and check its record and the presence and size of every file.

        Raises `StoreNotFound`, `StoreSchemaError`, `StoreDamaged`.
        """
        folder = Path(path)
        record = read_record(folder)
        for name, file in record.files.items():
            _check_file(folder / name, file)
        return cls(folder, record)

    def verify(
        self, signals: Iterable[str] | None = None, *, report: Reporter | None = None,
        again: bool = True,
    ) -> None:  # fmt: skip
        """Verify files against their hashes. Raises `StoreDamaged`.

        SHA-256 takes about a second per gigabyte, so training and rendering verify the files that
        they are about to read each time, except large files that are unchanged since the last time.

        Args:
            signals: whose files to verify besides frames and audio; by default all.
            again: whether to reread large files that were verified before and are unchanged.
        """
        files = self.record.files
        if signals is not None:
            unused = set(self.record.signals) - set(signals)
            for name in unused:
                for file_name in self.record.signals[name].files:
                    files.pop(file_name, None)
        report = report or Silent()
        large = sum(file.bytes for file in files.values()) > LARGE
        if large:
            report.start("verify", len(files))
        for name, file in files.items():
            path = self.folder / name
            _check_file(path, file)
            if (again or not verified.known(path, file.sha256)) and file_record(path) != file:
                raise StoreDamaged(
                    f"{path} was changed: its SHA-256 differs from clip.json", hint=_REMAKE
                )
            verified.remember(path, file.sha256)
            if large:
                report.advance("verify")
        if large:
            report.finish("verify")

    def __len__(self) -> int:
        return self.record.frames.count

    def __repr__(self) -> str:
        frames, source = self.record.frames, self.record.source
        seconds = len(self) / self.rate
        lines = [
            f"ClipStore({self.folder})",
            f"  source        {source.name}, {source.codec} {source.width}x{source.height}"
            f" at {float(Fraction(source.fps)):.4g} fps",
            f"  frames        uint8 [{len(self)}, {frames.height}, {frames.width}, 3],"
            f" {float(self.rate):.4g} fps, {float(seconds):.2f} s, {len(frames.shots)} shot(s)",
            f"  audio         {self.record.audio.codec if self.record.audio else 'none'}",
        ]
        for name, signal in self.record.signals.items():
            lines.append(
                f"  {name:<13} {signal.spec.get('shape', '')} by {signal.backend},"
                f" in {signal.coverage:.1%} of the frames"
            )
        return "\n".join(lines)

    @property
    def rate(self) -> Fraction:
        """Frames per second."""
        return Fraction(self.record.frames.fps)

    @property
    def signals(self) -> tuple[str, ...]:
        return tuple(self.record.signals)

    @property
    def shots(self) -> list[tuple[int, int]]:
        """First frame and end (exclusive) of each shot; windows should not cross shots."""
        starts = [*self.record.frames.shots, len(self)]
        return list(zip(starts, starts[1:], strict=False))

    @property
    def audio(self) -> Path | None:
        return self.folder / self.record.audio.name if self.record.audio else None

    def frames(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Read frames `start` to `stop`, RGB uint8 [T, H, W, 3]. Raises `StoreDamaged`."""
        start, stop = self._range(start, stop)
        path = self.check_frames()
        if self._reader is None:
            self._reader = _open_reader(path)
        if self._reader is False:
            return read_range(path, start, stop)
        try:
            frames: NDArray[np.uint8] = self._reader.get_batch(range(start, stop)).asnumpy()
        except Exception as error:  # decord has no exception class of its own
            raise _undecodable(path, error) from error
        return frames

    def check_frames(self) -> Path:
        """Return frames.mp4 after checking its header against the record. Raises `StoreDamaged`."""
        path, frames = self.folder / "frames.mp4", self.record.frames
        if "frames" not in self._checked:
            check_stored(path, width=frames.width, height=frames.height, frames=frames.count)
            self._checked.add("frames")
        return path

    def track(self, signal: str, start: int = 0, stop: int | None = None) -> Track:
        """Read frames `start` to `stop` of a signal.

        Raises `SignalMissing`, `UnknownName`, `StoreDamaged`.
        """
        start, stop = self._range(start, stop)
        self.check_signal(signal)
        frames = self.record.frames
        return load_signal(signal).read(
            self.folder, self.record.signals[signal].spec, start, stop,
            width=frames.width, height=frames.height,
        )  # fmt: skip

    def check_signal(self, signal: str) -> None:
        """Check the headers of a signal's files against the record, once.

        Raises `SignalMissing`, `UnknownName`, `StoreDamaged`.
        """
        if signal in self._checked:
            return
        definition = load_signal(signal)
        if signal not in self.record.signals:
            raise SignalMissing(
                f"{self.folder} has no {signal} (it has: {', '.join(self.signals) or 'none'})",
                hint=f"add it with: v2v preprocess {self.folder} --signal {signal}",
            )
        frames = self.record.frames
        definition.check_files(
            self.folder, self.record.signals[signal].spec, frames=len(self),
            width=frames.width, height=frames.height,
        )  # fmt: skip
        self._checked.add(signal)

    def window(
        self,
        start: int,
        length: int,
        *,
        signals: list[str] | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> Window:
        """Read `length` frames from `start` with their signals, as tensors.

        Args:
            signals: by default all of the store. Signals that are not rendered from (`camera`)
                are only in `tracks`.
            size: (height, width), or one number for both; by default as stored.
        """
        frames = self.frames(start, start + length)
        height, width = (size, size) if isinstance(size, int) else (size or frames.shape[1:3])
        tracks = {
            name: self.track(name, start, start + length)
            for name in (self.signals if signals is None else signals)
        }
        return Window(
            start=start,
            frames=frames_to_tensor(frames, height, width),
            signals={
                name: track.tensor(height, width)
                for name, track in tracks.items()
                if load_signal(name).rendered_from
            },
            tracks=tracks,
        )

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        stop = len(self) if stop is None else stop
        if not 0 <= start < stop <= len(self):
            raise UsageError(
                f"frames {start} to {stop} of {self.folder} do not exist",
                hint=f"the range must lie within 0 to {len(self)}, end excluded",
            )
        return start, stop


def frames_to_tensor(frames: NDArray[np.uint8], height: int, width: int) -> torch.Tensor:
    """Convert uint8 [T, H, W, 3] to float32 [T, 3, height, width] in [-1, 1]."""
    import torch

    tensor = torch.from_numpy(planes(frames))
    if tensor.shape[-2:] != (height, width):
        tensor = torch.nn.functional.interpolate(
            tensor, (height, width), mode="bilinear", align_corners=False, antialias=True
        )
    return tensor


def _open_reader(path: Path) -> Any:
    """Open a decord reader; False if decord misreads this width."""
    import decord

    try:
        # One thread per reader: the workers run in parallel.
        reader = decord.VideoReader(str(path.resolve()), num_threads=1)
        # Decord derives the channels from the bytes of a row and counts padding (e.g. at widths of
        # 96 and 144) as a fourth: PyAV reads such clips.
        return reader if reader[0].shape[2] == 3 else False
    except Exception as error:
        raise _undecodable(path, error) from error


def _undecodable(path: Path, error: Exception) -> StoreDamaged:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return StoreDamaged(f"{path} cannot be decoded: {reason}", hint=_REMAKE)


_REMAKE = "restore the file, or run `v2v preprocess` on the store with --overwrite"


def _check_file(path: Path, file: FileRecord) -> None:
    if not path.is_file():
        raise StoreDamaged(f"{path} is listed in clip.json but missing", hint=_REMAKE)
    size = path.stat().st_size
    if size != file.bytes:
        raise StoreDamaged(
            f"{path} was changed: it has {size} bytes instead of {file.bytes}", hint=_REMAKE
        )
