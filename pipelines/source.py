"""The driving video of a rendering: a range of a clip store, which is made from footage if needed.

Stores of raw footage are kept in `data/`, as by `v2v preprocess`, and reused. They are identified
by the hash of the footage, not by its name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2v.config import PreprocessSettings, load_config
from v2v.data.store import CLIP_FILE, ClipStore, read_record
from v2v.errors import NothingFound, StoreError, UsageError
from v2v.preprocess.build import default_folder, preprocess
from v2v.preprocess.job import source_hash
from v2v.progress import Reporter, Silent
from v2v.video.audio import Sound
from v2v.video.probe import probe
from v2v.video.stored import read_stored

Picture = NDArray[np.uint8]  # RGB [H, W, 3]


@dataclass(frozen=True)
class Source:
    """Frames `start` to `stop` (excluded) of a clip store."""

    store: ClipStore
    start: int
    stop: int
    origin: float = 0.0  # seconds in the input footage of the store's frame 0

    def seconds(self, frame: int) -> float:
        """The time in the input footage of a frame of the store."""
        return self.origin + frame / float(self.rate)

    def frame(self, seconds: float) -> int:
        """The frame of the store at a time in the input footage."""
        return round((seconds - self.origin) * float(self.rate))

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rate(self) -> Fraction:
        return self.store.rate

    @property
    def name(self) -> str:
        return self.store.record.source.name

    @property
    def sha256(self) -> str:
        """Hash of the footage."""
        return self.store.record.source.sha256

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as stored."""
        return self.store.record.frames.height, self.store.record.frames.width

    @property
    def sound(self) -> Sound | None:
        """The audio from the first of these frames on."""
        audio = self.store.record.audio
        if audio is None or self.store.audio is None:
            return None
        return Sound(self.store.audio, self.start / float(self.rate) - audio.offset)

    def pictures(self, first: int = 0) -> Iterator[Picture]:
        """The stored frames, starting at frame `first` of the range."""
        path = self.store.check_frames()
        return read_stored(path, first=self.start + first, count=len(self) - first)


def open_source(
    given: str | Path | ClipStore,
    signals: Sequence[str],
    *,
    start: float | None = None,
    end: float | None = None,
    values: Mapping[str, Any] | None = None,
    data: Path = Path("data"),
    report: Reporter | None = None,
) -> Source:
    """Open footage or a clip store as a source with `signals`; missing signals are extracted.

    Args:
        start, end: the range in seconds from the beginning, the end excluded.
        values: settings of `v2v preprocess` by dotted key, for footage.
        data: folder that holds the stores of footage.

    Raises what `preprocess` raises; `UsageError` for an empty range.
    """
    report = report or Silent()
    for option, value in (("--start", start), ("--end", end)):
        check_finite(option, value)
    if isinstance(given, ClipStore):
        store = given
    elif (Path(given) / CLIP_FILE).is_file():
        store = ClipStore.open(given)
    else:
        request = _Footage(Path(given), tuple(signals), dict(values or {}), data, report)
        return request.range(start, end)
    missing = [name for name in signals if name not in store.signals]
    if missing:
        store = _make_store(store.folder, missing, report=report)
    store.verify(signals, again=False, report=report)
    return _range(store, start, end)


def check_finite(option: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise UsageError(f"{option} {value} is not a time", hint="give a number of seconds")


@dataclass(frozen=True)
class _Footage:
    """Footage whose store is looked up, or made if it does not exist."""

    footage: Path
    signals: Sequence[str]
    values: dict[str, Any]
    data: Path
    report: Reporter

    def range(self, start: float | None, end: float | None) -> Source:
        probed = probe(self.footage)
        digest = source_hash(probed)
        folder = self._folder(digest)
        whole = start is None and end is None
        if whole or (not self.values and _is_store_of(folder, digest)):
            return _range(self._make_store(folder, self.values), start, end)
        # Without a store, extract only the requested range: the footage may be hours long.
        values = self.values | {"frames.start": start, "frames.end": end}
        store = self._make_store(self._hashed_folder(digest, values), values)
        return Source(store, 0, len(store), origin=start or 0.0)

    def _folder(self, digest: str) -> Path:
        """`data/NAME`, unless it is taken by other footage or the settings are not the default."""
        plain = self.data / default_folder(self.footage).name
        unfinished = not (plain / CLIP_FILE).exists() and (plain / ".lock").exists()
        free = not plain.exists() or unfinished or _is_store_of(plain, digest)
        return plain if free and not self.values else self._hashed_folder(digest, self.values)

    def _hashed_folder(self, digest: str, values: dict[str, Any]) -> Path:
        text = json.dumps([digest, values], sort_keys=True, default=str)
        name = default_folder(self.footage).name
        return self.data / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def _make_store(self, folder: Path, values: dict[str, Any]) -> ClipStore:
        return _make_store(
            self.footage, self.signals, output=folder, values=values, report=self.report
        )


def _is_store_of(folder: Path, digest: str) -> bool:
    """Whether a folder is a store of the complete footage with this hash."""
    try:
        record = read_record(folder)
    except StoreError:
        return False
    settings = record.frames.settings
    whole = settings.get("start") is None and settings.get("end") is None
    return whole and record.source.sha256 == digest


def _make_store(
    source: Path,
    signals: Sequence[str],
    *,
    output: Path | None = None,
    values: dict[str, Any] | None = None,
    report: Reporter,
) -> ClipStore:
    settings = load_config(PreprocessSettings, "preprocess", values=values)
    outcome = preprocess(source, list(signals), settings, output=output, report=report)
    for signal, error in outcome.failed.items():
        if isinstance(error, NothingFound):
            raise NothingFound(
                error.message,
                hint=f"v2v doctor {source} reports what it shows; if the person is small or hard to"
                f" see, make a store first (v2v preprocess {source} --signal {signal} --help) and"
                " give it as the source",
            )
        raise error
    return ClipStore.open(outcome.folder)


def _range(store: ClipStore, start: float | None, end: float | None) -> Source:
    rate = float(store.rate)
    first = round((start or 0.0) * rate)
    stop = len(store) if end is None else min(round(end * rate), len(store))
    if not 0 <= first < stop:
        raise UsageError(
            f"the range from {start or 0:g} s to {stop / rate:g} s of {store.folder} is empty",
            hint=f"--start and --end are seconds from 0 to {len(store) / rate:.2f}, --end after"
            " --start",
        )
    return Source(store, first, stop)
