"""Detectors of people and faces in single frames, whatever library runs their networks.

Extractors, cropping and `v2v doctor` see only the classes here, so that another backend can stand
beside MediaPipe. A frame is RGB uint8 [H, W, 3]. Points are float32 pixels of the frame: x, y, z
(smaller is nearer), and a score in [0, 1].

The points are those of BlazePose (33, `v2v.signals.pose.BODY`), of its hands (21) and of the face
mesh (478, `v2v.signals.face`): a backend with other points must map them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Points = NDArray[np.float32]  # [N, 4]: x, y, z, score
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Body:
    """One person: points [33, 4]; hands [21, 4] and mask [H, W] (0 to 1) if they were asked for."""

    points: Points
    left_hand: Points | None = None
    right_hand: Points | None = None
    mask: NDArray[np.float32] | None = None


class Detector(ABC):
    """A network in memory: use it as a context manager, or call `close`."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.close()


class BodyDetector(Detector):
    @abstractmethod
    def find(self, frame: Frame) -> Body | None:
        """The person in the frame. A tracking detector searches near the previous one first."""


class FaceDetector(Detector):
    @abstractmethod
    def find(self, frame: Frame) -> Points | None:
        """The mesh [478, 4] of one face ([468, 4] without irises), or None."""


class FaceBoxDetector(Detector):
    @abstractmethod
    def find(self, frame: Frame) -> list[Box]:
        """Boxes from eyebrows to chin, of small faces too."""


class PersonMaskDetector(Detector):
    @abstractmethod
    def find(self, frame: Frame) -> NDArray[np.float32]:
        """[H, W] probability that a pixel belongs to a person near the camera."""


class Backend(ABC):
    """A library's networks."""

    @abstractmethod
    def body(
        self, *, hands: bool, mask: bool, min_detection: float, min_tracking: float
    ) -> BodyDetector:
        """Tracks one person: it keeps the region of the previous frame."""

    @abstractmethod
    def still_body(self) -> BodyDetector:
        """Searches every frame anew."""

    @abstractmethod
    def face(
        self,
        *,
        tracking: bool,
        irises: bool = True,
        min_detection: float = 0.5,
        min_tracking: float = 0.5,
    ) -> FaceDetector: ...

    @abstractmethod
    def face_boxes(self, *, min_detection: float = 0.5) -> FaceBoxDetector: ...

    @abstractmethod
    def person_mask(self) -> PersonMaskDetector: ...


@cache
def detectors() -> Backend:
    """The backend. Raises `MissingLibrary` if its library cannot be loaded."""
    from v2v.preprocess.mediapipe_backend import MediaPipe

    return MediaPipe()


def box_of(points_xy: NDArray[np.float32]) -> Box:
    """Bounding box of points [N, 2]."""
    low, high = points_xy.min(axis=0), points_xy.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])
