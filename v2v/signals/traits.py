"""Traits of signals: what the rest of the code asks of a signal, instead of its name or class.

A signal has a trait if its definition inherits from the trait's class. It may have several.

    labels = store.record.find(LabelSignal)     # None: the clip has no label maps
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from v2v.signals.arrays import Layout, check_arrays, read_arrays
from v2v.signals.base import Signal, Track


class ArraySignal(Signal):
    """A signal whose file is one npz file, with the arrays of `layout`."""

    layout: ClassVar[Layout]

    @abstractmethod
    def assemble(self, arrays: dict[str, Any], *, width: int, height: int) -> Track:
        """The track of arrays [T, ...] in frames of `width` x `height`.

        Entries of `arrays` that are not in `layout` are ignored.
        """

    def check_files(
        self, folder: Path, spec: dict[str, Any], *, frames: int, width: int, height: int
    ) -> None:
        check_arrays(folder / self.files[0], self.layout, frames)

    def read(
        self, folder: Path, spec: dict[str, Any], start: int, stop: int, *, width: int, height: int
    ) -> Track:
        arrays = read_arrays(folder / self.files[0], self.layout, start, stop)
        return self.assemble(arrays, width=width, height=height)


class PointSignal(Signal):
    """Its frames have keypoints or lack them: see `Track.present`, `Track.regions`."""

    remembered: ClassVar[tuple[str, ...]] = ("points",)  # arrays of the track that a model stores


class ReferenceSignal(ArraySignal, PointSignal):
    """Its tracks have `parts`, which cut and warp the appearance references of a clip."""

    reference_count: ClassVar[int]  # references per clip
    warped_by: ClassVar[Literal["parts", "dense"]]  # each part's own transform, or one dense mesh


class LabelMaps(Track):
    """Tracks of label maps."""

    labels: NDArray[np.uint8]  # [T, height, width] class ids
    classes: tuple[str, ...]
    instances: NDArray[np.uint16] | None  # [T, height, width] ids

    @abstractmethod
    def subsampled(self, factor: int) -> LabelMaps:
        """Every `factor`-th pixel of both axes, from the middle of its block."""


class LabelSignal(Signal):
    """Its frames are label maps: every pixel has a class, and perhaps an instance."""

    @abstractmethod
    def read(
        self, folder: Path, spec: dict[str, Any], start: int, stop: int, *, width: int, height: int
    ) -> LabelMaps: ...

    @abstractmethod
    def has_instances(self, spec: dict[str, Any]) -> bool:
        """Whether the maps have instance ids."""

    @abstractmethod
    def person(self, spec: dict[str, Any]) -> int | None:
        """The class id of persons; None if the classes have none."""

    @abstractmethod
    def foreground(self, spec: dict[str, Any]) -> NDArray[np.bool_]:
        """[256] true for the class ids of what moves in front of the background."""


class FlowField(Track):
    """Tracks of dense backward flow on a grid that may be coarser than the frames."""

    flow: NDArray[np.float32]  # [T, 2, h, w] in pixels of the grid
    occlusion: NDArray[np.float32]  # [T, 1, h, w]

    @abstractmethod
    def with_flow(
        self, flow: NDArray[np.float32], occlusion: NDArray[np.float32], *, width: int, height: int
    ) -> FlowField:
        """The same track with other arrays, for frames of `width` x `height`."""


class FlowSignal(Signal):
    """Its frames are dense flow to the previous frame, with occlusion."""

    @abstractmethod
    def packed(self, folder: Path, start: int, stop: int) -> NDArray[Any]:
        """Frames `start` to `stop` as they are stored, [n, ...]: compact, to be cached."""

    @abstractmethod
    def packed_bytes(self, spec: dict[str, Any]) -> int:
        """Bytes of one packed frame."""

    @abstractmethod
    def unpack(self, packed: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Flow [n, 2, h, w] in pixels of its grid and occlusion [n, 1, h, w] of packed frames."""

    @abstractmethod
    def build(
        self, flow: NDArray[np.float32], occlusion: NDArray[np.float32], *, width: int, height: int
    ) -> FlowField:
        """The track of flow on any grid, for frames of `width` x `height`."""


class CameraMotion(Track):
    """Tracks of a camera's motion, as homographies."""

    homography: NDArray[np.float64]  # [T, 3, 3] from the reference frame to frame t, in pixels
    reference: NDArray[np.int64]  # [T] number of the reference frame
    residual: NDArray[np.float32]  # [T] error in pixels; NaN where camera tracking failed

    @abstractmethod
    def motion(self) -> NDArray[np.float64]:
        """[T] largest displacement of a frame corner from the reference frame, in pixels."""

    @abstractmethod
    def central(self, reference: int) -> int:
        """The most central frame of one background. Raises `ValueError` if there is none."""

    @abstractmethod
    def steady(self) -> NDArray[np.float64]:
        """[T, 3, 3] from each frame to the central one of its background."""


class CameraSignal(ArraySignal):
    """Its frames tell how the camera, and with it the background, moves."""

    @abstractmethod
    def assemble(self, arrays: dict[str, Any], *, width: int, height: int) -> CameraMotion: ...


# Signals that training reads beside the conditions of the model, if a clip has them.
BESIDE: tuple[type[Signal], ...] = (LabelSignal, FlowSignal, CameraSignal)
