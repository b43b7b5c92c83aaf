"""Which large files were compared with their hashes already, and did not change since.

The user's cache holds an empty file for each: its name is the hash of the path, the inode, the
size, both times and the content's SHA-256. Whoever writes to the file changes its time, and with
that the name. Files below `SMALL` are compared each time: that takes less than reading them.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

SMALL = 64 << 20  # bytes: 0.1 s on a processor that does not compute SHA-256 in hardware
KEPT = 90 * 86400  # seconds


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "v2v" / "verified"


def known(path: Path, digest: str) -> bool:
    """Whether the content of `path` had this SHA-256 and the file did not change since."""
    with suppress(OSError, RuntimeError):  # no cache is no reason to stop, nor is no home
        return path.stat().st_size >= SMALL and _mark(path, digest).is_file()
    return False


def remember(path: Path, digest: str) -> None:
    """Note that the content of `path` has this SHA-256."""
    with suppress(OSError, RuntimeError):
        if path.stat().st_size < SMALL:
            return
        mark = _mark(path, digest)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        for old in mark.parent.iterdir():
            if old.stat().st_mtime < time.time() - KEPT:
                old.unlink(missing_ok=True)


def _mark(path: Path, digest: str) -> Path:
    stat = path.stat()
    facts = (str(path.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    text = repr((*facts, stat.st_ctime_ns, digest))
    return cache_folder() / hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
