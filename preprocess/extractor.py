"""The extractor interface: one pass over the frames, resumable after every part.

Extractors process a clip in parts of `PART` frames. A finished part is never modified, and each
part starts from the final state of the previous one (the carry). So an interrupted and resumed run
produces the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import mmap
import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from v2v.config import PreprocessSettings
from v2v.errors import writing
from v2v.files import atomic_file, partial_of
from v2v.signals import load_signal
from v2v.signals.registry import import_own_or_installed
from v2v.video.plan import Geometry
from v2v.video.write import MapWriter, concatenate

PART = 256  # frames; killing a run loses at most one part
Array = NDArray[Any]
Record = Mapping[str, Array]


@dataclass(frozen=True)
class ClipContext:
    """What an extractor knows about the clip before the first frame.

    `sources[k]` is the ordinal of the source frame (of `source_frames`) of frame k; None if it is
    unknown because the store holds only part of its footage and the footage is not given.
    `geometry` is the crop and size of the frame, `upright` the width and height of the upright
    source. `names` are the file names of a folder of images, empty for video.
    """

    name: str
    width: int
    height: int
    rate: Fraction
    count: int
    geometry: Geometry
    sources: NDArray[np.int64] | None
    source_frames: int
    upright: tuple[int, int]
    names: tuple[str, ...] = ()
    folder: Path | None = None  # of the store


@dataclass(frozen=True)
class Finished:
    """An extractor's result; `files` are names of files in the store's folder."""

    files: tuple[str, ...]
    spec: dict[str, Any]
    coverage: float
    measured: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Extractor(ABC):
    """Extracts one signal. Call order: (begin, step..., end) for each part, then finish."""

    signal: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()  # signals that it depends on; read with the stored frames
    backend: str
    version: str

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        self.settings = settings
        self.clip = clip

    def inputs(self) -> dict[str, Any]:
        """What the signal depends on besides frames and settings, e.g. hashes of files."""
        return {}

    def begin(self, carry: Record | None) -> None:  # noqa: B027 - stateless extractors need none
        """Start a part. `carry` is the last record of the previous part, None for the first."""

    @abstractmethod
    def step(self, index: int, frame: Array, previous: Array | None, cut: bool) -> Record:
        """Process one frame and return its record.

        Args:
            frame, previous: RGB uint8 [H, W, 3]; `previous` is None for the clip's first frame.
            cut: whether this frame starts a new shot.
        """

    def end(self) -> None:  # noqa: B027
        """Finish a part: release what `begin` acquired."""

    @abstractmethod
    def part_writer(self, path: Path) -> PartWriter: ...

    @abstractmethod
    def last_record(self, path: Path) -> Record:
        """The carry of a finished part."""

    @abstractmethod
    def finish(self, parts: list[Path], folder: Path, shots: list[tuple[int, int]]) -> Finished:
        """Join the parts into the signal's files in `folder`, each written atomically.

        Raises `NothingFound` if no frame has the signal.
        """


class PartWriter(ABC):
    @abstractmethod
    def add(self, record: Record) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


# ---------------------------------------------------------------- points


class ArrayExtractor(Extractor):
    """Base for records of arrays; a part is an npz file of the arrays stacked along time."""

    def part_writer(self, path: Path) -> PartWriter:
        return _ArrayPart(path)

    def last_record(self, path: Path) -> Record:
        with np.load(path, allow_pickle=False) as part:
            return {name: part[name][-1] for name in part.files}

    @staticmethod
    def load_parts(parts: list[Path]) -> dict[str, Array]:
        """The arrays of all parts, concatenated along time."""
        pieces: dict[str, list[Array]] = {}
        for path in parts:
            with np.load(path, allow_pickle=False) as part:
                for name in part.files:
                    pieces.setdefault(name, []).append(part[name])
        return {name: np.concatenate(arrays) for name, arrays in pieces.items()}


class _ArrayPart(PartWriter):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []

    def add(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        names = self.records[0].keys()
        write_arrays(self.path, {n: np.stack([r[n] for r in self.records]) for n in names})


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an npz file atomically and deterministically.

    `np.savez` is not deterministic: it stores the time in the file.
    """
    with atomic_file(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                _write_array(file, array)


def _write_array(file: IO[bytes], array: Array) -> None:
    """Write NumPy's format in pieces, so that a memory-mapped array is never loaded whole."""
    header = np.lib.format.header_data_from_array_1_0(array)  # type: ignore[no-untyped-call]
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
    if array.ndim == 0:
        file.write(array.tobytes())
    for start in range(0, len(array) if array.ndim else 0, 1024):
        file.write(np.ascontiguousarray(array[start : start + 1024]).tobytes())
        release(array, start, start + 1024)


def release(array: Array, start: int, stop: int) -> None:
    """Release the memory of frames `start` to `stop` of a memory-mapped array.

    No flush is needed: the pages are shared with the file. Neighbouring frames on the outermost
    pages are read again on access.
    """
    if not isinstance(array, np.memmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    origin = array.offset % mmap.ALLOCATIONGRANULARITY  # the mapping's bytes before the array
    low, high = (origin + min(frame, len(array)) * array.strides[0] for frame in (start, stop))
    low -= low % mmap.PAGESIZE
    if high > low:
        array._mmap.madvise(mmap.MADV_DONTNEED, low, high - low)  # type: ignore[attr-defined]


# ---------------------------------------------------------------- maps


class MapExtractor(Extractor):
    """Base for records of lossless images, {"name.mkv": uint8 or uint16 [h, w]}, and arrays."""

    def part_writer(self, path: Path) -> PartWriter:
        return _MapPart(path, self.clip.rate)

    def last_record(self, path: Path) -> Record:
        return {name: array[-1] for name, array in self.load_arrays([path]).items()}

    @staticmethod
    def load_arrays(parts: list[Path]) -> dict[str, Array]:
        """The arrays of all parts, concatenated along time; empty if records hold images only."""
        files = [part / _MapPart.ARRAYS for part in parts]
        return ArrayExtractor.load_parts([file for file in files if file.exists()])

    def join(self, parts: list[Path], folder: Path) -> tuple[str, ...]:
        """Concatenate the parts' videos into `folder`; returns the file names."""
        names = tuple(sorted(p.name for p in parts[0].glob("*.mkv")))
        for name in names:
            concatenate(
                [part / name for part in parts], folder / name, container="matroska",
                rate=self.clip.rate,
            )  # fmt: skip
        return names


class _MapPart(PartWriter):
    """A part is a folder of videos, renamed once all of them are complete."""

    ARRAYS = "records.npz"

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path = path
        self.rate = rate
        self.partial = partial_of(path)
        shutil.rmtree(self.partial, ignore_errors=True)
        with writing(path):
            self.partial.mkdir(parents=True)
        self.writers: dict[str, MapWriter] = {}
        self.arrays = _ArrayPart(self.partial / self.ARRAYS)

    def add(self, record: Record) -> None:
        for name, image in record.items():
            if not name.endswith(".mkv"):
                continue
            if name not in self.writers:
                self.writers[name] = MapWriter(
                    self.partial / name, width=image.shape[1], height=image.shape[0],
                    rate=self.rate, bits=8 if image.dtype == np.uint8 else 16,
                )  # fmt: skip
            self.writers[name].write(image)
        if arrays := {n: a for n, a in record.items() if not n.endswith(".mkv")}:
            self.arrays.add(arrays)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        if self.arrays.records:
            self.arrays.close()
        with writing(self.path):
            os.replace(self.partial, self.path)


# ---------------------------------------------------------------- finding extractors


@cache
def _entry_points() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group="v2v.extractors")}


def load_extractor(name: str) -> type[Extractor]:
    """The extractor of a signal. Raises `UnknownName`."""
    load_signal(name)
    module = import_own_or_installed(__package__, name, _entry_points())
    extractor: type[Extractor] = module.Extractor
    return extractor
