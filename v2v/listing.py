"""Folders as users see them: without the companion files that systems put into them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# Written by Windows; those of macOS and Linux (`._a.png`, `.DS_Store`, `.directory`) have a dot.
_WINDOWS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is none of the user's footage: hidden, or the system's."""
    return path.name.startswith(".") or path.name.lower() in _WINDOWS


def visible_files(folder: Path, suffixes: Iterable[str] = ()) -> list[Path]:
    """The files directly inside `folder`, 2 before 10, without hidden and system files.

    Args:
        suffixes: only files with one of these, in lower case; all files where none is given.
    """
    wanted = frozenset(suffixes)
    files = [
        path
        for path in folder.iterdir()
        if not is_hidden(path) and (not wanted or path.suffix.lower() in wanted) and path.is_file()
    ]
    return sorted(files, key=natural_key)


def natural_key(path: Path) -> tuple[object, ...]:
    """Sorts names by the numbers in them (2 before 10), without regard to case."""
    parts = re.split(r"(\d+)", path.name.lower())  # text, number, text, ...
    key = tuple((1, int(p), "") if i % 2 else (0, 0, p) for i, p in enumerate(parts))
    return key, path.name  # 1 and 01 are one number: the order stays the same on every disk
