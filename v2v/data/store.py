"""The clip store: one folder a clip, readable with a player, numpy and a text editor.

    data/dance/
      clip.json           what the clip is and where it came from
      frames.mp4          upright, constant frame rate, H.264, groups of 8, no B-frames
      audio.*             the footage's own audio stream
      pose.npz face.npz   points and scores
      segmentation.mkv    label ids, lossless (instances.mkv: instance ids)
      flow.mkv            u above v above occlusion, lossless
      preview.mp4         each frame beside its signals

clip.json is written last and replaced in one step: what it lists is whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from v2v.data.video import read_range
from v2v.errors import (
    SignalMissing,
    StoreDamaged,
    StoreNotFound,
    StoreSchemaError,
    UsageError,
    writing,
)
from v2v.signals import Track, load_signal

if TYPE_CHECKING:
    import torch

SCHEMA = 1
CLIP_FILE = "clip.json"


def _rate(value: str) -> str:
    try:
        positive = Fraction(value) > 0
    except (ValueError, ZeroDivisionError):
        positive = False
    if not positive:
        raise ValueError("a rate such as 25 or 30000/1001 is wanted")
    return value


def _file_name(value: str) -> str:
    if Path(value).name != value:
        raise ValueError("a file inside the store is wanted, without folders")
    return value


Count = Annotated[int, Field(ge=1)]
Rate = Annotated[str, AfterValidator(_rate)]
FileName = Annotated[str, AfterValidator(_file_name)]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(Record):
    bytes: int
    sha256: str


class SourceRecord(Record):
    name: str
    sha256: str
    bytes: int
    modified_ns: int
    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    pixel_aspect: str
    fps: Rate
    variable_rate: bool
    frames: int
    duration: float
    audio: dict[str, Any] | None
    notes: tuple[str, ...] = ()  # what was repaired or decided when it was read


class FramesRecord(Record):
    width: Count
    height: Count
    fps: Rate
    count: Count
    start: float  # seconds of the source at which frame 0 stands
    box: tuple[int, int, int, int]  # x, y, width, height in upright source pixels
    shots: tuple[int, ...]  # the first frame of each shot; 0 is always one
    lost: tuple[int, ...]  # frames that the footage had not, held over from the one before
    settings: dict[str, Any]
    file: FileRecord


class AudioRecord(Record):
    name: FileName
    codec: str
    offset: float  # seconds of the first sample after frame 0
    file: FileRecord


class SignalRecord(Record):
    spec: dict[str, Any]  # what a reader must know, e.g. classes
    backend: str
    version: str
    settings: dict[str, Any]
    coverage: float  # share of frames that have the signal
    measured: dict[str, Any] = {}  # e.g. jitter before and after
    warnings: tuple[str, ...] = ()
    files: dict[FileName, FileRecord]


class ClipRecord(Record):
    schema_version: int
    tool: str
    source: SourceRecord
    frames: FramesRecord
    audio: AudioRecord | None = None
    signals: dict[str, SignalRecord] = {}

    @property
    def files(self) -> dict[str, FileRecord]:
        """Every file that the record vouches for."""
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
            hint="make one with: v2v preprocess VIDEO --signal pose",
        )
    try:
        data = json.loads(path.read_text("utf-8"))
        version = data["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreDamaged(
            f"{path} is not valid: {error}", hint="make the store again with --overwrite"
        ) from error
    if version != SCHEMA:
        age = "a newer" if isinstance(version, int) and version > SCHEMA else "another"
        raise StoreSchemaError(
            f"{folder} was written by {age} version of v2v (schema {version}, this one reads"
            f" {SCHEMA})",
            hint="update v2v, or make the store again with --overwrite",
        )
    try:
        return ClipRecord.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(p) for p in problem["loc"])
        raise StoreDamaged(
            f"{path}: {where}: {problem['msg']}",
            hint="undo the edit, or make the store again with --overwrite",
        ) from error


def write_record(folder: Path, record: ClipRecord) -> None:
    path = folder / CLIP_FILE
    partial = folder / f".{CLIP_FILE}.partial"
    content = record.model_dump(mode="json")
    if not record.source.notes:  # most footage needs none
        del content["source"]["notes"]
    with writing(path):
        with open(partial, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def file_record(path: Path) -> FileRecord:
    import hashlib

    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(bytes=path.stat().st_size, sha256=digest)


@dataclass(frozen=True)
class Window:
    """T consecutive frames and their signals as tensors.

    `frames` is float32 [T, 3, H, W], RGB in [-1, 1]; each of `signals` is float32 [T, C, H, W] as
    its `Track.tensor` says; `tracks` holds the same signals as points, labels and flow.
    """

    start: int
    frames: torch.Tensor
    signals: dict[str, torch.Tensor]
    tracks: dict[str, Track]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{n}{list(t.shape)}" for n, t in self.signals.items())
        return f"Window(start={self.start}, frames{list(self.frames.shape)}, {shapes})"


class ClipStore:
    """A finished or growing clip store, for reading. Opening one per worker process is cheap."""

    def __init__(self, folder: Path, record: ClipRecord) -> None:
        self.folder = folder
        self.record = record
        self._reader: Any = None

    @classmethod
    def open(cls, path: str | Path) -> ClipStore:
        """Open and check a store: the record, and the presence and size of every file.

        Raises `StoreNotFound`, `StoreSchemaError`, `StoreDamaged`.
        """
        folder = Path(path)
        record = read_record(folder)
        for name, file in record.files.items():
            _check_file(folder / name, file)
        return cls(folder, record)

    def verify(self) -> None:
        """Compare every file with its hash. Raises `StoreDamaged`."""
        for name, file in self.record.files.items():
            _check_file(self.folder / name, file)
            if file_record(self.folder / name) != file:
                raise StoreDamaged(
                    f"{self.folder / name} is not the file that was written", hint=_REMAKE
                )

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
                f" on {signal.coverage:.1%} of the frames"
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
        """First frame and end (excluded) of each shot; windows should not cross them."""
        starts = [*self.record.frames.shots, len(self)]
        return list(zip(starts, starts[1:], strict=False))

    @property
    def audio(self) -> Path | None:
        return self.folder / self.record.audio.name if self.record.audio else None

    def frames(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Frames `start` to `stop`, RGB uint8 [T, H, W, 3]."""
        start, stop = self._range(start, stop)
        path = self.folder / "frames.mp4"
        if self._reader is None:
            import decord

            # One thread a reader: parallelism is in the workers.
            self._reader = decord.VideoReader(str(path), num_threads=1)
            # Decord counts channels by the bytes of a row, and takes padding (at widths of 96 and
            # 144, for example) for a fourth: such clips are read by PyAV.
            if self._reader[0].shape[2] != 3:
                self._reader = False
        if self._reader is False:
            return read_range(path, start, stop)
        frames: NDArray[np.uint8] = self._reader.get_batch(range(start, stop)).asnumpy()
        return frames

    def track(self, signal: str, start: int = 0, stop: int | None = None) -> Track:
        """Frames `start` to `stop` of a signal. Raises `SignalMissing`, `UnknownName`."""
        start, stop = self._range(start, stop)
        definition = load_signal(signal)
        if signal not in self.record.signals:
            raise SignalMissing(
                f"{self.folder} has no {signal} (it has: {', '.join(self.signals) or 'none'})",
                hint=f"add it with: v2v preprocess {self.folder} --signal {signal}",
            )
        frames = self.record.frames
        return definition.read(
            self.folder, self.record.signals[signal].spec, start, stop,
            width=frames.width, height=frames.height,
        )  # fmt: skip

    def window(
        self,
        start: int,
        length: int,
        *,
        signals: list[str] | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> Window:
        """`length` frames from `start` with their signals, as tensors.

        Args:
            signals: which; by default all that the store has.
            size: (height, width), or both in one number; by default as stored.
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
            signals={name: track.tensor(height, width) for name, track in tracks.items()},
            tracks=tracks,
        )

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        stop = len(self) if stop is None else stop
        if not 0 <= start < stop <= len(self):
            raise UsageError(
                f"frames {start} to {stop} of {self.folder} do not exist",
                hint=f"the clip has frames 0 to {len(self)}, the end excluded",
            )
        return start, stop


def frames_to_tensor(frames: NDArray[np.uint8], height: int, width: int) -> torch.Tensor:
    """uint8 [T, H, W, 3] to float32 [T, 3, height, width] in [-1, 1]."""
    import torch

    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    if tensor.shape[-2:] != (height, width):
        tensor = torch.nn.functional.interpolate(
            tensor, (height, width), mode="bilinear", align_corners=False, antialias=True
        )
    return tensor


_REMAKE = "restore the file, or run `v2v preprocess` on the store with --overwrite"


def _check_file(path: Path, file: FileRecord) -> None:
    if not path.is_file():
        raise StoreDamaged(f"{path} is listed in clip.json but missing", hint=_REMAKE)
    size = path.stat().st_size
    if size != file.bytes:
        raise StoreDamaged(
            f"{path} has {size} bytes, clip.json says {file.bytes}: it was changed", hint=_REMAKE
        )
