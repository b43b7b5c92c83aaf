"""Clips to batches: which frames a training step sees, and how they get there.

A window is a clip, a first frame, a stride, a length and a `Placement`:

    frames of the clip   0 1 2 3 | 4 5 6 7 8 9 10 11 12 13 | 14 15 16
                          shot 0 |        shot 1           | held out
    length 4, stride 2             .   5   7   9    11

It never crosses a cut, nor into the frames held out. All about it follows from the seed and an
index, so any process can make any batch, in any order, and a resumed run sees what a straight
one would have seen.

Stored flow is from frame to frame; over a stride it is composed. The first frame of a window has
no past: its flow is 0 and all of it is occluded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from v2v.data.background import BackgroundPlate, Backgrounds
from v2v.data.references import (
    Chooser,
    References,
    as_condition,
    reference_signal,
)
from v2v.data.store import ClipStore
from v2v.data.transforms import (
    AugmentationSettings,
    Pictures,
    Placement,
    colour_matrix,
    downscale_of,
    recolour,
    shrink,
)
from v2v.data.video import read_range
from v2v.errors import (
    ConfigError,
    SignalMissing,
    StoreConflict,
    StoreError,
    TooFewFrames,
    UnknownName,
    UsageError,
    V2VError,
)
from v2v.runtime import cores
from v2v.signals import Track, load_signal
from v2v.signals._landmarks import planes
from v2v.signals.flow import FlowTrack, unpack
from v2v.signals.segmentation import CITYSCAPES, LabelTrack
from v2v.types import REFERENCE_CHANNELS, Batch
from v2v.warp import compose, warp

EXTRAS = (
    "flow",
    "foreground",
    "background_plate",
    "style",
    "instances",
    "boxes",
    "control_points",
    "references",
)
BLOCK = 8  # frames that are cached together: the group length of frames.mp4, decoded in one go
PIECE = 32  # frames that are read together where nothing is cached
SMALLEST_BOX = 12  # pixels shown; a discriminator sees nothing in less
NEAR_SECONDS = 0.5  # a training window sees no reference within this time of it,
NEAR_SHARE = 0.1  # nor within this share of the footage
SLOTS = 1 << 20  # indices kept free for the windows of one step

# Independent random numbers for each purpose: turning one variation on leaves the others alone.
_WHERE, _PLACE, _COLOUR, _STYLE, _SIGNALS, _REFERENCES = range(6)

Size = int | tuple[int, int]  # shorter side, or (height, width)


class WindowRequest(Protocol):
    """What the loader must know of a training step; `training.schedule` plans them."""

    @property
    def step(self) -> int: ...  # which, from 0: with the seed, it decides the windows

    @property
    def length(self) -> int: ...  # frames of a window

    @property
    def size(self) -> Size: ...

    @property
    def batch(self) -> int: ...  # windows, over all processes


@dataclass(frozen=True)
class TrainingClip:
    """One clip store, and which of its frames are for what."""

    folder: Path
    source: tuple[int, int]  # (height, width) as stored
    count: int
    rate: float  # frames a second
    train: tuple[int, int]  # first frame and end (excluded)
    held_out: tuple[int, int]
    shots: tuple[tuple[int, int], ...]  # those parts of shots that are for training

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class WindowSample:
    """One window: what is read, and how it is shown."""

    clip: int
    start: int
    stride: int
    length: int
    placement: Placement
    index: int | None = None  # whose random numbers vary it; None: unchanged
    continues: bool = False  # the frame before `start` was seen: flow leads to it
    chooser: Chooser | None = None  # of references, that has seen the frames before `start`

    @property
    def stop(self) -> int:
        """The end (excluded) of the frames that the window spans."""
        return self.start + (self.length - 1) * self.stride + 1

    @property
    def frames(self) -> range:
        return range(self.start, self.stop, self.stride)


class ClipDataset:
    """Several clips as a source of training windows.

    Args:
        clips: folders of clip stores, or opened ones.
        signals: what the model is conditioned on; their channels are concatenated in this order.
        seed: of everything random here.
        augmentation: how windows are varied; None leaves them as they are.
        extras: what a batch carries besides, as far as the clips have it: of `EXTRAS`.
        holdout: share of each clip, at its end, that no training window touches.
        max_stride: windows take every 1st to `max_stride`-th frame, at random.
        multiple: both sides of a frame are divisible by this.
        cache: mebibytes of decoded frames, flow and label maps kept in memory, by each process.
        plates: for each clip its background, or None.
        candidates: warped references for each frame (K), of the `references` that are set later.

    Attributes:
        clips: what was opened, in order; `Batch.clip` counts in it.
        channels: C of `Batch.signals`.
        boxes: names of the K boxes of `Batch.boxes`.
        handles: N of `Batch.control_points`; 0 where no signal has points.
        references: for each clip real frames of the person, as `placement` shows the clip; empty
            until they are set.
        notes: sentences on what the user should know, e.g. that a clip is cropped.

    Raises `UnknownName`, `SignalMissing`, `StoreConflict` (clips that do not go together),
    `StoreError`, `ConfigError`; those of `ClipStore.open`.
    """

    def __init__(
        self,
        clips: Sequence[str | Path | ClipStore],
        signals: Sequence[str],
        *,
        seed: int,
        augmentation: AugmentationSettings | None = None,
        extras: Sequence[str] = ("flow", "foreground", "background_plate", "boxes"),
        holdout: float = 0.15,
        max_stride: int = 1,
        multiple: int = 16,
        cache: int = 512,
        background_plates: Sequence[BackgroundPlate | None] | None = None,
        candidates: int = 1,
    ) -> None:
        if not clips:
            raise UsageError("no clip to train on", hint="name one or more clip stores")
        for extra in extras:
            if extra not in EXTRAS:
                raise UnknownName.among("part of a batch", extra, EXTRAS)
        if not 0 <= holdout < 1:
            raise ConfigError(f"holdout cannot be {holdout}: a share from 0 to below 1", hint=None)
        if max_stride < 1:
            raise ConfigError(f"max_stride cannot be {max_stride}: 1 or more", hint=None)
        self.signals = tuple(signals)
        self.seed = seed
        self.augmentation = augmentation
        self.extras = tuple(extras)
        self.max_stride = max_stride
        self.multiple = multiple
        self.cache = cache
        stores = [c if isinstance(c, ClipStore) else ClipStore.open(c) for c in clips]
        self.records = [(store.folder, store.record) for store in stores]
        self.channels = sum(self._check_signal(stores, name) for name in self.signals)
        self.clips = tuple(_clip(store, holdout) for store in stores)
        self.notes, self._shape = _common_shape(self.clips)
        self.background_plates: list[BackgroundPlate | None] = list(
            background_plates or [None] * len(stores)
        )
        if len(self.background_plates) != len(stores):
            raise UsageError(
                f"{len(self.background_plates)} plates for {len(stores)} clips",
                hint="give one for each",
            )
        self.candidates = candidates
        self.references: tuple[References, ...] = ()
        self._has = {name: all(name in s.record.signals for s in stores) for name in _READ}
        self._foreground = self._foreground_classes(stores)
        self.boxes = self._box_names()
        self.control_points = self._count_control_points()
        self._backgrounds: dict[tuple[int, tuple[int, int]], Backgrounds] = {}
        self._scaled: dict[tuple[int, tuple[int, int]], References] = {}
        self._tables: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._reader: FrameCache | None = None
        self._present = [_presence(store, self.signals) for store in stores]

    # ------------------------------------------------------------ checks at opening

    @staticmethod
    def _check_signal(stores: Sequence[ClipStore], name: str) -> int:
        """Channels of a signal that all clips have, and have alike."""
        definition = load_signal(name)
        for store in stores:
            if name not in store.record.signals:
                raise SignalMissing(
                    f"{store.folder} has no {name} (it has: {', '.join(store.signals) or 'none'})",
                    hint=f"add it with: v2v preprocess {store.folder} --signal {name}",
                )
        first, *others = ((s, s.record.signals[name].spec) for s in stores)
        channels = definition.channels(first[1])
        for store, spec in others:
            if definition.channels(spec) != channels:
                raise StoreConflict(
                    f"{name} has {definition.channels(spec)} channels in {store.folder}, but"
                    f" {channels} in {first[0].folder}",
                    hint="make both with the same backend and classes, with --overwrite",
                )
            if spec.get("classes") != first[1].get("classes"):
                raise StoreConflict(
                    f"the classes of {name} in {store.folder} are not those in {first[0].folder}",
                    hint="make both with the same backend and classes, with --overwrite",
                )
        return channels

    def _foreground_classes(self, stores: Sequence[ClipStore]) -> list[NDArray[np.bool_]] | None:
        """For each clip, [256] true for the class ids that are in the foreground."""
        if "foreground" not in self.extras or not self._has["segmentation"]:
            return None
        tables = []
        for store in stores:
            classes = tuple(store.record.signals["segmentation"].spec["classes"])
            # In street scenes all that moves is in front; elsewhere it is the person.
            names = _MOVING if classes == tuple(CITYSCAPES) else {"person"}
            table = np.zeros(256, np.bool_)
            table[[i for i, name in enumerate(classes) if name in names]] = True
            tables.append(table)
        return tables if all(table.any() for table in tables) else None

    def _box_names(self) -> tuple[str, ...]:
        if "boxes" not in self.extras:
            return ()
        store = ClipStore(*self.records[0])
        return tuple(n for s in self.signals if s in _POINTS for n in store.track(s, 0, 1).regions)

    def _count_control_points(self) -> int:
        if "control_points" not in self.extras:
            return 0
        store = ClipStore(*self.records[0])
        return sum(store.track(s, 0, 1).control_points().shape[1] for s in self.signals)

    @property
    def has_foreground(self) -> bool:
        """Whether batches say what is in front."""
        return self._foreground is not None

    # ------------------------------------------------------------ sizes

    def frame_size(self, size: Size) -> tuple[int, int]:
        """(height, width) of frames whose shorter side is `size`. Raises `ConfigError`.

        The longer side is the one divisible by `multiple` that keeps most of the picture. A
        (height, width) is taken as it is: the stages of a run halve a size found here.
        """
        if isinstance(size, tuple):
            return size
        if size < 1 or size % self.multiple:
            near = max(round(size / self.multiple), 1) * self.multiple
            raise ConfigError(
                f"frames of {size} pixels do not fit the model: a multiple of {self.multiple} is"
                " needed",
                hint=f"the nearest is {near}",
            )
        stored = min(min(clip.source) for clip in self.clips)
        if size > 2 * stored:
            raise ConfigError(
                f"frames of {size} pixels cannot be had from clips stored with {stored}",
                hint=f"train at {stored // self.multiple * self.multiple or self.multiple}, or run"
                f" v2v preprocess with --size {size}",
            )
        longer = round(size * max(self._shape, 1 / self._shape) / self.multiple) * self.multiple
        return (longer, size) if self._shape < 1 else (size, longer)

    def downscale(self, clip: int, size: tuple[int, int]) -> int:
        """By which whole factor a clip's frames are shrunk before they are placed.

        The rest is less than a factor of 2 at the strongest zoom, so nothing is lost; large
        footage takes far less memory and time.
        """
        zoom = self.augmentation.scale[1] if self.augmentation else 1.0
        return downscale_of(self.clips[clip].source, size, zoom)

    def placement(self, clip: int, size: Size) -> Placement:
        """How rendering sees a clip's frames: unvaried."""
        shape = self.frame_size(size)
        return Placement.plain(
            self.clips[clip].source, shape, downscale=self.downscale(clip, shape)
        )

    # ------------------------------------------------------------ drawing

    def starts(self, length: int, stride: int) -> NDArray[np.int64]:
        """[N, 3] clip, first frame and stride of every window there is.

        A shot too short for `stride` gives windows of the largest stride it has room for; a
        window in most of whose frames a signal is missing is left out. Raises `StoreError`.
        """
        found = self._tables.get((length, stride))
        if found is not None:
            return found
        rows = [np.empty((0, 3), np.int64)]
        for number, (clip, present) in enumerate(zip(self.clips, self._present, strict=True)):
            for first, stop in clip.shots:
                if stop - first < length:
                    continue
                step = min(stride, (stop - first - 1) // (length - 1)) if length > 1 else 1
                count = stop - first - (length - 1) * step
                seen = sum(
                    present[first + i * step : first + i * step + count].astype(np.int32)
                    for i in range(length)
                )
                good = first + np.flatnonzero(np.asarray(seen) * 2 >= length)
                rows.append(np.stack(np.broadcast_arrays(number, good, step), axis=1))
        table = np.concatenate(rows)
        if not len(table):
            raise self._too_few(length)
        self._tables[length, stride] = table
        return table

    def _too_few(self, length: int) -> StoreError:
        longest = max((b - a for clip in self.clips for a, b in clip.shots), default=0)
        if longest >= length:
            names = " and ".join(self.signals)
            return SignalMissing(
                f"no {length} frames in a row have {names} in at least half of them",
                hint="look at preview.mp4 of the clips; use footage in which it is seen longer",
            )
        total = sum(clip.count for clip in self.clips)
        train = sum(b - a for clip in self.clips for a, b in clip.shots)
        held_out = sum(b - a for a, b in (clip.held_out for clip in self.clips))
        return TooFewFrames(
            f"too few frames: a window needs {length} in a row, the longest shot for training has"
            f" {longest} ({total} frames in all, {train} for training, {held_out} held out)",
            hint="use longer footage, shorter windows (-s schedule.lengths=[1,2]), or hold out less"
            " (-s data.hold_out=0)",
        )

    def draw(self, index: int, length: int, size: Size) -> WindowSample:
        """Window `index` of `length` frames with a shorter side of `size` pixels.

        A function of the seed and the arguments alone. Every start is as likely as any other.
        Raises `StoreError` (too few frames), `SignalMissing`, `ConfigError`.
        """
        shape = self.frame_size(size)
        where = self._random(index, _WHERE)
        stride = int(where.integers(1, self.max_stride + 1))
        starts = self.starts(length, stride)
        clip, start, stride = (int(v) for v in starts[where.integers(len(starts))])
        placement = self.placement(clip, shape)
        if self.augmentation is not None:
            placement = Placement.sampled(
                self.clips[clip].source, shape, self.augmentation, self._random(index, _PLACE),
                downscale=placement.downscale,
            )  # fmt: skip
        return WindowSample(clip, start, stride, length, placement, index)

    def _random(self, index: int, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index, *purpose])

    # ------------------------------------------------------------ batches

    def batch(self, indices: Sequence[int], length: int, size: Size) -> Batch:
        """The windows `indices`, side by side. Raises as `draw` does, and what reading raises."""
        return self.load([self.draw(index, length, size) for index in indices])

    def load(self, draws: Sequence[WindowSample]) -> Batch:
        """Windows of one length and frame size, side by side."""
        length, size = draws[0].length, draws[0].placement.size
        assert all((d.length, d.placement.size) == (length, size) for d in draws), draws
        batch = self._empty(len(draws), length, size)
        for number, draw in enumerate(draws):
            self._fill(batch, number, draw)
        return batch

    def sequence(
        self, clip: int, start: int | None = None, stop: int | None = None, *,
        size: Size, chunk: int = 16,
    ) -> Iterator[Batch]:  # fmt: skip
        """Frames `start` to `stop` of a clip, unvaried, `chunk` at a time; one window a batch.

        By default those held out. Flow and occlusion run on from chunk to chunk. Raises
        `UsageError` for frames that do not exist, `ConfigError` for a size that does not fit.
        """
        own = self.clips[clip]
        start = own.held_out[0] if start is None else start
        stop = own.held_out[1] if stop is None else stop
        if not 0 <= start < stop <= own.count:
            raise UsageError(
                f"frames {start} to {stop} of {own.folder} do not exist",
                hint=f"the clip has frames 0 to {own.count}; held out: {own.held_out[0]} to"
                f" {own.held_out[1]} (the ends excluded)",
            )
        placement, chooser = self.placement(clip, size), None
        if self._carries("references"):
            chooser = Chooser(self._references(clip, placement), self.candidates)
        for first in range(start, stop, chunk):
            count, runs_on = min(chunk, stop - first), first > start
            draw = WindowSample(
                clip, first, 1, count, placement, continues=runs_on, chooser=chooser
            )
            yield self.load([draw])

    def _empty(self, count: int, length: int, size: tuple[int, int]) -> Batch:
        def room(name: str, *shape: int, kind: torch.dtype = torch.float32) -> Tensor | None:
            return torch.empty(count, *shape, dtype=kind) if self._carries(name) else None

        return Batch(
            frames=torch.empty(count, length, 3, *size),
            signals=torch.empty(count, length, self.channels, *size),
            clip=torch.empty(count, dtype=torch.int64),
            flow=room("flow", length, 2, *size),
            occlusion=room("flow", length, 1, *size),
            foreground=room("foreground", length, 1, *size),
            # One for all frames where no camera moves.
            background_plate=room(
                "background_plate", length if self._camera_moves() else 1, 4, *size
            ),
            style=room("style", 3, *size),
            instances=room("instances", length, 1, *size, kind=torch.int64),
            boxes=room("boxes", length, len(self.boxes), 4),
            control_points=room("control_points", length, self.control_points, 3),
            references=room("references", length, self.candidates, REFERENCE_CHANNELS, *size),
        )

    def _carries(self, name: str) -> bool:
        """Whether a batch has this part: it was asked for, and every clip has it."""
        if name not in self.extras:
            return False
        if name == "flow":
            return self._has["flow"]
        if name == "foreground":
            return self.has_foreground
        if name == "background_plate":
            return all(background_plate is not None for background_plate in self.background_plates)
        if name == "instances":
            specs = (record.signals.get("segmentation") for _, record in self.records)
            return all(signal is not None and signal.spec["instances"] for signal in specs)
        if name == "boxes":
            return bool(self.boxes)
        if name == "references":
            return bool(self.references)
        return name == "style" or self.control_points > 0

    def _fill(self, batch: Batch, number: int, draw: WindowSample) -> None:
        """Read one window into its place in the batch."""
        place, read = draw.placement, self._open()
        varied = self.augmentation if draw.index is not None else None
        batch.clip[number] = draw.clip
        colour = None
        if varied and varied.colour and draw.index is not None:
            draws = self._random(draw.index, _COLOUR).uniform(-1, 1, 4)
            colour = colour_matrix(varied.colour, torch.from_numpy(draws))

        def paint(placed: Pictures, out: Tensor) -> None:
            if colour is not None:
                placed = recolour(placed, colour)
            planes(placed[None], out[None].numpy())

        def show(picture: Pictures, out: Tensor) -> None:
            paint(place.picture(picture), out)

        if batch.references is not None:
            self._fill_references(batch.references[number], draw, read, colour)

        for t, picture in enumerate(read.frames(draw)):
            show(picture, batch.frames[number, t])
        if batch.background_plate is not None:
            out = batch.background_plate[number]
            shown = self._behind(draw, len(out))
            for plane, behind in zip(out, shown, strict=False):
                paint(np.ascontiguousarray(behind[..., :3]), plane[:3])
                plane[3] = torch.from_numpy(behind[..., 3]).float().div_(255)
            out[len(shown) :] = out[0]
        if batch.style is not None:
            first, stop = self.clips[draw.clip].train
            other = (first + stop) // 2
            if draw.index is not None:
                other = int(self._random(draw.index, _STYLE).integers(first, stop))
            (picture,) = read.frames(WindowSample(draw.clip, other, 1, 1, place, draw.index))
            show(picture, batch.style[number])

        labels = flow = None
        if "segmentation" in self.signals or batch.foreground is not None or (
            batch.instances is not None
        ):  # fmt: skip
            labels = cast(LabelTrack, place.track(read.labels(draw)))
        if "flow" in self.signals or batch.flow is not None:
            flow = self._flow(read, draw)
        if batch.flow is not None and batch.occlusion is not None:
            assert flow is not None
            batch.flow[number] = torch.from_numpy(flow.flow)
            batch.occlusion[number] = torch.from_numpy(flow.occlusion)
        if batch.foreground is not None:
            assert labels is not None and self._foreground is not None
            front = self._foreground[draw.clip][labels.labels]
            batch.foreground[number, :, 0] = torch.from_numpy(front)
        if batch.instances is not None:
            assert labels is not None and labels.instances is not None
            batch.instances[number, :, 0] = torch.from_numpy(labels.instances.astype(np.int64))
        self._fill_signals(batch, number, draw, {"segmentation": labels, "flow": flow})

    def backgrounds(self, clip: int, size: Size) -> Backgrounds | None:
        """What is behind each frame of a clip whose camera moves, as `placement` shows it."""
        background_plate = self.background_plates[clip]
        if background_plate is None or background_plate.backgrounds is None:
            return None
        key = (clip, self.frame_size(size))
        if key not in self._backgrounds:
            self._backgrounds[key] = background_plate.backgrounds.placed(self.placement(clip, size))
        return self._backgrounds[key]

    def background(self, clip: int, size: Size) -> Pictures:
        """[H, W, 4] RGB, and 255 where known: what a camera that stands still sees of a clip."""
        background_plate, found = self.background_plates[clip], self.backgrounds(clip, size)
        assert background_plate is not None
        if found is not None:
            return found.of()
        return _still(background_plate, self.placement(clip, size))

    def _behind(self, draw: WindowSample, length: int) -> list[Pictures]:
        """[H, W, 4] RGB, and 255 where known, behind each frame of a window.

        One picture for all where the camera stands still.
        """
        background_plate, size = self.background_plates[draw.clip], draw.placement.size
        assert background_plate is not None
        found = self.backgrounds(draw.clip, size)
        if found is None:
            return [_still(background_plate, draw.placement)]
        change = draw.placement.matrix @ np.linalg.inv(self.placement(draw.clip, size).matrix)
        return [
            found.of(draw.start + t * draw.stride, change=change, size=size) for t in range(length)
        ]

    def _camera_moves(self) -> bool:
        return any(
            background_plate is not None and background_plate.backgrounds is not None
            for background_plate in self.background_plates
        )

    def _references(self, clip: int, placement: Placement) -> References:
        """A clip's references at the size of a window that is not zoomed."""
        key = (clip, placement.size)
        if key not in self._scaled:
            self._scaled[key] = self.references[clip].scaled(placement.size)
        return self._scaled[key]

    def _fill_references(
        self, out: Tensor, draw: WindowSample, read: FrameCache, colour: Tensor | None
    ) -> None:
        """Warp references to the frames of a window, into [T, K, 5, H, W]."""
        clip, size = self.clips[draw.clip], draw.placement.size
        plain = self.placement(draw.clip, size)
        references = self._references(draw.clip, plain)
        # Turned over at the end: its parts keep their names.
        place = replace(draw.placement, flip=False)
        name = reference_signal(self.signals)
        assert name is not None
        track = place.track(read.track(name, draw))
        chooser, kept = draw.chooser, np.ones(self.candidates, np.bool_)
        if chooser is None:
            chooser = Chooser(references, self.candidates, banned=_near(references, draw, clip))
        if draw.index is not None and self.augmentation is not None:
            chance = self._random(draw.index, _REFERENCES).random(self.candidates)
            kept = chance >= self.augmentation.reference_drop
        choice = chooser(track).only(kept)
        scale = place.scale[0] / plain.scale[0], place.scale[1] / plain.scale[1]
        shift = (
            (plain.box[0] - place.box[0]) * place.scale[0],
            (plain.box[1] - place.box[1]) * place.scale[1],
        )
        for t, warped in enumerate(references.candidates(track, choice, scale=scale, shift=shift)):
            if draw.placement.flip:
                warped = np.ascontiguousarray(warped[..., ::-1])
            if colour is not None:
                for found in warped:
                    changed = recolour(cv2.merge(list(found[:3])), colour)
                    found[:3] = np.clip(changed, 0, 255).transpose(2, 0, 1)
            out[t] = as_condition(warped)

    def _fill_signals(
        self, batch: Batch, number: int, draw: WindowSample, given: dict[str, Track | None]
    ) -> None:
        varied = self.augmentation if draw.index is not None else None
        channel = box = point_index = 0
        for order, name in enumerate(self.signals):
            track = given.get(name) or draw.placement.track(self._open().track(name, draw))
            # Before points are dropped or moved: boxes and handles say where things really are.
            if batch.control_points is not None:
                points = track.control_point_tensor()
                batch.control_points[number, :, point_index : point_index + points.shape[1]] = (
                    points
                )
                point_index += points.shape[1]
            if batch.boxes is not None and name in _POINTS:
                found = _visible(track.boxes(), track.width, track.height)
                batch.boxes[number, :, box : box + found.shape[1]] = torch.from_numpy(found)
                box += found.shape[1]
            if varied and draw.index is not None:
                random = self._random(draw.index, _SIGNALS, order)
                if varied.jitter:
                    sigma = varied.jitter * min(draw.placement.size) / 512
                    track = track.jittered(random, sigma)
                if varied.drop:
                    track = track.dropped(random, varied.drop)
            drawn = track.tensor(*draw.placement.size)
            batch.signals[number, :, channel : channel + drawn.shape[1]] = drawn
            channel += drawn.shape[1]

    @staticmethod
    def _flow(read: FrameCache, draw: WindowSample) -> FlowTrack:
        """Flow from each frame of a window to the one before it in the window, placed."""
        height, width = draw.placement.size
        if draw.length == 1 and not draw.continues:
            nothing = np.zeros((1, 2, height, width), np.float32)
            return FlowTrack(nothing, np.ones_like(nothing[:, :1]), width, height)
        flow, hidden = unpack(read.flow(draw))
        if draw.stride > 1:
            flow, hidden = compose_over(flow, hidden, draw.stride)
        flow, hidden = draw.placement.flow(flow, hidden)
        if not draw.continues:
            flow[0], hidden[0] = 0, 1
        return FlowTrack(flow, hidden, width, height)

    # ------------------------------------------------------------ processes

    def _open(self) -> FrameCache:
        if self._reader is None:  # in the process that reads, never before it is made
            self._reader = FrameCache(self)
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        """Open files and what was decoded stay in their process."""
        return {**self.__dict__, "_reader": None, "_tables": {}, "_scaled": {}, "_backgrounds": {}}

    def __repr__(self) -> str:
        frames = sum(b - a for a, b in (clip.train for clip in self.clips))
        return (
            f"Windows({len(self.clips)} clip(s), {frames} frames for training,"
            f" signals={'+'.join(self.signals)}, channels={self.channels})"
        )


_READ = ("segmentation", "flow")  # signals that are read for more than the condition
_POINTS = ("pose", "face")
_MOVING = set(list(CITYSCAPES)[24:34])  # from person to bicycle


def _still(background_plate: BackgroundPlate, placement: Placement) -> Pictures:
    valid_mask = np.where(background_plate.valid_mask > 0, 255, 0).astype(np.uint8)
    return np.concatenate(
        [placement.picture(background_plate.picture), placement.picture(valid_mask)[..., None]],
        axis=-1,
    )


def trained_part(count: int, holdout: float) -> tuple[int, int]:
    """First frame and end (excluded) of what is trained on, of `count` frames."""
    return 0, count - min(math.ceil(count * holdout), count)


def _clip(store: ClipStore, holdout: float) -> TrainingClip:
    count = len(store)
    _, end = trained_part(count, holdout)
    frames = store.record.frames
    shots = ((a, min(b, end)) for a, b in store.shots)
    return TrainingClip(
        folder=store.folder, source=(frames.height, frames.width), count=count,
        rate=float(store.rate), train=(0, end), held_out=(end, count),
        shots=tuple((a, b) for a, b in shots if a < b),
    )  # fmt: skip


def _near(references: References, draw: WindowSample, clip: TrainingClip) -> NDArray[np.int64]:
    """References that a training window must not see: those of its own stretch of the footage.

    In use references are of other moments than what is rendered. Were they near in training, the
    network would learn to trust them too much.
    """
    if draw.index is None:
        return np.empty(0, np.int64)
    first, stop = clip.train
    gap = max(NEAR_SECONDS * clip.rate, NEAR_SHARE * (stop - first))
    frames = references.frames
    near = (frames > draw.start - gap) & (frames < draw.stop - 1 + gap) & (frames >= 0)
    return np.flatnonzero(near)


def _common_shape(clips: Sequence[TrainingClip]) -> tuple[tuple[str, ...], float]:
    """Width over height that most frames have, and a note on every clip that differs."""
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
                f"{clip.folder} has frames of {clip.source[1]}x{clip.source[0]}, most others of"
                f" {model.source[1]}x{model.source[0]}: more than half of them would be lost",
                hint="train on clips of one shape, or preprocess with --crop person",
            )
        if kept < 0.98:
            notes.append(
                f"{clip.name}: {1 - kept:.0%} of the picture is cropped to the shape of the"
                f" others, {model.source[1]}x{model.source[0]}"
            )
        if not 0.8 < clip.rate / clips[0].rate < 1.25:
            notes.append(
                f"{clip.name}: {clip.rate:.4g} frames a second, {clips[0].name} has"
                f" {clips[0].rate:.4g}: the same motion looks faster in one"
            )
    return tuple(notes), shape


def _shape_class(clip: TrainingClip) -> int:
    """The same for frames whose aspect differs by no more than rounding to even sides does."""
    return round(math.log(clip.source[1] / clip.source[0]) / 0.04)


def _presence(store: ClipStore, signals: Sequence[str]) -> NDArray[np.bool_]:
    """[T] true where the frame has every signal made of points."""
    present = np.ones(len(store), np.bool_)
    many = 4096  # frames looked at together: an hour of faces would not fit at once
    for name in signals:
        if name in _POINTS:
            for start in range(0, len(store), many):
                stop = min(start + many, len(store))
                present[start:stop] &= store.track(name, start, stop).present()
    return present


def _visible(boxes: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Squares moved inside the picture; NaN for those that are outside or too small."""
    x, y = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
    side = np.minimum(boxes[..., 2] - boxes[..., 0], min(width, height))
    with np.errstate(invalid="ignore"):
        good = (side >= SMALLEST_BOX) & (x > 0) & (x < width) & (y > 0) & (y < height)
    left = np.clip(x - side / 2, 0, width - side)
    top = np.clip(y - side / 2, 0, height - side)
    moved = np.stack([left, top, left + side, top + side], axis=-1)
    return np.where(good[..., None], moved, np.float32(np.nan)).astype(np.float32)


def compose_over(
    flow: NDArray[np.float32], occlusion: NDArray[np.float32], stride: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flow between every `stride`-th frame, from the flow between all of them.

    Args:
        flow: [n, 2, h, w] of consecutive frames, n = (T - 1) * stride + 1.
        occlusion: [n, 1, h, w].

    Returns:
        [T, 2, h, w] and [T, 1, h, w]; hidden is what any step on the way hides. The first frame
        keeps its own flow, which leads one frame back.
    """
    flows, hidden = torch.from_numpy(flow), torch.from_numpy(occlusion)
    last = torch.arange(stride, len(flows), stride)
    whole, covered = flows[last], hidden[last]
    for step in range(1, stride):
        covered = torch.maximum(covered, warp(hidden[last - step], whole))
        whole = compose(whole, flows[last - step])
    return (
        torch.cat([flows[:1], whole]).numpy(),
        torch.cat([hidden[:1], covered]).numpy(),
    )


# ---------------------------------------------------------------- reading


class FrameCache:
    """Decoded frames, flow and label maps of the clips; one a process.

    Clips are kept whole, in the order given, as long as they fit into the cache; the others are
    read window by window. What comes out is the same.
    """

    def __init__(self, windows: ClipDataset) -> None:
        self.windows = windows
        self.stores = [ClipStore(folder, record) for folder, record in windows.records]
        self.blocks: dict[tuple[str, int, int], Any] = {}
        self.grains: tuple[int, ...] = ()
        self.kept: frozenset[int] = frozenset()

    def frames(self, draw: WindowSample) -> Iterator[Pictures]:
        """Each frame of the window, uint8 [h, w, 3], shrunk by its placement's grain."""
        store, downscale = self.stores[draw.clip], draw.placement.downscale

        def read(start: int, stop: int) -> Any:
            return shrink(store.frames(start, stop), downscale)

        for start, block in self._blocks("frames", draw, read):
            for t in draw.frames:
                if start <= t < start + len(block):
                    yield block[t - start]

    def labels(self, draw: WindowSample) -> LabelTrack:
        """The window's label maps, thinned out by its placement's grain."""
        store, downscale = self.stores[draw.clip], draw.placement.downscale

        def read(start: int, stop: int) -> Any:
            track = store.track("segmentation", start, stop)
            return track if downscale == 1 else _thin(cast(LabelTrack, track), downscale)

        found = [
            block[_part(draw, start, len(block))]
            for start, block in self._blocks("labels", draw, read)
        ]
        instances = [track.instances for track in found]
        return LabelTrack(
            labels=np.concatenate([track.labels for track in found]),
            classes=found[0].classes,
            palette=found[0].palette,
            instances=None if instances[0] is None else np.concatenate(instances),
        )

    def flow(self, draw: WindowSample) -> NDArray[np.uint16]:
        """Packed flow of all frames that the window spans, whatever its stride."""
        store = self.stores[draw.clip]
        store.check_signal("flow")

        def read(start: int, stop: int) -> Any:
            return read_range(store.folder / "flow.mkv", start, stop, pixel_format="gray16le")

        found = [
            block[max(draw.start - start, 0) : draw.stop - start]
            for start, block in self._blocks("flow", draw, read)
        ]
        return np.concatenate(found)

    def track(self, name: str, draw: WindowSample) -> Track:
        """Any signal, read as it is: points are mapped from their file, which is fast enough."""
        return self.stores[draw.clip].track(name, draw.start, draw.stop)[:: draw.stride]

    def _blocks(self, kind: str, draw: WindowSample, read: Any) -> Iterator[tuple[int, Any]]:
        """First frame and content of the pieces that together span the window, in order."""
        first = draw.start - draw.start % BLOCK
        if draw.index is None or not self._keeps(draw):
            # In few pieces, for opening a file takes time, yet not a long window as a whole.
            for start in range(draw.start, draw.stop, PIECE):
                yield start, read(start, min(start + PIECE, draw.stop))
            return
        count = self.windows.clips[draw.clip].count
        for block in range(first, draw.stop, BLOCK):
            key = (kind, draw.clip, block)
            if key not in self.blocks:
                self.blocks[key] = read(block, min(block + BLOCK, count))
            yield block, self.blocks[key]

    def _keeps(self, draw: WindowSample) -> bool:
        """Whether a clip is one of those kept; what was shrunk for another size is let go."""
        windows, size = self.windows, draw.placement.size
        grains = tuple(windows.downscale(clip, size) for clip in range(len(windows.clips)))
        if grains != self.grains:
            self.grains, kept = grains, set()
            self.blocks = {k: v for k, v in self.blocks.items() if k[0] == "flow"}
            left = windows.cache * 2**20
            for number, downscale in enumerate(grains):
                left -= windows.clips[number].train[1] * self._bytes(number, downscale)
                if left < 0:
                    break
                kept.add(number)
            self.kept = frozenset(kept)
            self.blocks = {k: v for k, v in self.blocks.items() if k[1] in kept}
        return draw.clip in self.kept

    def _bytes(self, clip: int, downscale: int) -> int:
        """Of one frame with its flow and label maps, decoded."""
        height, width = self.windows.clips[clip].source
        signals = self.stores[clip].record.signals
        pixels = (height // downscale) * (width // downscale)
        total = 3 * pixels
        if "segmentation" in signals:
            total += pixels * (3 if signals["segmentation"].spec["instances"] else 1)
        if "flow" in signals:
            grid = signals["flow"].spec["grid"]
            total += 6 * grid[0] * grid[1]
        return total


def _part(draw: WindowSample, start: int, count: int) -> slice:
    """Which of `count` frames from `start` are of the window."""
    skip = -(start - draw.start) % draw.stride if start > draw.start else draw.start - start
    return slice(skip, min(draw.stop - start, count), draw.stride)


def _thin(track: LabelTrack, downscale: int) -> LabelTrack:
    """Every `downscale`-th label across and down, from the middle of the block it stands for."""
    rows, columns = track.height // downscale * downscale, track.width // downscale * downscale
    middle = downscale // 2

    def thin(maps: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(maps[:, middle:rows:downscale, middle:columns:downscale])

    instances = None if track.instances is None else thin(track.instances)
    return LabelTrack(thin(track.labels), track.classes, track.palette, instances)


# ---------------------------------------------------------------- loading


@dataclass(frozen=True)
class _Jobs(Dataset[Any]):
    """Windows by job, for workers; a job is (indices, length, size)."""

    windows: ClipDataset  # each worker gets its copy

    def __getitem__(self, job: tuple[Sequence[int], int, Size]) -> Batch | V2VError:
        try:
            return self.windows.batch(*job)
        except V2VError as error:
            # As a value: torch would raise it anew with a worker's traceback as its message.
            return error


def shard(step: WindowRequest, *, rank: int = 0, world: int = 1) -> range:
    """Indices of the windows of a step that process `rank` of `world` makes.

    The processes' shares, one after another, are what one process alone would make.
    Raises `ConfigError` where the batch cannot be shared out evenly.
    """
    if step.batch < world or step.batch % world:
        raise ConfigError(
            f"a batch of {step.batch} cannot be shared by {world} processes evenly",
            hint=f"set the batch to a multiple of {world}",
        )
    assert step.batch <= SLOTS
    own = step.batch // world
    return range(step.step * SLOTS + rank * own, step.step * SLOTS + (rank + 1) * own)


def loader(
    windows: ClipDataset,
    steps: Iterable[WindowRequest],
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """The batch of each step, in order. To resume, start `steps` at the step to come.

    Args:
        rank, world: which of how many training processes this is; each gets its share.
        workers: processes that prepare batches ahead; 0 makes them here, when asked. The batches
            are the same. The cache is divided among them.

    Raises as `ClipDataset.batch` and `shard` do.
    """
    jobs = ((shard(s, rank=rank, world=world), s.length, s.size) for s in steps)
    if not workers:
        for job in jobs:
            yield windows.batch(*job)
        return
    from torch.multiprocessing import get_context

    # Never a fork: threads of decoders and of torch do not survive one.
    context = get_context("forkserver")
    context.set_forkserver_preload(["v2v.data.windows"])
    workers = min(workers, max(cores(), 1))  # more of them only wait for one another
    prepared = DataLoader(
        _Jobs(windows), batch_size=None, sampler=_Stream(jobs), num_workers=workers,
        multiprocessing_context=context, collate_fn=_unchanged, worker_init_fn=_start_worker,
    )  # fmt: skip
    for batch in prepared:
        if isinstance(batch, V2VError):
            raise batch
        yield batch


@dataclass(frozen=True)
class _Stream(Iterable[Any]):
    """Jobs as DataLoader wants them: something to iterate over, of unknown length."""

    jobs: Iterator[Any]

    def __iter__(self) -> Iterator[Any]:
        return self.jobs


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    assert info is not None
    cv2.setNumThreads(1)  # the workers are the parallelism
    cast(_Jobs, info.dataset).windows.cache //= info.num_workers
