"""Training windows of clip stores, assembled into batches.

Stored flow is between consecutive frames; for larger strides it is composed. The first frame of a
window has no past: its flow is 0 and it is fully occluded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.data.background import BackgroundPlate, Backgrounds
from v2v.data.cache import FrameCache
from v2v.data.filling import BatchFiller
from v2v.data.opening import foreground_tables, has_points, presence, spec_of
from v2v.data.plates import PlacedPlates
from v2v.data.references.choosing import Chooser
from v2v.data.references.memory import References
from v2v.data.sampling import (
    PLACE,
    WHERE,
    Size,
    WindowSample,
    common_shape,
    random_of,
    training_clip,
)
from v2v.data.store import ClipStore
from v2v.data.transforms import (
    AugmentationSettings,
    Pictures,
    Placement,
    downscale_of,
)
from v2v.errors import (
    ConfigError,
    SignalMissing,
    StoreError,
    TooFewFrames,
    UnknownName,
    UsageError,
)
from v2v.signals import load_signal
from v2v.signals.traits import FlowSignal, LabelSignal
from v2v.types import REFERENCE_CHANNELS, Batch

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


class ClipDataset:
    """Training windows from several clips.

    Args:
        clips: folders of clip stores, or opened ones.
        signals: what the model is conditioned on; their channels are concatenated in this order.
        seed: seed of all random choices.
        augmentation: augmentation of the windows; None disables it.
        extras: additional parts of a batch, from `EXTRAS`; parts that not all clips have are left
            out.
        holdout: fraction held out at the end of each clip.
        max_stride: each window has a random stride from 1 to `max_stride`.
        multiple: both sides of a frame are divisible by this.
        cache: mebibytes of decoded frames, flow and label maps that each process caches.
        background_plates: one per clip, or None.
        candidates: warped references per frame (K), made from the `references` set later.
        options: signal -> its options; see `Signal.options`.

    Attributes:
        clips: the opened clips in order; `Batch.clip` indexes them.
        specs: the spec of each signal, that of the first clip with the options.
        channels: C of `Batch.signals`.
        boxes: names of the K boxes of `Batch.boxes`.
        control_points: N of `Batch.control_points`; 0 if no signal has points.
        references: per clip, real frames of the person, placed by `placement`; empty until set.
        notes: sentences for the user, e.g. that a clip is cropped.

    Raises `UnknownName`, `SignalMissing`, `StoreConflict` (clips that do not match), `StoreError`,
    `ConfigError` and the errors of `ClipStore.open`.
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
        options: Mapping[str, Mapping[str, bool]] | None = None,
    ) -> None:
        if not clips:
            raise UsageError("no clip to train on", hint="name one or more clip stores")
        for extra in extras:
            if extra not in EXTRAS:
                raise UnknownName.among("part of a batch", extra, EXTRAS)
        if not 0 <= holdout < 1:
            raise ConfigError(f"holdout cannot be {holdout}: expected 0 <= holdout < 1", hint=None)
        if max_stride < 1:
            raise ConfigError(f"max_stride cannot be {max_stride}: expected 1 or more", hint=None)
        self.signals = tuple(signals)
        self.seed = seed
        self.augmentation = augmentation
        self.extras = tuple(extras)
        self.max_stride = max_stride
        self.multiple = multiple
        self.cache = cache
        stores = [c if isinstance(c, ClipStore) else ClipStore.open(c) for c in clips]
        self.records = [(store.folder, store.record) for store in stores]
        self.specs = tuple(spec_of(stores, n, (options or {}).get(n, {})) for n in self.signals)
        self.channels = sum(
            load_signal(name).channels(spec)
            for name, spec in zip(self.signals, self.specs, strict=True)
        )
        self.clips = tuple(training_clip(store, holdout) for store in stores)
        self.notes, self._shape = common_shape(self.clips)
        self.background_plates: list[BackgroundPlate | None] = list(
            background_plates or [None] * len(stores)
        )
        if len(self.background_plates) != len(stores):
            raise UsageError(
                f"{len(self.background_plates)} background plates for {len(stores)} clips",
                hint="give one per clip",
            )
        self.candidates = candidates
        self.references: tuple[References, ...] = ()
        self._labels = [store.record.find(LabelSignal) for store in stores]
        self._flows = [store.record.find(FlowSignal) for store in stores]
        self._foreground = foreground_tables(stores) if "foreground" in extras else None
        self.boxes = self._box_names()
        self.control_points = self._count_control_points()
        self._plates = PlacedPlates(self.background_plates, self.placement)
        self._scaled: dict[tuple[int, tuple[int, int]], References] = {}
        self._tables: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._reader: FrameCache | None = None
        self._present = [presence(store, self.signals) for store in stores]

    # ------------------------------------------------------------ checks at opening

    def _box_names(self) -> tuple[str, ...]:
        if "boxes" not in self.extras:
            return ()
        store = ClipStore(*self.records[0])
        points = (name for name in self.signals if has_points(name))
        return tuple(region for name in points for region in store.track(name, 0, 1).regions)

    def _count_control_points(self) -> int:
        if "control_points" not in self.extras:
            return 0
        store = ClipStore(*self.records[0])
        return sum(store.track(s, 0, 1).control_points().shape[1] for s in self.signals)

    @property
    def has_foreground(self) -> bool:
        """Whether batches have a foreground mask."""
        return self._foreground is not None

    # ------------------------------------------------------------ sizes

    def frame_size(self, size: Size) -> tuple[int, int]:
        """(height, width) of frames whose shorter side is `size`. Raises `ConfigError`.

        The longer side is the multiple of `multiple` closest to the clips' aspect ratio. A
        (height, width) is returned unchanged: the stages of a run halve a size found here.
        """
        if isinstance(size, tuple):
            return size
        if size < 1 or size % self.multiple:
            near = max(round(size / self.multiple), 1) * self.multiple
            raise ConfigError(
                f"frames of {size} pixels do not fit the model: expected a multiple of"
                f" {self.multiple}",
                hint=f"the nearest size is {near}",
            )
        stored = min(min(clip.source) for clip in self.clips)
        if size > 2 * stored:
            raise ConfigError(
                f"frames of {size} pixels are more than twice as large as the clips, stored at"
                f" {stored}",
                hint=f"train at {stored // self.multiple * self.multiple or self.multiple}, or run"
                f" v2v preprocess with --size {size}",
            )
        longer = round(size * max(self._shape, 1 / self._shape) / self.multiple) * self.multiple
        return (longer, size) if self._shape < 1 else (size, longer)

    def downscale(self, clip: int, size: tuple[int, int]) -> int:
        """Integer factor by which a clip's frames are downscaled before they are placed.

        Placement then shrinks by less than a factor of 2 at the strongest zoom, so no detail is
        lost, and large footage takes far less memory and time.
        """
        zoom = self.augmentation.scale[1] if self.augmentation else 1.0
        return downscale_of(self.clips[clip].source, size, zoom)

    def placement(self, clip: int, size: Size) -> Placement:
        """The placement of a clip's frames in rendering: no augmentation."""
        shape = self.frame_size(size)
        return Placement.plain(
            self.clips[clip].source, shape, downscale=self.downscale(clip, shape)
        )

    # ------------------------------------------------------------ drawing

    def starts(self, length: int, stride: int) -> NDArray[np.int64]:
        """[N, 3] clip, first frame and stride of every possible window.

        A shot too short for `stride` gives windows of the largest stride that fits. Windows that
        lack a signal in most frames are left out. Raises `StoreError`.
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
                possible = stop - first - (length - 1) * step
                present_count = sum(
                    present[first + i * step : first + i * step + possible].astype(np.int32)
                    for i in range(length)
                )
                valid = first + np.flatnonzero(np.asarray(present_count) * 2 >= length)
                rows.append(np.stack(np.broadcast_arrays(number, valid, step), axis=1))
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
                hint="check preview.mp4 of the clips; use footage with longer detections",
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

        Depends only on the seed and the arguments. All starts are equally likely.
        Raises `StoreError` (too few frames), `SignalMissing`, `ConfigError`.
        """
        shape = self.frame_size(size)
        where = random_of(self.seed, index, WHERE)
        stride = int(where.integers(1, self.max_stride + 1))
        starts = self.starts(length, stride)
        clip, start, stride = (int(v) for v in starts[where.integers(len(starts))])
        placement = self.placement(clip, shape)
        if self.augmentation is not None:
            placement = Placement.sampled(
                self.clips[clip].source, shape, self.augmentation,
                random_of(self.seed, index, PLACE),
                downscale=placement.downscale,
            )  # fmt: skip
        return WindowSample(clip, start, stride, length, placement, index)

    # ------------------------------------------------------------ batches

    def batch(self, indices: Sequence[int], length: int, size: Size) -> Batch:
        """A batch of the windows `indices`. Raises the errors of `draw` and of reading."""
        return self.load([self.draw(index, length, size) for index in indices])

    def load(self, draws: Sequence[WindowSample]) -> Batch:
        """A batch of windows of the same length and frame size."""
        length, size = draws[0].length, draws[0].placement.size
        assert all((d.length, d.placement.size) == (length, size) for d in draws), draws
        batch = self._empty(len(draws), length, size)
        filler = self._filler()
        for number, draw in enumerate(draws):
            filler.fill(batch, number, draw)
        return batch

    def sequence(
        self, clip: int, start: int | None = None, stop: int | None = None, *,
        size: Size, chunk: int = 16,
    ) -> Iterator[Batch]:  # fmt: skip
        """Frames `start` to `stop` of a clip in chunks, unaugmented; one window per batch.

        The default is the held-out frames. Flow and occlusion continue across chunks. Raises
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
        def allocate(name: str, *shape: int, kind: torch.dtype = torch.float32) -> Tensor | None:
            return torch.empty(count, *shape, dtype=kind) if self._carries(name) else None

        return Batch(
            frames=torch.empty(count, length, 3, *size),
            signals=torch.empty(count, length, self.channels, *size),
            clip=torch.empty(count, dtype=torch.int64),
            flow=allocate("flow", length, 2, *size),
            occlusion=allocate("flow", length, 1, *size),
            foreground=allocate("foreground", length, 1, *size),
            # One for all frames if no camera moves.
            background_plate=allocate(
                "background_plate", length if self._plates.camera_moves else 1, 4, *size
            ),
            style=allocate("style", 3, *size),
            instances=allocate("instances", length, 1, *size, kind=torch.int64),
            boxes=allocate("boxes", length, len(self.boxes), 4),
            control_points=allocate("control_points", length, self.control_points, 3),
            references=allocate("references", length, self.candidates, REFERENCE_CHANNELS, *size),
        )

    def _carries(self, name: str) -> bool:
        """Whether a batch has this part: it is requested and every clip has it."""
        if name not in self.extras:
            return False
        if name == "flow":
            return all(signal is not None for signal in self._flows)
        if name == "foreground":
            return self.has_foreground
        if name == "background_plate":
            return all(background_plate is not None for background_plate in self.background_plates)
        if name == "instances":
            return all(
                signal is not None and signal.has_instances(record.signals[signal.name].spec)
                for signal, (_, record) in zip(self._labels, self.records, strict=True)
            )
        if name == "boxes":
            return bool(self.boxes)
        if name == "references":
            return bool(self.references)
        return name == "style" or self.control_points > 0

    # ------------------------------------------------------------ what windows are filled from

    def backgrounds(self, clip: int, size: Size) -> Backgrounds | None:
        """The backgrounds of a clip with a moving camera, placed by `placement`; else None."""
        return self._plates.backgrounds(clip, self.frame_size(size))

    def background(self, clip: int, size: Size) -> Pictures:
        """[H, W, 4] RGB and valid mask (255) of a clip's background, seen by a still camera."""
        return self._plates.background(clip, self.frame_size(size))

    def _references(self, clip: int, placement: Placement) -> References:
        """A clip's references at the size of an unzoomed window."""
        key = (clip, placement.size)
        if key not in self._scaled:
            self._scaled[key] = self.references[clip].scaled(placement.size)
        return self._scaled[key]

    def _filler(self) -> BatchFiller:
        return BatchFiller(
            reader=self._open(), plates=self._plates, references=self._references,
            clips=self.clips, signals=self.signals, specs=self.specs, labels=self._labels,
            flows=self._flows, foreground=self._foreground, candidates=self.candidates,
            augmentation=self.augmentation, seed=self.seed,
        )  # fmt: skip

    # ------------------------------------------------------------ processes

    def _open(self) -> FrameCache:
        if self._reader is None:  # opened in the process that reads, never before a fork
            self._reader = FrameCache(
                self.clips, self.records, megabytes=self.cache, downscale=self.downscale
            )
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files and decoded data: they belong to one process."""
        own = {name: value for name, value in self.__dict__.items() if name != "_plates"}
        return own | {"_reader": None, "_tables": {}, "_scaled": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._plates = PlacedPlates(self.background_plates, self.placement)

    def __repr__(self) -> str:
        frames = sum(b - a for a, b in (clip.train for clip in self.clips))
        return (
            f"ClipDataset({len(self.clips)} clip(s), {frames} frames for training,"
            f" signals={'+'.join(self.signals)}, channels={self.channels})"
        )
