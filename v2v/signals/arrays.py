"""Arrays of a signal in npz files: validated, and read row by row."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from v2v.errors import StoreDamaged

Kind = tuple[str, tuple[int, ...]]  # dtype, and the shape without the frame axis
Layout = dict[str, Kind]  # by array name; `points` are x, y, score


def check_arrays(path: Path, layout: Layout, frames: int) -> None:
    """Check the headers of the arrays in an npz file against a layout, without reading data.

    Raises `StoreDamaged` for missing names and for wrong dtypes, shapes or numbers of frames.
    """
    with _reading(path) as archive:
        for name in layout:
            found = len(archive(name, layout[name]))
            if found != frames:
                raise ValueError(f"{name} has {found} frames, the clip has {frames}")


def read_arrays(
    path: Path, layout: Layout | Sequence[str], start: int, stop: int
) -> dict[str, NDArray[Any]]:
    """Read rows `start` to `stop` of arrays in an npz file, and no other rows.

    Args:
        layout: the arrays' names, with their dtypes and shapes if known.

    Raises `StoreDamaged` for an unreadable file, another layout, infinite values, or scores outside
    [0, 1]. NaN marks missing values and is valid.
    """
    kinds = layout if isinstance(layout, dict) else dict.fromkeys(layout)
    with _reading(path) as archive:
        arrays = {name: np.array(archive(name, kind)[start:stop]) for name, kind in kinds.items()}
        for name, values in arrays.items():
            if len(values) != stop - start:
                raise ValueError(f"{name} does not have frames {start} to {stop}")
            check_values(name, values)
        return arrays


def check_values(name: str, values: NDArray[Any]) -> None:
    """Raise `ValueError` for infinite values and for scores of `points` outside [0, 1]."""
    if values.dtype.kind != "f":
        return
    if np.isinf(values).any():
        raise ValueError(f"{name} has infinite values")
    if name == "points":
        with np.errstate(invalid="ignore"):
            if ((values[..., 2] < 0) | (values[..., 2] > 1)).any():
                raise ValueError(f"{name} has scores outside [0, 1]")


@contextmanager
def _reading(path: Path) -> Iterator[Callable[[str, Kind | None], NDArray[Any]]]:
    """Open an npz file; yields a function that maps an array by name and checks its kind."""
    try:
        with open(path, "rb") as file, ZipFile(file) as archive:

            def mapped(name: str, kind: Kind | None) -> NDArray[Any]:
                array = _mapped(path, file, archive.getinfo(f"{name}.npy"))
                if kind is None:
                    return array
                if array.dtype != kind[0] or array.shape[1:] != kind[1] or not array.ndim:
                    raise ValueError(
                        f"{name} is {array.dtype} {list(array.shape)}, expected {kind[0]}"
                        f" [frames{''.join(f', {n}' for n in kind[1])}]"
                    )
                return array

            yield mapped
    except StoreDamaged:
        raise
    except Exception as error:  # zipfile, numpy's header parser and mmap fail in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise StoreDamaged(
            f"{path} cannot be read ({reason})",
            hint="delete the file and run `v2v preprocess` on the store again",
        ) from error


def _mapped(path: Path, file: BinaryIO, member: ZipInfo) -> NDArray[Any]:
    """An array of an npz file as a memory map; numpy itself only maps npy files.

    An uncompressed member is a local header of 30 bytes, a name, an extra field and the npy data.
    """
    if member.compress_type != ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed, expected an uncompressed array")
    file.seek(member.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    file.seek(member.header_offset + 30 + name_length + extra_length)
    version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
    if version != (1, 0):
        raise ValueError(f"{member.filename} has npy version {version}, expected (1, 0)")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
    if dtype.hasobject:
        raise ValueError(f"{member.filename} contains Python objects, which are not accepted")
    return np.memmap(path, dtype, "r", file.tell(), shape)
