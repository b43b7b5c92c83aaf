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
from safetensors import SafetensorError

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


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Use as `with atomic_file(path) as partial`: `partial` replaces the file at the end.

    For files in a folder that this process has to itself; `replacing_file` also locks. After an
    error the file is unchanged. Raises `NotWritable`, `DiskFull`.
    """
    partial = partial_of(path)
    try:
        with writing(path):
            yield partial
            commit(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def commit(partial: Path, path: Path) -> None:
    """Put a finished file in its place, on the disk and not only in its cache."""
    flush_to_disk(partial)
    os.replace(partial, path)


def flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits. Raises `OSError`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


class replacing:  # noqa: N801 - used like a function
    """`with replacing(folder) as partial`: fill `partial`, which then replaces the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.partial = partial_of(folder)

    def __enter__(self) -> Path:
        with writing(self.folder):
            settle(self.folder)
            self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if error is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            if isinstance(error, SafetensorError | RuntimeError):
                _raise_full_disk(self.folder, error)
            if isinstance(error, OSError):
                with writing(self.folder):
                    raise error
            return
        with writing(self.folder):
            for path in (p for p in self.partial.rglob("*") if p.is_file()):
                flush_to_disk(path)
            old = _old(self.folder)
            if self.folder.exists():
                os.replace(self.folder, old)
            os.replace(self.partial, self.folder)
            shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def restore_replaced(folder: Path) -> None:
    """Restore the old folder if a process was killed before it could replace it."""
    if not folder.exists() and _old(folder).exists():
        os.replace(_old(folder), folder)


def settle(folder: Path) -> None:
    """Restore or remove what a process killed while replacing the folder left behind."""
    restore_replaced(folder)
    remove(_old(folder))
    remove(partial_of(folder))


def _raise_full_disk(folder: Path, error: BaseException) -> None:
    """Raise `DiskFull` or `NotWritable` for the errors of safetensors and torch.save."""
    import errno

    text = str(error).lower()
    full = "no space" in text or "os error 28" in text or "enforce fail" in text
    if full or shutil.disk_usage(_existing(folder)).free < 1 << 20:
        with writing(folder):
            raise OSError(errno.ENOSPC, "no space left on device") from error
    if "permission denied" in text or "read-only" in text:
        with writing(folder):
            raise OSError(errno.EACCES, "permission denied") from error


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


# ---------------------------------------------------------------- seals


class Seal:
    """A file that records the sizes and SHA-256 of other files once they are complete."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, paths: Iterable[Path]) -> None:
        """Record files, and folders with their contents. Raises `NotWritable`, `DiskFull`."""
        fingerprints = {path.name: _fingerprint(path) for path in paths}
        with atomic_file(self.path) as partial:
            partial.write_text(json.dumps(fingerprints), "utf-8")

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
    return [path.stat().st_size, file_sha256(path)]
