"""Builds a clip store from footage: frames and signals in one pass, resumable after every part.

The source is decoded once; signals derived from other signals read the stored frames again. Each
frame is encoded, decoded as stored, and passed to all extractors, each in its own thread (networks
and codecs release the GIL). Finished signals are listed in clip.json; partial results are kept in
`.work`, and the next run resumes from them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from v2v.config import PreprocessSettings
from v2v.data.store import CLIP_FILE
from v2v.errors import NotWritable, StoreConflict, StoreLocked, UsageError, V2VError, writing
from v2v.files import LOCK, FolderLock, discard, remove
from v2v.listing import is_hidden
from v2v.preprocess.extractor import load_extractor
from v2v.preprocess.job import WORK, BuildResult, Job
from v2v.progress import Reporter, Silent
from v2v.video.probe import probe


def preprocess(
    source: Path,
    signals: list[str],
    settings: PreprocessSettings,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    report: Reporter | None = None,
) -> BuildResult:
    """Build the clip store of one piece of footage, or add signals to an existing one.

    Args:
        source: a video, an image, a folder of images, or a clip store to add signals to.
        signals: the signals to extract; existing ones with the same settings are kept.
        output: the store's folder, by default `data/<name of the source>`.
        overwrite: replace existing data made with other settings or from other footage.

    Raises:
        V2VError: a subclass. A signal that fails does not stop the others: it is listed in the
            result's `failed`.
    """
    began = time.monotonic()
    extractors = {name: load_extractor(name) for name in signals}  # unknown names fail first
    needed = {name for kind in extractors.values() for name in kind.after} - set(extractors)
    extractors = {name: load_extractor(name) for name in sorted(needed)} | extractors
    is_store = (source / CLIP_FILE).is_file()
    if is_store and output is not None and output.resolve() != source.resolve():
        raise UsageError(
            f"{source} is a clip store; signals are added to it in place",
            hint="omit --output",
        )
    folder = source if is_store else (output or default_folder(source))
    footage = None if is_store else probe(source)
    with writing(folder), _locked(folder) as lock:
        for partial in folder.glob(".*.partial"):  # left by a process killed while writing
            discard(partial) if partial.is_dir() else remove(partial)
        try:
            job = Job(folder, footage, settings, overwrite, report or Silent(), needed)
            outcome = job.run(extractors)
        except V2VError:
            _sweep(lock)
            raise
    outcome.seconds = time.monotonic() - began
    return outcome


def default_folder(source: Path) -> Path:
    return Path("data") / (source.resolve().name if source.is_dir() else source.stem)


def _sweep(lock: FolderLock) -> None:
    """Remove a failed store that has neither a record nor any finished part."""
    folder = lock.folder
    if (folder / CLIP_FILE).exists() or any((folder / WORK).glob("*/0*")):
        return
    remove(folder / WORK)
    if {p.name for p in folder.iterdir()} <= {LOCK}:
        lock.remove()


@contextmanager
def _locked(folder: Path) -> Iterator[FolderLock]:
    """Hold the store's lock, so that only one process at a time works on it."""
    if folder.exists() and not folder.is_dir():
        raise NotWritable(f"{folder} is a file, not a folder", hint="choose another --output")
    with suppress(FileNotFoundError):  # another process removed it just now
        has_files = folder.is_dir() and not all(map(is_hidden, folder.iterdir()))
        foreign = has_files and not (folder / LOCK).exists()
        if foreign and not (folder / CLIP_FILE).exists():
            raise StoreConflict(
                f"{folder} exists and is not a clip store", hint="choose another --output"
            )
    busy = StoreLocked(
        f"another process is working on {folder}",
        hint="wait for it to end, or choose another --output",
    )
    lock = FolderLock(folder, busy)
    try:
        lock.acquire()
    except (FileExistsError, NotADirectoryError):
        raise NotWritable(
            f"{folder} cannot be created: a file is in its place", hint="choose another --output"
        ) from None
    try:
        yield lock
    finally:
        lock.release()
