from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Self
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from v2v.errors import StoreDamaged, UnknownName

if TYPE_CHECKING:
    import torch

    from v2v.signals._parts import Part

ENTRY_POINTS = "v2v.signals"


class Track(ABC):
    """T consecutive frames of one signal, in pixels of frames of `width` x `height`.

    Coordinates are continuous: the frame spans [0, width] x [0, height] and the centre of the
    first pixel is (0.5, 0.5). Scaling is a multiplication, a flip is x -> width - x.
    """

    width: int
    height: int
    transparent: ClassVar[bool] = True  # black in its drawing is transparent
    regions: ClassVar[tuple[str, ...]] = ()  # names of the `boxes`
    parts: ClassVar[tuple[Part, ...]] = ()  # parts to cut pictures into, from back to front

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: slice) -> Self: ...

    @abstractmethod
    def scaled(self, width: int, height: int) -> Self:
        """The same signal for frames resized to `width` x `height`; the axes scale separately."""

    @abstractmethod
    def cropped(self, x: int, y: int, width: int, height: int) -> Self:
        """The same signal for frames cropped to a box."""

    @abstractmethod
    def flipped(self) -> Self:
        """The same signal for frames mirrored left to right; flipping twice is the identity."""

    @abstractmethod
    def draw(self, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
        """A visualisation, RGB uint8 [T, height, width, 3]; by default at the frame size."""

    @abstractmethod
    def tensor(self, height: int | None = None, width: int | None = None) -> torch.Tensor:
        """The condition for a network, float32 [T, C, height, width]."""

    def present(self) -> NDArray[np.bool_]:
        """[T] true where the frame has the signal."""
        return np.ones(len(self), np.bool_)

    def boxes(self) -> NDArray[np.float32]:
        """Square boxes of the `regions`, [T, regions, 4] x0, y0, x1, y1; NaN if not detected."""
        return np.full((len(self), len(self.regions), 4), np.nan, np.float32)

    def control_points(self) -> NDArray[np.float32]:
        """Control points of the dense motion, [T, N, 3]; none by default.

        x, y and radius (standard deviation of their influence) in pixels; NaN if not detected. N
        is the same for all tracks of a signal. See `v2v.warp.dense_motion`.
        """
        return np.empty((len(self), 0, 3), np.float32)

    def control_point_tensor(self) -> torch.Tensor:
        """`control_points` as float32 [T, N, 3]; all 0 if not detected."""
        import torch

        found = torch.from_numpy(self.control_points())
        return torch.where(found.isfinite().all(dim=-1, keepdim=True), found, 0.0)

    def part_points(self) -> NDArray[np.float32]:
        """[T, N, 2] x, y of the points of `parts` in pixels; NaN if missing. None by default."""
        return np.empty((len(self), 0, 2), np.float32)

    def body_size(self) -> NDArray[np.float32]:
        """[T] body size in pixels, the unit of the radii of `parts`; NaN if unknown."""
        return np.full(len(self), np.nan, np.float32)

    def dropped(self, generator: np.random.Generator, probability: float) -> Self:
        """Drop parts at random, as detectors do; unchanged by default."""
        return self

    def jittered(self, generator: np.random.Generator, sigma: float) -> Self:
        """Add noise of `sigma` pixels (standard deviation) to points; unchanged by default."""
        return self


class Signal(ABC):
    """One kind of signal: its name, its files in the clip store, and how to read them."""

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]]  # written by the extractor; the first always exists
    rendered_from: ClassVar[bool] = True  # whether it can be a condition of a network

    def check_spec(self, spec: dict[str, Any]) -> None:  # noqa: B027 - not every signal has one
        """Raise `ValueError` if `spec` lacks entries that `read` or `channels` need."""

    def check_files(  # noqa: B027
        self, folder: Path, spec: dict[str, Any], *, frames: int, width: int, height: int
    ) -> None:
        """Raise `StoreDamaged` if the files' headers do not match the clip's frames and size.

        Called once per store, before `read`.
        """

    @abstractmethod
    def read(
        self, folder: Path, spec: dict[str, Any], start: int, stop: int, *, width: int, height: int
    ) -> Track:
        """Frames `start` to `stop` from a clip store with frames of `width` x `height`.

        `spec` is the description of the signal that the extractor wrote into clip.json.
        """

    @abstractmethod
    def channels(self, spec: dict[str, Any]) -> int:
        """Channels of `Track.tensor`."""


@cache
def _entry_points() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


@cache
def signal_names() -> tuple[str, ...]:
    """All known signals: built-in ones, then those of installed packages."""
    import v2v.signals as package

    own = [m.name for m in iter_modules(package.__path__) if not m.name.startswith("_")]
    order = {"pose": 0, "face": 1, "segmentation": 2, "flow": 3, "camera": 4}
    own.sort(key=lambda name: (order.get(name, 9), name))
    return tuple(own) + tuple(sorted(set(_entry_points()) - set(own)))


def load_signal(name: str) -> Signal:
    """The signal called `name`. Raises `UnknownName`, which lists the valid names."""
    if name not in signal_names():
        raise UnknownName.among("signal", name, (*signal_names(), "all"))
    module = import_own_or_installed("v2v.signals", name, _entry_points())
    signal: Signal = module.SIGNAL
    return signal


def import_own_or_installed(package: str, name: str, entries: dict[str, Any]) -> Any:
    """The built-in module called `name`, or else that of an installed package."""
    if find_spec(f"{package}.{name}") is not None:
        return import_module(f"{package}.{name}")
    return entries[name].load()


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
