"""Tests memory-mapped arrays: written and released in pieces, equal to arrays in memory."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from v2v.preprocess.extractor import release, write_arrays

LONG = 3000  # frames; several pieces, and not a multiple of a page


def mapped(path: Path, values: NDArray[np.float32]) -> NDArray[np.float32]:
    array: NDArray[np.float32] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        path, "w+", values.dtype, values.shape
    )
    array[:] = values
    return array


def resident(path: Path) -> int:
    """Bytes of the mapped file that are resident in memory."""
    mappings = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(int(m.split("\nRss:")[1].split()[0]) * 1024 for m in mappings)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc/self/smaps")
def test_release_frees_only_the_given_frames_and_loses_nothing(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(LONG, 20, 3)).astype(np.float32)
    array = mapped(tmp_path / "a.npy", values)
    frame = values[0].nbytes
    assert resident(tmp_path / "a.npy") >= values.nbytes
    release(array, 1000, 2000)
    kept = resident(tmp_path / "a.npy")
    assert abs(kept - 2000 * frame) < 4 * mmap.PAGESIZE
    release(array, 0, LONG + 24)  # a stop beyond the end is clipped
    assert resident(tmp_path / "a.npy") < 2 * mmap.PAGESIZE
    np.testing.assert_array_equal(array, values)  # nothing is lost, although nothing was flushed


def test_mapped_array_is_written_like_one_in_memory(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(LONG, 7)).astype(np.float32)
    write_arrays(tmp_path / "memory.npz", {"x": values})
    write_arrays(tmp_path / "file.npz", {"x": mapped(tmp_path / "x.npy", values)})
    assert (tmp_path / "memory.npz").read_bytes() == (tmp_path / "file.npz").read_bytes()
    np.testing.assert_array_equal(np.load(tmp_path / "file.npz")["x"], values)


def test_release_ignores_arrays_in_memory() -> None:
    values = np.ones((4, 2), np.float32)
    release(values, 0, 4)
    assert values.all()
