"""The references of a clip: pictures, masks and points, and what is derived from them once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from v2v.signals import Track
from v2v.signals.parts import Part, Rig

T = TypeVar("T")


@dataclass(frozen=True)
class References:
    """R frames of a person in the model's pixels, with masks and points.

    Attributes:
        pictures: uint8 [R, H, W, 3].
        masks: uint8 [R, H, W], 255 on the person.
        track: their signal, R frames.
        frames: [R] their frame numbers in the clip; -1 for pictures added by hand.
        whole: whether candidates include the background; true without a background plate.
    """

    pictures: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    track: Track
    frames: NDArray[np.int64]
    whole: bool = False
    # Cache of data derived from a reference, by kind and index of the reference.
    _cache: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.track.parts

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pictures.shape[1], self.pictures.shape[2]

    def scaled(self, size: tuple[int, int]) -> References:
        """The same references for frames of another size."""
        if size == self.size:
            return self

        def resize(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
            small = [cv2.resize(p, size[::-1], interpolation=cv2.INTER_AREA) for p in pictures]
            return np.asarray(small, np.uint8)

        return replace(
            self, pictures=resize(self.pictures), masks=resize(self.masks),
            track=self.track.scaled(size[1], size[0]), _cache={},
        )  # fmt: skip

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All data besides the pictures: the track's arrays and `frames`."""
        own = {name: getattr(self.track, name) for name in self.track.per_frame}
        return own | {"frames": self.frames}

    @cached_property
    def points(self) -> NDArray[np.float32]:
        """[R, N, 2] points of the parts in pixels; NaN if missing."""
        return self.track.part_points()

    @cached_property
    def sizes(self) -> NDArray[np.float32]:
        """[R] body sizes in pixels."""
        return self.track.body_size()

    @cached_property
    def control_points(self) -> torch.Tensor:
        """[R, K, 3] control points; all 0 if not detected."""
        return self.track.control_point_tensor()

    @cached_property
    def rig(self) -> Rig:
        return Rig(self.parts)

    def derived(self, kind: str, index: int, make: Callable[[], T]) -> T:
        """What `make` derives from reference `index`, made once."""
        key = (kind, index)
        if key not in self._cache:
            self._cache[key] = make()
        found: T = self._cache[key]
        return found
