"""What a signal and its tracks are; `v2v.signals.traits` adds what the rest of the code may ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from v2v.errors import UnknownName

if TYPE_CHECKING:
    import torch

    from v2v.signals.parts import Part


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
    per_frame: ClassVar[tuple[str, ...]] = ()  # names of its arrays with one row per frame

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: slice) -> Self: ...

    @classmethod
    def joined(cls, tracks: Sequence[Self]) -> Self:
        """The frames of one or more tracks of one clip, in order; the rest is the first one's."""
        whole = copy(tracks[0])
        for name in cls.per_frame:
            if getattr(whole, name) is not None:
                rows = np.concatenate([getattr(track, name) for track in tracks])
                object.__setattr__(whole, name, rows)  # tracks are frozen
        return whole

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
    options: ClassVar[tuple[str, ...]] = ()  # of `tensor`: what training may have it add

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
        """Channels of `tensor`."""

    def tensor(self, track: Track, spec: dict[str, Any], height: int, width: int) -> torch.Tensor:
        """The condition for a network, float32 [T, C, height, width], with the options in `spec`.

        A signal without `options` takes that of the track.
        """
        return track.tensor(height, width)

    def with_options(self, spec: dict[str, Any], options: Mapping[str, bool]) -> dict[str, Any]:
        """`spec` with exactly these options: an entry for each that is on.

        Options belong to a model, not to a clip: what the spec of a store says of them is ignored.
        Raises `UnknownName`.
        """
        for name in options:
            if not self.options:
                raise UnknownName(
                    f"unknown option {name!r}: the signal {self.name} has none",
                    hint=f"remove data.signal_options.{self.name}",
                )
            if name not in self.options:
                raise UnknownName.among(f"option of the signal {self.name}", name, self.options)
        rest = {name: value for name, value in spec.items() if name not in self.options}
        return rest | {name: True for name, on in options.items() if on}

    def options_in(self, spec: dict[str, Any]) -> dict[str, bool]:
        """The options of a model whose spec this is."""
        return {name: bool(spec.get(name, False)) for name in self.options}
