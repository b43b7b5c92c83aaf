"""Which windows a training step reads.

A window is a clip, a first frame, a stride, a length and a `Placement`:

    frames of the clip   0 1 2 3 | 4 5 6 7 8 9 10 11 12 13 | 14 15 16
                          shot 0 |        shot 1           | held out
    length 4, stride 2             .   5   7   9    11

A window never crosses a cut or reaches into the held-out frames. It depends only on the seed and
an index: any process can make any batch in any order, and a resumed run gets the same batches as
an uninterrupted one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from v2v.data.references.choosing import Chooser
from v2v.data.store import ClipStore
from v2v.data.transforms import Placement
from v2v.errors import ConfigError, StoreConflict

SLOTS = 1 << 20  # indices reserved for the windows of one step
Size = int | tuple[int, int]  # shorter side, or (height, width)
# Each purpose has its own random numbers: enabling one augmentation does not change the others.
WHERE, PLACE, COLOUR, STYLE, SIGNALS, REFERENCES = range(6)


class WindowRequest(Protocol):
    """What the loader must know about a training step; `training.schedule` plans the steps."""

    @property
    def step(self) -> int: ...  # from 0; determines the windows together with the seed

    @property
    def length(self) -> int: ...  # frames per window

    @property
    def size(self) -> Size: ...

    @property
    def batch(self) -> int: ...  # windows across all processes


@dataclass(frozen=True)
class TrainingClip:
    """One clip store and its split into training and held-out frames."""

    folder: Path
    source: tuple[int, int]  # (height, width) as stored
    count: int
    rate: float  # frames per second
    train: tuple[int, int]  # first frame and end (excluded)
    held_out: tuple[int, int]
    shots: tuple[tuple[int, int], ...]  # the training frames of each shot

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class WindowSample:
    """One window: which frames are read and how they are placed."""

    clip: int
    start: int
    stride: int
    length: int
    placement: Placement
    index: int | None = None  # seeds its augmentation; None: no augmentation
    continues: bool = False  # continues the previous window: the first frame keeps its flow
    chooser: Chooser | None = None  # chooses references; has processed the frames before `start`

    @property
    def stop(self) -> int:
        """End (excluded) of the frames that the window spans."""
        return self.start + (self.length - 1) * self.stride + 1

    @property
    def frames(self) -> range:
        return range(self.start, self.stop, self.stride)


def random_of(seed: int, index: int, *purpose: int) -> np.random.Generator:
    """The random numbers of window `index` for one purpose."""
    return np.random.default_rng([seed, index, *purpose])


def trained_part(count: int, holdout: float) -> tuple[int, int]:
    """First frame and end (excluded) of the training part of `count` frames."""
    return 0, count - min(math.ceil(count * holdout), count)


def training_clip(store: ClipStore, holdout: float) -> TrainingClip:
    count = len(store)
    _, end = trained_part(count, holdout)
    frames = store.record.frames
    shots = ((a, min(b, end)) for a, b in store.shots)
    return TrainingClip(
        folder=store.folder, source=(frames.height, frames.width), count=count,
        rate=float(store.rate), train=(0, end), held_out=(end, count),
        shots=tuple((a, b) for a, b in shots if a < b),
    )  # fmt: skip


def common_shape(clips: Sequence[TrainingClip]) -> tuple[tuple[str, ...], float]:
    """A note for each clip that differs, and the most common aspect ratio (width / height)."""
    frames: Counter[int] = Counter()
    for clip in clips:
        frames[_shape_class(clip)] += clip.count
    most = frames.most_common(1)[0][0]
    model = next(clip for clip in clips if _shape_class(clip) == most)
    shape = model.source[1] / model.source[0]
    notes = []
    for clip in clips:
        own = clip.source[1] / clip.source[0]
        kept = min(own / shape, shape / own)
        if kept < 0.5:
            raise StoreConflict(
                f"{clip.folder} has frames of {clip.source[1]}x{clip.source[0]}, most others have"
                f" {model.source[1]}x{model.source[0]}: cropping would remove more than half",
                hint="train on clips of one aspect ratio, or preprocess with --crop person",
            )
        if kept < 0.98:
            notes.append(
                f"{clip.name}: {1 - kept:.0%} of the picture is cropped to the aspect ratio of the"
                f" other clips, {model.source[1]}x{model.source[0]}"
            )
        if not 0.8 < clip.rate / clips[0].rate < 1.25:
            notes.append(
                f"{clip.name}: {clip.rate:.4g} frames per second, {clips[0].name} has"
                f" {clips[0].rate:.4g}: the same motion looks faster in one of them"
            )
    return tuple(notes), shape


def _shape_class(clip: TrainingClip) -> int:
    """Aspect ratio bin; differences from rounding to even sides stay within one bin."""
    return round(math.log(clip.source[1] / clip.source[0]) / 0.04)


def shard(step: WindowRequest, *, rank: int = 0, world: int = 1) -> range:
    """Indices of the windows of a step that process `rank` of `world` makes.

    Concatenated, the shards of all processes are the batch of a single process.
    Raises `ConfigError` if the batch is not divisible by `world`.
    """
    if step.batch < world or step.batch % world:
        raise ConfigError(
            f"a batch of {step.batch} cannot be split evenly across {world} processes",
            hint=f"set the batch to a multiple of {world}",
        )
    assert step.batch <= SLOTS
    own = step.batch // world
    return range(step.step * SLOTS + rank * own, step.step * SLOTS + (rank + 1) * own)
