"""Folder listings without hidden files and files that operating systems add."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# Those of macOS and Linux (`._a.png`, `.DS_Store`, `.directory`) begin with a dot.
_WINDOWS_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is hidden or was added by the operating system."""
    return path.name.startswith(".") or path.name.lower() in _WINDOWS_FILES


def visible_files(folder: Path, suffixes: Iterable[str] = ()) -> list[Path]:
    """The files directly in `folder` in natural order, without hidden and system files.

    Args:
        suffixes: lower-case suffixes of the files to list; all files if empty.
    """
    wanted = frozenset(suffixes)
    files = [
        path
        for path in folder.iterdir()
        if not is_hidden(path) and (not wanted or path.suffix.lower() in wanted) and path.is_file()
    ]
    return sorted(files, key=natural_key)


def natural_key(path: Path) -> tuple[object, ...]:
    """A sort key for natural order (2 before 10), ignoring case."""
    parts = re.split(r"(\d+)", path.name.lower())  # text, number, text, ...
    key = tuple((1, int(p), "") if i % 2 else (0, 0, p) for i, p in enumerate(parts))
    return key, path.name  # the name makes the order of 1 and 01 the same on every disk
