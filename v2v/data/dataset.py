"""Training windows of clip stores, assembled into batches.

Stored flow is between consecutive frames; for larger strides it is composed. The first frame of a
window has no past: its flow is 0 and it is fully occluded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.data.background import BackgroundPlate, Backgrounds
from v2v.data.cache import FrameCache
from v2v.data.references import Chooser, References, as_condition, reference_signal
from v2v.data.sampling import Size, TrainingClip, WindowSample, common_shape, training_clip
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
from v2v.errors import (
    ConfigError,
    SignalMissing,
    StoreConflict,
    StoreError,
    TooFewFrames,
    UnknownName,
    UsageError,
)
from v2v.pixels import planes
from v2v.signals import Track, load_signal
from v2v.signals.traits import FlowField, FlowSignal, LabelMaps, LabelSignal, PointSignal
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
SMALLEST_BOX = 12  # pixels of the model's frame; smaller boxes are useless to a discriminator
NEAR_SECONDS = 0.5  # a training window uses no reference closer in time than this,
NEAR_SHARE = 0.1  # nor closer than this fraction of the training frames

# Each purpose has its own random numbers: enabling one augmentation does not change the others.
_WHERE, _PLACE, _COLOUR, _STYLE, _SIGNALS, _REFERENCES = range(6)


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

    Attributes:
        clips: the opened clips in order; `Batch.clip` indexes them.
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
        self.channels = sum(self._check_signal(stores, name) for name in self.signals)
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
        self._foreground = self._foreground_classes(stores)
        self.boxes = self._box_names()
        self.control_points = self._count_control_points()
        self._backgrounds: dict[tuple[int, tuple[int, int]], Backgrounds] = {}
        self._shrunk_plates: dict[tuple[int, int], tuple[Pictures, Pictures]] = {}
        self._scaled: dict[tuple[int, tuple[int, int]], References] = {}
        self._tables: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._reader: FrameCache | None = None
        self._present = [_presence(store, self.signals) for store in stores]

    # ------------------------------------------------------------ checks at opening

    @staticmethod
    def _check_signal(stores: Sequence[ClipStore], name: str) -> int:
        """Channels of a signal, which must be the same in all clips."""
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
                    hint="extract both with the same backend and classes, using --overwrite",
                )
            if spec.get("classes") != first[1].get("classes"):
                raise StoreConflict(
                    f"the classes of {name} differ between {store.folder} and {first[0].folder}",
                    hint="extract both with the same backend and classes, using --overwrite",
                )
        return channels

    def _foreground_classes(self, stores: Sequence[ClipStore]) -> list[NDArray[np.bool_]] | None:
        """Per clip, [256] true for the class ids of the foreground."""
        if "foreground" not in self.extras:
            return None
        tables = [
            signal.foreground(store.record.signals[signal.name].spec)
            for store, signal in zip(stores, self._labels, strict=True)
            if signal is not None
        ]
        known = len(tables) == len(stores) and all(table.any() for table in tables)
        return tables if known else None

    def _box_names(self) -> tuple[str, ...]:
        if "boxes" not in self.extras:
            return ()
        store = ClipStore(*self.records[0])
        points = (name for name in self.signals if _has_points(name))
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
        """A batch of the windows `indices`. Raises the errors of `draw` and of reading."""
        return self.load([self.draw(index, length, size) for index in indices])

    def load(self, draws: Sequence[WindowSample]) -> Batch:
        """A batch of windows of the same length and frame size."""
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
                "background_plate", length if self._camera_moves() else 1, 4, *size
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

    def _fill(self, batch: Batch, number: int, draw: WindowSample) -> None:
        """Read one window into the batch at index `number`."""
        placement, reader = draw.placement, self._open()
        augmentation = self.augmentation if draw.index is not None else None
        batch.clip[number] = draw.clip
        colour = None
        if augmentation and augmentation.colour and draw.index is not None:
            draws = self._random(draw.index, _COLOUR).uniform(-1, 1, 4)
            colour = colour_matrix(augmentation.colour, torch.from_numpy(draws))

        def write(placed: Pictures, out: Tensor) -> None:
            if colour is not None:
                placed = recolour(placed, colour)
            planes(placed[None], out[None].numpy())

        def place_and_write(picture: Pictures, out: Tensor) -> None:
            write(placement.picture(picture), out)

        if batch.references is not None:
            self._fill_references(batch.references[number], draw, reader, colour)

        for t, picture in enumerate(reader.frames(draw)):
            place_and_write(picture, batch.frames[number, t])
        if batch.background_plate is not None:
            out = batch.background_plate[number]
            backgrounds = self._behind(draw, len(out))
            for plane, background in zip(out, backgrounds, strict=False):
                write(np.ascontiguousarray(background[..., :3]), plane[:3])
                plane[3] = torch.from_numpy(background[..., 3]).float().div_(255)
            out[len(backgrounds) :] = out[0]
        if batch.style is not None:
            first, stop = self.clips[draw.clip].train
            style_frame = (first + stop) // 2
            if draw.index is not None:
                style_frame = int(self._random(draw.index, _STYLE).integers(first, stop))
            (picture,) = reader.frames(
                WindowSample(draw.clip, style_frame, 1, 1, placement, draw.index)
            )
            place_and_write(picture, batch.style[number])

        labels = flow = None
        tracks: dict[str, Track] = {}  # signals with uses besides the condition are read once
        signal, flow_signal = self._labels[draw.clip], self._flows[draw.clip]
        if signal is not None and (
            signal.name in self.signals
            or batch.foreground is not None
            or batch.instances is not None
        ):
            labels = cast(LabelMaps, placement.track(reader.labels(draw)))
            tracks[signal.name] = labels
        if flow_signal is not None and (flow_signal.name in self.signals or batch.flow is not None):
            flow = self._flow(flow_signal, reader, draw)
            tracks[flow_signal.name] = flow
        if batch.flow is not None and batch.occlusion is not None:
            assert flow is not None
            batch.flow[number] = torch.from_numpy(flow.flow)
            batch.occlusion[number] = torch.from_numpy(flow.occlusion)
        if batch.foreground is not None:
            assert labels is not None and self._foreground is not None
            mask = self._foreground[draw.clip][labels.labels]
            batch.foreground[number, :, 0] = torch.from_numpy(mask)
        if batch.instances is not None:
            assert labels is not None and labels.instances is not None
            batch.instances[number, :, 0] = torch.from_numpy(labels.instances.astype(np.int64))
        self._fill_signals(batch, number, draw, tracks)

    def backgrounds(self, clip: int, size: Size) -> Backgrounds | None:
        """The backgrounds of a clip with a moving camera, placed by `placement`; else None."""
        background_plate = self.background_plates[clip]
        if background_plate is None or background_plate.backgrounds is None:
            return None
        key = (clip, self.frame_size(size))
        if key not in self._backgrounds:
            self._backgrounds[key] = background_plate.backgrounds.placed(self.placement(clip, size))
        return self._backgrounds[key]

    def background(self, clip: int, size: Size) -> Pictures:
        """[H, W, 4] RGB and valid mask (255) of a clip's background, seen by a still camera."""
        background_plate, found = self.background_plates[clip], self.backgrounds(clip, size)
        assert background_plate is not None
        if found is not None:
            return found.of()
        return self._still(clip, self.placement(clip, size))

    def _still(self, clip: int, placement: Placement) -> Pictures:
        """[H, W, 4] RGB, and 255 where valid: the plate of a clip whose camera stands still."""
        key = (clip, placement.downscale)
        if key not in self._shrunk_plates:  # of footage at 1080 px a third of the loading time
            plate = self.background_plates[clip]
            assert plate is not None
            valid_mask = np.where(plate.valid_mask > 0, 255, 0).astype(np.uint8)
            picture, valid_mask = (
                shrink(whole[None], placement.downscale)[0] for whole in (plate.picture, valid_mask)
            )
            self._shrunk_plates[key] = picture, valid_mask
        picture, valid_mask = (placement.picture(part) for part in self._shrunk_plates[key])
        return np.concatenate([picture, valid_mask[..., None]], axis=-1)

    def _behind(self, draw: WindowSample, length: int) -> list[Pictures]:
        """[H, W, 4] RGB and valid mask (255) of the background of each frame of a window.

        A single picture if the camera stands still.
        """
        background_plate, size = self.background_plates[draw.clip], draw.placement.size
        assert background_plate is not None
        found = self.backgrounds(draw.clip, size)
        if found is None:
            return [self._still(draw.clip, draw.placement)]
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
        """A clip's references at the size of an unzoomed window."""
        key = (clip, placement.size)
        if key not in self._scaled:
            self._scaled[key] = self.references[clip].scaled(placement.size)
        return self._scaled[key]

    def _fill_references(
        self, out: Tensor, draw: WindowSample, reader: FrameCache, colour: Tensor | None
    ) -> None:
        """Warp references to the frames of a window, into [T, K, 5, H, W]."""
        clip, size = self.clips[draw.clip], draw.placement.size
        plain = self.placement(draw.clip, size)
        references = self._references(draw.clip, plain)
        # Warp unmirrored and mirror the result, so that parts keep their names.
        placement = replace(draw.placement, flip=False)
        signal = reference_signal(self.signals)
        assert signal is not None
        track = placement.track(reader.track(signal.name, draw))
        chooser, kept = draw.chooser, np.ones(self.candidates, np.bool_)
        if chooser is None:
            chooser = Chooser(references, self.candidates, banned=_near(references, draw, clip))
        if draw.index is not None and self.augmentation is not None:
            random = self._random(draw.index, _REFERENCES).random(self.candidates)
            kept = random >= self.augmentation.reference_drop
        choice = chooser(track).only(kept)
        scale = placement.scale[0] / plain.scale[0], placement.scale[1] / plain.scale[1]
        shift = (
            (plain.box[0] - placement.box[0]) * placement.scale[0],
            (plain.box[1] - placement.box[1]) * placement.scale[1],
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
        self, batch: Batch, number: int, draw: WindowSample, tracks: dict[str, Track]
    ) -> None:
        augmentation = self.augmentation if draw.index is not None else None
        channel = box = point_index = 0
        for order, name in enumerate(self.signals):
            track = tracks.get(name) or draw.placement.track(self._open().track(name, draw))
            # Read these before points are dropped or jittered: they must be the true positions.
            if batch.control_points is not None:
                points = track.control_point_tensor()
                batch.control_points[number, :, point_index : point_index + points.shape[1]] = (
                    points
                )
                point_index += points.shape[1]
            if batch.boxes is not None and _has_points(name):
                found = _visible(track.boxes(), track.width, track.height)
                batch.boxes[number, :, box : box + found.shape[1]] = torch.from_numpy(found)
                box += found.shape[1]
            if augmentation and draw.index is not None:
                random = self._random(draw.index, _SIGNALS, order)
                if augmentation.jitter:
                    sigma = augmentation.jitter * min(draw.placement.size) / 512
                    track = track.jittered(random, sigma)
                if augmentation.drop:
                    track = track.dropped(random, augmentation.drop)
            drawn = track.tensor(*draw.placement.size)
            batch.signals[number, :, channel : channel + drawn.shape[1]] = drawn
            channel += drawn.shape[1]

    @staticmethod
    def _flow(signal: FlowSignal, reader: FrameCache, draw: WindowSample) -> FlowField:
        """Placed flow from each frame of a window to the previous frame of the window."""
        height, width = draw.placement.size
        if draw.length == 1 and not draw.continues:
            zeros = np.zeros((1, 2, height, width), np.float32)
            return signal.build(zeros, np.ones_like(zeros[:, :1]), width=width, height=height)
        flow, occlusion = reader.flow(draw)
        if draw.stride > 1:
            flow, occlusion = compose_over(flow, occlusion, draw.stride)
        flow, occlusion = draw.placement.flow(flow, occlusion)
        if not draw.continues:
            flow[0], occlusion[0] = 0, 1
        return signal.build(flow, occlusion, width=width, height=height)

    # ------------------------------------------------------------ processes

    def _open(self) -> FrameCache:
        if self._reader is None:  # opened in the process that reads, never before a fork
            self._reader = FrameCache(
                self.clips, self.records, megabytes=self.cache, downscale=self.downscale
            )
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files and decoded data: they belong to one process."""
        return {
            **self.__dict__, "_reader": None, "_tables": {}, "_scaled": {}, "_backgrounds": {},
            "_shrunk_plates": {},
        }  # fmt: skip

    def __repr__(self) -> str:
        frames = sum(b - a for a, b in (clip.train for clip in self.clips))
        return (
            f"ClipDataset({len(self.clips)} clip(s), {frames} frames for training,"
            f" signals={'+'.join(self.signals)}, channels={self.channels})"
        )


def _has_points(name: str) -> bool:
    return isinstance(load_signal(name), PointSignal)


def _near(references: References, draw: WindowSample, clip: TrainingClip) -> NDArray[np.int64]:
    """Indices of the references that are too close in time to a training window.

    In rendering, references come from other moments than the rendered frame. With close ones in
    training, the network would learn to trust references too much.
    """
    if draw.index is None:
        return np.empty(0, np.int64)
    first, stop = clip.train
    gap = max(NEAR_SECONDS * clip.rate, NEAR_SHARE * (stop - first))
    frames = references.frames
    near = (frames > draw.start - gap) & (frames < draw.stop - 1 + gap) & (frames >= 0)
    return np.flatnonzero(near)


def _presence(store: ClipStore, signals: Sequence[str]) -> NDArray[np.bool_]:
    """[T] true where the frame has every point signal."""
    present = np.ones(len(store), np.bool_)
    chunk = 4096  # frames per read: an hour of faces does not fit into memory
    for name in signals:
        if _has_points(name):
            for start in range(0, len(store), chunk):
                stop = min(start + chunk, len(store))
                present[start:stop] &= store.track(name, start, stop).present()
    return present


def _visible(boxes: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Square boxes, moved inside the picture; NaN if outside or too small."""
    x, y = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
    side = np.minimum(boxes[..., 2] - boxes[..., 0], min(width, height))
    with np.errstate(invalid="ignore"):
        valid = (side >= SMALLEST_BOX) & (x > 0) & (x < width) & (y > 0) & (y < height)
    left = np.clip(x - side / 2, 0, width - side)
    top = np.clip(y - side / 2, 0, height - side)
    moved = np.stack([left, top, left + side, top + side], axis=-1)
    return np.where(valid[..., None], moved, np.float32(np.nan)).astype(np.float32)


def compose_over(
    flow: NDArray[np.float32], occlusion: NDArray[np.float32], stride: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compose flow between consecutive frames into flow between every `stride`-th frame.

    Args:
        flow: [n, 2, h, w] of consecutive frames, n = (T - 1) * stride + 1.
        occlusion: [n, 1, h, w].

    Returns:
        Flow [T, 2, h, w] and occlusion [T, 1, h, w]; a pixel is occluded if any composed step
        occludes it. The first frame keeps its own flow, which leads one frame back.
    """
    flows, occlusions = torch.from_numpy(flow), torch.from_numpy(occlusion)
    last = torch.arange(stride, len(flows), stride)
    composed, composed_occlusion = flows[last], occlusions[last]
    for step in range(1, stride):
        composed_occlusion = torch.maximum(
            composed_occlusion, warp(occlusions[last - step], composed)
        )
        composed = compose(composed, flows[last - step])
    return (
        torch.cat([flows[:1], composed]).numpy(),
        torch.cat([occlusions[:1], composed_occlusion]).numpy(),
    )
