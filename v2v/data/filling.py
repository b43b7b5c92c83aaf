"""What a batch is filled with: frames, signals, flow, backgrounds and references of its windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.data.cache import FrameCache
from v2v.data.opening import has_points
from v2v.data.plates import PlacedPlates
from v2v.data.references.choosing import Chooser, reference_signal
from v2v.data.references.memory import References
from v2v.data.references.warping import as_condition, candidates
from v2v.data.sampling import (
    COLOUR,
    REFERENCES,
    SIGNALS,
    STYLE,
    TrainingClip,
    WindowSample,
    random_of,
)
from v2v.data.transforms import AugmentationSettings, Pictures, Placement, colour_matrix, recolour
from v2v.pixels import planes
from v2v.signals import Track, load_signal
from v2v.signals.traits import FlowField, FlowSignal, LabelMaps, LabelSignal
from v2v.types import Batch
from v2v.warp import compose, warp

SMALLEST_BOX = 12  # pixels of the model's frame; smaller boxes are useless to a discriminator
NEAR_SECONDS = 0.5  # a training window uses no reference closer in time than this,
NEAR_SHARE = 0.1  # nor closer than this fraction of the training frames


@dataclass(frozen=True)
class BatchFiller:
    """Reads windows into batches; see `v2v.data.dataset.ClipDataset` for what they hold."""

    reader: FrameCache
    plates: PlacedPlates
    references: Callable[[int, Placement], References]  # of a clip, for windows placed so
    clips: Sequence[TrainingClip]
    signals: Sequence[str]
    specs: Sequence[dict[str, Any]]  # of each signal, for its channels
    labels: Sequence[LabelSignal | None]  # of each clip
    flows: Sequence[FlowSignal | None]
    foreground: Sequence[NDArray[np.bool_]] | None  # of each clip, by class id
    candidates: int
    augmentation: AugmentationSettings | None
    seed: int

    def fill(self, batch: Batch, number: int, draw: WindowSample) -> None:
        """Read one window into the batch at index `number`."""
        batch.clip[number] = draw.clip
        colour = self._colour(draw)
        if batch.references is not None:
            self._fill_references(batch.references[number], draw, colour)
        self._fill_pictures(batch, number, draw, colour)
        tracks = self._fill_maps(batch, number, draw)
        self._fill_signals(batch, number, draw, tracks)

    def _colour(self, draw: WindowSample) -> Tensor | None:
        """The colour change of a window; None without one."""
        if draw.index is None or self.augmentation is None or not self.augmentation.colour:
            return None
        draws = random_of(self.seed, draw.index, COLOUR).uniform(-1, 1, 4)
        return colour_matrix(self.augmentation.colour, torch.from_numpy(draws))

    def _fill_pictures(
        self, batch: Batch, number: int, draw: WindowSample, colour: Tensor | None
    ) -> None:
        """Frames, background plates and the style image."""
        placement = draw.placement

        def write(placed: Pictures, out: Tensor) -> None:
            if colour is not None:
                placed = recolour(placed, colour)
            planes(placed[None], out[None].numpy())

        for t, picture in enumerate(self.reader.frames(draw)):
            write(placement.picture(picture), batch.frames[number, t])
        if batch.background_plate is not None:
            out = batch.background_plate[number]
            backgrounds = self.plates.behind(draw, len(out))
            for plane, background in zip(out, backgrounds, strict=False):
                write(np.ascontiguousarray(background[..., :3]), plane[:3])
                plane[3] = torch.from_numpy(background[..., 3]).float().div_(255)
            out[len(backgrounds) :] = out[0]
        if batch.style is not None:
            first, stop = self.clips[draw.clip].train
            style_frame = (first + stop) // 2
            if draw.index is not None:
                style_frame = int(random_of(self.seed, draw.index, STYLE).integers(first, stop))
            (picture,) = self.reader.frames(
                WindowSample(draw.clip, style_frame, 1, 1, placement, draw.index)
            )
            write(placement.picture(picture), batch.style[number])

    def _fill_maps(self, batch: Batch, number: int, draw: WindowSample) -> dict[str, Track]:
        """Flow, foreground and instances; returns the placed tracks they are read from."""
        labels = flow = None
        tracks: dict[str, Track] = {}
        signal, flow_signal = self.labels[draw.clip], self.flows[draw.clip]
        if signal is not None and (
            signal.name in self.signals
            or batch.foreground is not None
            or batch.instances is not None
        ):
            labels = cast(LabelMaps, draw.placement.track(self.reader.labels(draw)))
            tracks[signal.name] = labels
        if flow_signal is not None and (flow_signal.name in self.signals or batch.flow is not None):
            flow = self._flow(flow_signal, draw)
            tracks[flow_signal.name] = flow
        if batch.flow is not None and batch.occlusion is not None:
            assert flow is not None
            batch.flow[number] = torch.from_numpy(flow.flow)
            batch.occlusion[number] = torch.from_numpy(flow.occlusion)
        if batch.foreground is not None:
            assert labels is not None and self.foreground is not None
            mask = self.foreground[draw.clip][labels.labels]
            batch.foreground[number, :, 0] = torch.from_numpy(mask)
        if batch.instances is not None:
            assert labels is not None and labels.instances is not None
            batch.instances[number, :, 0] = torch.from_numpy(labels.instances.astype(np.int64))
        return tracks

    def _fill_references(self, out: Tensor, draw: WindowSample, colour: Tensor | None) -> None:
        """Warp references to the frames of a window, into [T, K, 5, H, W]."""
        clip, size = self.clips[draw.clip], draw.placement.size
        plain = self.plates.placement(draw.clip, size)
        references = self.references(draw.clip, plain)
        # Warp unmirrored and mirror the result, so that parts keep their names.
        placement = replace(draw.placement, flip=False)
        signal = reference_signal(self.signals)
        assert signal is not None
        track = placement.track(self.reader.track(signal.name, draw))
        chooser, kept = draw.chooser, np.ones(self.candidates, np.bool_)
        if chooser is None:
            chooser = Chooser(
                references, self.candidates, banned=near_references(references, draw, clip)
            )
        if draw.index is not None and self.augmentation is not None:
            random = random_of(self.seed, draw.index, REFERENCES).random(self.candidates)
            kept = random >= self.augmentation.reference_drop
        choice = chooser(track).only(kept)
        scale = placement.scale[0] / plain.scale[0], placement.scale[1] / plain.scale[1]
        shift = (
            (plain.box[0] - placement.box[0]) * placement.scale[0],
            (plain.box[1] - placement.box[1]) * placement.scale[1],
        )
        for t, warped in enumerate(candidates(references, track, choice, scale=scale, shift=shift)):
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
        """Drawn signals, control points and boxes; `tracks` are already placed."""
        augmentation = self.augmentation if draw.index is not None else None
        channel = box = point_index = 0
        for order, (name, spec) in enumerate(zip(self.signals, self.specs, strict=True)):
            track = tracks.get(name) or draw.placement.track(self.reader.track(name, draw))
            # Read these before points are dropped or jittered: they must be the true positions.
            if batch.control_points is not None:
                points = track.control_point_tensor()
                batch.control_points[number, :, point_index : point_index + points.shape[1]] = (
                    points
                )
                point_index += points.shape[1]
            if batch.boxes is not None and has_points(name):
                found = _visible(track.boxes(), track.width, track.height)
                batch.boxes[number, :, box : box + found.shape[1]] = torch.from_numpy(found)
                box += found.shape[1]
            if augmentation and draw.index is not None:
                random = random_of(self.seed, draw.index, SIGNALS, order)
                if augmentation.jitter:
                    sigma = augmentation.jitter * min(draw.placement.size) / 512
                    track = track.jittered(random, sigma)
                if augmentation.drop:
                    track = track.dropped(random, augmentation.drop)
            drawn = load_signal(name).tensor(track, spec, *draw.placement.size)
            batch.signals[number, :, channel : channel + drawn.shape[1]] = drawn
            channel += drawn.shape[1]

    def _flow(self, signal: FlowSignal, draw: WindowSample) -> FlowField:
        """Placed flow from each frame of a window to the previous frame of the window."""
        height, width = draw.placement.size
        if draw.length == 1 and not draw.continues:
            zeros = np.zeros((1, 2, height, width), np.float32)
            return signal.build(zeros, np.ones_like(zeros[:, :1]), width=width, height=height)
        flow, occlusion = self.reader.flow(draw)
        if draw.stride > 1:
            flow, occlusion = compose_over(flow, occlusion, draw.stride)
        flow, occlusion = draw.placement.flow(flow, occlusion)
        if not draw.continues:
            flow[0], occlusion[0] = 0, 1
        return signal.build(flow, occlusion, width=width, height=height)


def near_references(
    references: References, draw: WindowSample, clip: TrainingClip
) -> NDArray[np.int64]:
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
