"""What flows through a rendering: signals in, frames out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from v2v.pixels import to_picture
from v2v.signals import Track
from v2v.types import GeneratorState
from v2v.video.audio import Sound

Picture = NDArray[np.uint8]  # RGB [H, W, 3]
CHUNK = 4  # frames whose conditions are computed together
# increment when the same weights produce different frames: invalidates old files
RENDERER_VERSION = 4


@dataclass(frozen=True)
class ConditioningSource:
    """The model's signals for every frame of a rendering, and their provenance."""

    pipeline: str  # its name, to display
    count: int  # frames
    rate: Fraction  # frames per second
    tracks: Callable[[int, int], Sequence[Track]]  # frames i to k -> signals, in model pixels
    settings: dict[str, Any]  # everything else that determines the frames
    source: str  # file name of the driving video
    source_sha256: str
    pictures: Callable[[int], Iterator[Picture]] | None = None  # driving frames, from i on
    sound: Sound | None = None
    before: Callable[[], GeneratorState] | None = None  # initial state; None: the empty state
    notes: tuple[str, ...] = ()  # notes for the user
    # Frames i to k -> uint8 [n, H, W, 4] the background of each: RGB and a valid mask (255 =
    # known); None: a background camera, the model's background plate.
    behind: Callable[[int, int], NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class RenderResult:
    """The files of a finished render."""

    video: Path
    comparison: Path | None
    frames: int
    rate: Fraction
    width: int
    height: int
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        return {
            "video": str(self.video),
            "comparison": str(self.comparison) if self.comparison else None,
            "frames": self.frames, "fps": str(self.rate),
            "width": self.width, "height": self.height, "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True)
class RenderedFrame:
    """One rendered frame."""

    frame: Tensor  # [3, H, W] in [-1, 1]
    state: GeneratorState  # after it
    signal: Track  # this frame of the model's first signal

    def picture(self) -> Picture:
        """RGB uint8 [H, W, 3]."""
        return to_picture(self.frame)


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def row(index: int) -> Callable[[Tensor], Tensor]:
    """For `Condition.map`: select one frame of the batch."""
    return lambda tensor: tensor[index : index + 1]
