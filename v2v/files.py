"""Files and folders on disk that survive a kill at any moment, and one process at a time on them.

A folder for unfinished work is locked while it is used. Whoever comes next takes the lock of a
process that was killed, and removes or takes up what it left. What is taken up was sealed when it
was whole, so damage is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from v2v.errors import NotWritable, V2VError, writing

LOCK = ".lock"
TRIES = 1000  # to lock a folder that others make and remove all the time


# ---------------------------------------------------------------- locks


class FolderLock:
    """One process at a time on a folder; the lock ends with the process, however it ends."""

    def __init__(self, folder: Path, busy: V2VError) -> None:
        """`busy` is raised where another process holds the lock."""
        self.folder, self.busy = folder, busy
        self._lock = FileLock(str(folder / LOCK))

    def acquire(self) -> None:
        """Make the folder and lock it. Raises `busy`, and `OSError` where there can be no folder.

        The holder may remove the folder, and another process may make it again, between the moment
        the lock file is opened and the moment it is locked. So the file at the path must be the
        same before and after.
        """
        path = self.folder / LOCK
        for _ in range(TRIES):
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                path.touch()
                before = path.stat()
                try:
                    self._lock.acquire(timeout=0)
                except Timeout:
                    raise self.busy from None
                with suppress(FileNotFoundError):
                    if os.path.samestat(before, path.stat()):
                        return
                self._lock.release()
        raise self.busy

    def release(self) -> None:
        self._lock.release()

    def empty(self) -> None:
        """Remove what is in the folder, except the lock."""
        for entry in self.folder.iterdir():
            if entry.name != LOCK:
                remove(entry)

    def remove(self) -> None:
        """Remove the folder and release the lock, which is held until the folder is empty."""
        try:
            self.empty()
            with suppress(OSError):  # Windows deletes no open files
                (self.folder / LOCK).unlink()
        finally:
            self._lock.release()
        with suppress(OSError):  # another process has taken it
            self.folder.rmdir()


@contextmanager
def workplace(folder: Path, busy: V2VError) -> Iterator[Path]:
    """A folder for unfinished work: locked, empty at first, removed at the end.

    Raises `busy` where another process uses it, `NotWritable`, `DiskFull`.
    """
    lock = FolderLock(folder, busy)
    with writing(folder.parent):
        if folder.is_file():  # earlier versions wrote a file of this name
            folder.unlink()
        try:
            lock.acquire()
        except (FileExistsError, NotADirectoryError):
            raise NotWritable(
                f"{folder.parent} cannot be made: a file is in its place",
                hint="choose another --output",
            ) from None
    try:
        lock.empty()
        yield folder
    finally:
        lock.remove()


def discard(folder: Path) -> None:
    """Remove the unfinished work of a killed process, unless another process uses the folder."""
    if folder.is_dir():
        lock = FolderLock(folder, NotWritable(f"{folder} is in use", hint=None))
        with suppress(V2VError, OSError):
            lock.acquire()
            lock.remove()


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """`with replacing_file(path) as partial`: write `partial`, which then takes the file's place.

    Raises `NotWritable`, also where another process writes the same file, and `DiskFull`.
    """
    busy = NotWritable(
        f"another process is writing {path}", hint="wait for it to end, or choose another --output"
    )
    with writing(path), workplace(partial_of(path), busy) as folder:
        yield folder / path.name
        os.replace(folder / path.name, path)


def remove(path: Path) -> None:
    """A file, or a folder with all in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_at_once(folder: Path) -> None:
    """Remove a folder such that a kill leaves either all of it or nothing under its name."""
    gone = partial_of(folder)
    remove(gone)
    with suppress(FileNotFoundError):
        os.replace(folder, gone)
        shutil.rmtree(gone)


def partial_of(path: Path) -> Path:
    """Where a file or folder is made before it takes its name, or is removed after it lost it."""
    return path.with_name(f".{path.name}.partial")


# ---------------------------------------------------------------- seals


class Seal:
    """A file that says which files are whole: their sizes and SHA-256, written after they are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, paths: Iterable[Path]) -> None:
        """Seal files, and folders as a whole. Raises `NotWritable`, `DiskFull`."""
        found = {path.name: _fingerprint(path) for path in paths}
        partial = partial_of(self.path)
        with writing(self.path):
            with open(partial, "w", encoding="utf-8") as file:
                json.dump(found, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)

    def holds(self, paths: Iterable[Path]) -> bool:
        """Whether all of these were sealed and are unchanged."""
        try:
            found = json.loads(self.path.read_bytes())
            return isinstance(found, dict) and all(
                found.get(path.name) == _fingerprint(path) for path in paths
            )
        except (OSError, ValueError, RecursionError):
            return False


def _fingerprint(path: Path) -> list[int | str]:
    """Bytes and SHA-256 of a file; of a folder, of its files' names and fingerprints."""
    if path.is_dir():
        inner = {str(p.relative_to(path)): _fingerprint(p) for p in sorted(path.rglob("*"))}
        content = json.dumps(inner).encode()
        return [len(inner), hashlib.sha256(content).hexdigest()]
    with open(path, "rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
