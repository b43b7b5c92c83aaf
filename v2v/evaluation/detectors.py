"""Detect poses, faces and label maps on rendered frames, with the networks of the extractors.

The same detector runs on the real frames and the output, at the same size, without smoothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.config import PreprocessSettings, load_config
from v2v.images import Picture
from v2v.preprocess.extractor import ClipContext
from v2v.video.plan import Geometry

SIDE = 512  # pixels, shorter side to which small frames are enlarged: the networks expect it


class Detector(Protocol):
    """A detector that runs on the frames of one video, in order."""

    def __call__(self, picture: Picture) -> NDArray[Any]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class FrameFormat:
    """Frame size and rate of a video, needed to set up a detector."""

    height: int
    width: int
    rate: Fraction


class Extracting:
    """Runs one extractor on one video, frame by frame."""

    def __init__(
        self, signal: str, footage: FrameFormat, values: dict[str, Any] | None = None
    ) -> None:
        self.footage = footage
        factor = max(SIDE / min(footage.height, footage.width), 1.0)
        self.size = round(footage.width * factor), round(footage.height * factor)
        width, height = self.size
        # Disable the jump threshold of the trackers: rendered people may appear anywhere.
        follow = {"pose.max_jump": 1e3, "face.max_jump": 1e3}
        context = ClipContext(
            name="rendered", width=width, height=height, rate=footage.rate, count=1 << 30,
            geometry=Geometry((0, 0, width, height), width, height), sources=None,
            source_frames=1 << 30, upright=self.size,
        )  # fmt: skip
        settings = load_config(PreprocessSettings, "preprocess", values=follow | (values or {}))
        self.extractor = import_module(f"v2v.preprocess.{signal}").Extractor(settings, context)
        self.extractor.begin(None)
        self.index = 0
        self.previous: Picture | None = None

    def record(self, picture: Picture) -> Any:
        if picture.shape[1::-1] != self.size:
            picture = np.asarray(
                cv2.resize(picture, self.size, interpolation=cv2.INTER_CUBIC), np.uint8
            )
        found = self.extractor.step(self.index, picture, self.previous, cut=False)
        self.index, self.previous = self.index + 1, picture
        return found

    def close(self) -> None:
        self.extractor.end()


class Landmarks(Extracting):
    """Detects points [N, 3] x, y, score in pixels of the frame; NaN if nothing is found."""

    def __call__(self, picture: Picture) -> NDArray[np.float32]:
        points = np.asarray(self.record(picture)["points"], np.float32)
        points = points[:, [0, 1, -1]]  # face points have a depth before the score
        points[:, 0] *= self.footage.width / self.size[0]
        points[:, 1] *= self.footage.height / self.size[1]
        return points


class Labels(Extracting):
    """Detects a label map [H, W]."""

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        labels = np.asarray(self.record(picture)["segmentation.mkv"], np.uint8)
        size = self.footage.width, self.footage.height
        return np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def detectors_for(
    signals: tuple[str, ...], segmenter: str | None, footage: FrameFormat
) -> dict[str, Callable[[], Detector]]:
    """The detectors that measure what these signals drive, by name.

    Args:
        segmenter: the segmentation backend for label maps; None: labels are not detected.
    """
    made: dict[str, Callable[[], Detector]] = {}
    for name in ("pose", "face"):
        if name in signals:
            made[name] = lambda name=name: Landmarks(name, footage)  # type: ignore[misc]
    if segmenter is not None:
        values = {"segmentation.backend": segmenter}
        made["labels"] = lambda: Labels("segmentation", footage, values)
    return made


def find(
    pictures: Iterable[Picture], count: int, make: Callable[[], Detector], path: Path
) -> NDArray[Any]:
    """[count, ...] detections on `count` frames, memory-mapped because they may be large."""
    found: NDArray[Any] | None = None
    detector = make()
    try:
        for index, picture in enumerate(pictures):
            detected = detector(picture)
            if found is None:
                found = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                    path, "w+", dtype=detected.dtype, shape=(count, *detected.shape)
                )
            found[index] = detected
    finally:
        detector.close()
    assert found is not None
    return found
