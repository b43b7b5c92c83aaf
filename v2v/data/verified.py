"""Caches which large files were verified against their hashes and are unchanged since.

The user's cache contains an empty marker file for each: its name is the hash of the path, the
inode, the size, the modification and status change times and the content's SHA-256. Writing to the
file changes its time and so the marker's name. Files below `SMALL` are always verified, because
hashing takes less time than reading them.
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
    """Whether `path` was verified to have this SHA-256 and is unchanged since."""
    # The cache is optional, and there may be no home directory.
    with suppress(OSError, RuntimeError):
        return path.stat().st_size >= SMALL and _marker(path, digest).is_file()
    return False


def remember(path: Path, digest: str) -> None:
    """Record that the content of `path` has this SHA-256."""
    with suppress(OSError, RuntimeError):
        if path.stat().st_size < SMALL:
            return
        marker = _marker(path, digest)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        for old in marker.parent.iterdir():
            if old.stat().st_mtime < time.time() - KEPT:
                old.unlink(missing_ok=True)


def _marker(path: Path, digest: str) -> Path:
    stat = path.stat()
    facts = (str(path.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    text = repr((*facts, stat.st_ctime_ns, digest))
    return cache_folder() / hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
