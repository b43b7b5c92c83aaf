"""Crash-safe writing of files and folders, with locks against concurrent processes.

A folder for unfinished work is locked while in use. After a process is killed, the next one
acquires its lock and removes or resumes its work. Resumed work was sealed when complete, so damage
is detected.
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
TRIES = 1000  # attempts to lock a folder that other processes keep creating and removing


# ---------------------------------------------------------------- locks


class FolderLock:
    """Gives one process exclusive use of a folder; released when the process ends or is killed."""

    def __init__(self, folder: Path, busy: V2VError) -> None:
        """`busy` is raised if another process holds the lock."""
        self.folder, self.busy = folder, busy
        self._lock = FileLock(str(folder / LOCK))

    def acquire(self) -> None:
        """Create the folder and lock it.

        Between opening and locking the lock file, its holder may remove the folder and another
        process may recreate it. So the file at the path must be the same before and after.

        Raises `busy`, and `OSError` if the folder cannot be created.
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
        """Remove everything in the folder except the lock."""
        for entry in self.folder.iterdir():
            if entry.name != LOCK:
                remove(entry)

    def remove(self) -> None:
        """Remove the folder and release the lock once the folder is empty."""
        try:
            self.empty()
            with suppress(OSError):  # Windows cannot delete open files
                (self.folder / LOCK).unlink()
        finally:
            self._lock.release()
        with suppress(OSError):  # another process has acquired it
            self.folder.rmdir()


@contextmanager
def workplace(folder: Path, busy: V2VError) -> Iterator[Path]:
    """Create a locked, empty folder for unfinished work and remove it at the end.

    Raises `busy` if another process uses it, `NotWritable`, `DiskFull`.
    """
    lock = FolderLock(folder, busy)
    with writing(folder.parent):
        if folder.is_file():  # earlier versions wrote a file with this name
            folder.unlink()
        try:
            lock.acquire()
        except (FileExistsError, NotADirectoryError):
            raise NotWritable(
                f"cannot create {folder.parent}: a file is in its place",
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
    """Use as `with replacing_file(path) as partial`: `partial` replaces the file at the end.

    Raises `NotWritable`, also if another process is writing the same file, and `DiskFull`.
    """
    busy = NotWritable(
        f"another process is writing {path}", hint="wait for it to end, or choose another --output"
    )
    with writing(path), workplace(partial_of(path), busy) as folder:
        yield folder / path.name
        os.replace(folder / path.name, path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_at_once(folder: Path) -> None:
    """Remove a folder atomically: after a kill it is either complete or gone."""
    trash = partial_of(folder)
    remove(trash)
    with suppress(FileNotFoundError):
        os.replace(folder, trash)
        shutil.rmtree(trash)


def partial_of(path: Path) -> Path:
    """Return the temporary path at which a file or folder is written, or removed."""
    return path.with_name(f".{path.name}.partial")


# ---------------------------------------------------------------- seals


class Seal:
    """A file that records the sizes and SHA-256 of other files once they are complete."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, paths: Iterable[Path]) -> None:
        """Record files, and folders with their contents. Raises `NotWritable`, `DiskFull`."""
        fingerprints = {path.name: _fingerprint(path) for path in paths}
        partial = partial_of(self.path)
        with writing(self.path):
            with open(partial, "w", encoding="utf-8") as file:
                json.dump(fingerprints, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)

    def holds(self, paths: Iterable[Path]) -> bool:
        """Whether all `paths` were sealed and are unchanged."""
        try:
            sealed = json.loads(self.path.read_bytes())
            return isinstance(sealed, dict) and all(
                sealed.get(path.name) == _fingerprint(path) for path in paths
            )
        except (OSError, ValueError, RecursionError):
            return False


def _fingerprint(path: Path) -> list[int | str]:
    """Return size and SHA-256 of a file; for a folder, of its files' names and fingerprints."""
    if path.is_dir():
        inner = {str(p.relative_to(path)): _fingerprint(p) for p in sorted(path.rglob("*"))}
        content = json.dumps(inner).encode()
        return [len(inner), hashlib.sha256(content).hexdigest()]
    with open(path, "rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
