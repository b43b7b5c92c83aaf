"""A trained predictor: its files, and continuing a signal with it.

    runs/b/predictor/
      predictor.json           the signal, the network's arguments, provenance, measured errors
      predictor.safetensors    its weights, and the shape PCA of points

It is stored beside the model whose signal it continues.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from v2v import __version__
from v2v.checkpoint import MODEL_FILE, ClipUse, read_model_record
from v2v.errors import CheckpointInvalid, NothingFound, UsageError
from v2v.files import replacing, restore_replaced
from v2v.prediction.measures import LabelPropagator, joined, known, moved_points
from v2v.prediction.model import (
    PAST_MAPS,
    LabelArguments,
    LabelPredictor,
    LabelState,
    PointArguments,
    PointPredictor,
    ShapePCA,
    one_hot,
)
from v2v.records import Plain, Record, explain, shown
from v2v.saved import FORMAT, check_format, read_saved, write_json
from v2v.signals import Track
from v2v.signals.face import POINTS, RIGID, FaceTrack
from v2v.signals.pose import BODY, NAMES, PoseTrack
from v2v.signals.segmentation import VOID, LabelTrack
from v2v.tensors import load_weights, plain, read_tensors
from v2v.warp import resize_flow

Floats = NDArray[np.float32]
PREDICTOR_FILE = "predictor.json"
WEIGHTS_FILE = "predictor.safetensors"
LEAST = 3  # past frames: the minimum for a velocity and its change
MEMORY = 64  # past frames in which gaps are bridged
# Points that position and size are measured on: the whole body; the rigid part of the face.
ANCHORS = {"pose": list(range(len(BODY))), "face": list(RIGID)}
SIGNALS = {"pose": PoseTrack, "face": FaceTrack, "segmentation": LabelTrack}


ClassId = Annotated[int, Field(ge=0, le=255)]
MapSide = Annotated[int, Field(ge=1, le=4096)]


class PredictorRecord(Record):
    """predictor.json."""

    format: int = FORMAT
    tool: str = f"v2v {__version__}"
    signal: str
    network: Plain  # arguments of its class
    classes: tuple[str, ...] = ()  # of label maps
    channels: tuple[ClassId, ...] = ()  # class of each channel but the last
    size: tuple[MapSide, MapSide] | None = None  # (height, width) of the network's input maps
    clips: tuple[ClipUse, ...] = ()
    training: Plain = {}  # steps, minutes, settings
    errors: dict[str, dict[int, float]] = {}  # by method, frames ahead; on validation frames
    synthetic: str = "Signals predicted by this are synthetic. Say so where you publish them."


@dataclass(frozen=True)
class Predictor(ABC):
    """Continues one signal. `load_predictor` reads a predictor, `train_predictor` trains one."""

    record: PredictorRecord
    track: ClassVar[tuple[type[Track], ...]]

    def __repr__(self) -> str:
        record = self.record
        parameters = sum(p.numel() for p in self._module().parameters())
        return (
            f"Predictor({record.signal}, {parameters / 1e3:.0f} k parameters,"
            f" clips: {', '.join(c.name for c in record.clips)})"
        )

    def extend(self, past: Track, frames: int) -> Track:
        """Predict the `frames` frames after `past`, at the size of `past`.

        Points that are missing in its last frame stay missing, and void pixels stay void where
        they are copied. Raises `TooFewFrames` below 3 frames of past, `UsageError` for another
        signal or other classes, `NothingFound` for a past without points.
        """
        if not isinstance(past, SIGNALS[self.record.signal]):
            names = {kind: name for name, kind in SIGNALS.items()}
            given = names.get(type(past), type(past).__name__)
            raise UsageError(
                f"this predictor continues {self.record.signal}, it cannot continue {given}",
                hint=f"train one for {given}, in the run of a model that is driven by it",
            )
        if frames < 1:
            raise UsageError(f"cannot predict {frames} frames", hint="use 1 or more")
        known(past, LEAST)
        with torch.inference_mode():
            return self._extend(past, frames)

    @abstractmethod
    def _extend(self, past: Track, frames: int) -> Track: ...

    @abstractmethod
    def _module(self) -> torch.nn.Module: ...

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]: ...

    def save(self, folder: Path) -> None:
        """Write the predictor, replacing an existing one atomically."""
        with replacing(folder) as partial:
            save_file(plain(self._tensors()), partial / WEIGHTS_FILE)
            write_json(partial / PREDICTOR_FILE, self.record.model_dump(mode="json"))


@dataclass(frozen=True, repr=False)
class PointsPredictor(Predictor):
    """Continues pose and face."""

    network: PointPredictor
    code: ShapePCA

    def _extend(self, past: Track, frames: int) -> Track:
        past = cast(PoseTrack | FaceTrack, past)[-MEMORY:]
        points = normalised(past)
        visible = np.flatnonzero(np.isfinite(points).all(axis=2).any(axis=1))
        if not len(visible):
            raise NothingFound(
                f"none of the last {len(past)} frames has a point to continue from",
                hint="end the past with a frame that shows the person or the face",
            )
        # If all points are lost at the end, predict from the last frame that has any.
        lost = len(past) - 1 - int(visible[-1])
        past, points = past[: len(past) - lost], points[: len(past) - lost]
        states, residual = self.code.encode(self.code.complete(points))
        state = self.network.begin(torch.from_numpy(states)[None])
        predicted = self.network.rollout(state, frames + lost)[0, lost:].numpy()
        positions = self.code.decode(predicted, residual[-1])
        positions[:, ~np.isfinite(points[-1]).all(axis=1)] = np.nan
        unit = min(past.width, past.height)
        centre = np.array([past.width, past.height], np.float32) / 2
        depth = positions[..., 2] * unit if isinstance(past, FaceTrack) else None
        return moved_points(past, positions[..., :2] * unit + centre, depth)

    def _module(self) -> torch.nn.Module:
        return self.network

    def _tensors(self) -> dict[str, Tensor]:
        code = {f"code.{k}": torch.from_numpy(v) for k, v in vars(self.code).items()}
        return {**self.network.state_dict(prefix="network."), **code}


def normalised(track: PoseTrack | FaceTrack) -> Floats:
    """Points [T, N, 2 or 3] from the image centre, in shorter sides; faces with depth."""
    unit = np.float32(min(track.width, track.height))
    points = (track.points[..., :2] - np.array([track.width, track.height], np.float32) / 2) / unit
    if isinstance(track, FaceTrack):
        points = np.concatenate([points, track.depth[..., None] / unit], axis=2)
    return points.astype(np.float32)


@dataclass(frozen=True, repr=False)
class LabelsPredictor(Predictor):
    """Continues segmentation.

    The network predicts the motion of small label maps. The labels are sampled at full size from
    the last known map, so errors of resampling do not accumulate from frame to frame.
    """

    network: LabelPredictor

    def _extend(self, past: Track, frames: int) -> Track:
        past = cast(LabelTrack, past)[-PAST_MAPS:]
        if past.classes != self.record.classes:
            raise UsageError(
                f"this predictor has {len(self.record.classes)} classes, but the label maps have"
                f" {len(past.classes)} or different ones",
                hint="create them with the backend and the classes of the training footage",
            )
        assert self.record.size is not None
        device = next(self.network.parameters()).device
        channels = self.record.channels
        ids = np.asarray([*channels, VOID], np.uint8)

        def encode(track: LabelTrack) -> Tensor:
            maps = channel_maps(track, channels, cast(tuple[int, int], self.record.size))
            return one_hot(torch.from_numpy(maps).to(device), len(ids))[None]

        state = LabelState(encode(past))
        propagator, full = LabelPropagator(past[-1:]), (past.height, past.width)
        parts = []
        for _ in range(frames):
            output, _unused = self.network(state)
            flow = resize_flow(output.flow, full)[0].cpu().numpy()
            probability, best = (output.occlusion * output.made_up).max(dim=1)
            probability = F.interpolate(
                probability[None], full, mode="bilinear", align_corners=False
            )
            copied = F.interpolate(1 - output.occlusion, full, mode="bilinear", align_corners=False)
            label = F.interpolate(best[None].float(), full, mode="nearest-exact").long()
            where = (probability > copied)[0, 0].cpu().numpy()
            made_up = ids[label[0, 0].cpu().numpy()]
            parts.append(propagator.step(flow, made_up, where))
            # Feed back the sharp labels, not the network's blurred prediction of them.
            state = state.push(encode(parts[-1])[:, 0])
        return joined(parts)

    def _module(self) -> torch.nn.Module:
        return self.network

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict(prefix="network."))


def channel_maps(
    track: LabelTrack, channels: tuple[int, ...], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """[T, *size] channel of each pixel: its class's index in `channels`, else `len(channels)`."""
    table = np.full(256, len(channels), np.uint8)
    table[list(channels)] = np.arange(len(channels))
    maps: NDArray[np.uint8] = table[track.scaled(size[1], size[0]).labels]
    return maps


def load_predictor(path: str | Path, *, device: torch.device | str = "cpu") -> Predictor:
    """Load a predictor folder, or the predictor of a run folder. Raises `CheckpointInvalid`."""
    folder = Path(path)
    beside = folder / "predictor"
    restore_replaced(beside)
    if not (folder / PREDICTOR_FILE).is_file() and folder.name != "predictor":
        if (folder / MODEL_FILE).is_file() and folder.name == "model":
            beside = folder.parent / "predictor"
        if not beside.is_dir():
            raise CheckpointInvalid(
                f"{folder} has no predictor",
                hint=f"train one: v2v train --task predict --data CLIP --name {folder.name}",
            )
        folder = beside
    record = read_saved(
        folder / PREDICTOR_FILE, PredictorRecord, "a predictor",
        lambda data: check_format(folder, data), RETRAIN,
    )  # fmt: skip
    try:
        network = _network(record)
    except ValueError as error:  # pydantic's ValidationError is one
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        raise CheckpointInvalid(f"{folder / PREDICTOR_FILE}: {reason}", hint=RETRAIN) from error
    _check_model(folder, record)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    load_weights(network, renamed_weights(weights), folder)
    network.eval().requires_grad_(False)
    code = {k.removeprefix("code."): v for k, v in tensors.items() if not k.startswith(prefix)}
    if isinstance(network, LabelPredictor):
        if code:
            raise CheckpointInvalid(
                f"{folder / WEIGHTS_FILE} contains more than weights", hint=RETRAIN
            )
        return LabelsPredictor(record, network.to(device))
    problem = _shape_pca_problem(record.signal, len(network.damping), code)
    if problem is not None:
        raise CheckpointInvalid(f"{folder / WEIGHTS_FILE}: {problem}", hint=RETRAIN)
    return PointsPredictor(record, network, ShapePCA(**{k: v.numpy() for k, v in code.items()}))


def renamed_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under current names: earlier versions wrote `pace` for `velocity_scale`."""
    return {"velocity_scale" if k == "pace" else k: v for k, v in weights.items()}


def _network(record: PredictorRecord) -> PointPredictor | LabelPredictor:
    """Build the network that a record describes. Raises `ValueError`."""
    if record.signal not in SIGNALS:
        raise ValueError(f"signal: unknown signal {shown(record.signal)}")
    if record.signal != "segmentation":
        PointArguments.model_validate(record.network, strict=True)
        return PointPredictor(**record.network)
    arguments = LabelArguments.model_validate(record.network, strict=True)
    # The last channel is for pixels without a class.
    if len(set(record.channels)) != len(record.channels) or arguments.channels != 1 + len(
        record.channels
    ):
        raise ValueError("channels: expected a class for each channel of the network but the last")
    if not 0 < len(record.classes) <= VOID or max(record.channels, default=0) >= VOID:
        raise ValueError("classes: expected a name for the class of each channel")
    if record.size is None or any(side % LabelPredictor.multiple for side in record.size):
        raise ValueError(f"size: expected multiples of {LabelPredictor.multiple}")
    return LabelPredictor(**record.network)


def _shape_pca_problem(signal: str, length: int, code: dict[str, Tensor]) -> str | None:
    """What is wrong with a shape PCA for states of `length` numbers; None if it is valid."""
    points, axes = (len(NAMES), 2) if signal == "pose" else (POINTS, 3)
    if set(code) != {"mean", "basis", "anchors"}:
        return f"expected the shape PCA's mean, basis and anchors, found {sorted(code)}"
    shape = (length - axes - 1, points * axes)
    if code["mean"].shape != (points, axes) or code["basis"].shape != shape:
        return f"the shape PCA does not have {points} points and {shape[0]} components"
    anchors = code["anchors"]
    if anchors.dtype != torch.int64 or anchors.ndim != 1 or not len(anchors):
        return "the shape PCA has no anchors"
    if int(anchors.min()) < 0 or int(anchors.max()) >= points:
        return f"the shape PCA's anchors must be at least 0 and below {points}"
    if any(code[name].dtype != torch.float32 for name in ("mean", "basis")):
        return "the shape PCA is not float32"
    return None


RETRAIN = "train the predictor again: v2v train --task predict --overwrite"


def _check_model(folder: Path, record: PredictorRecord) -> None:
    """Check that the predictor continues the signal that drives the model beside it."""
    path = folder.parent / "model" / MODEL_FILE
    if not path.is_file():
        return
    driven = [use.name for use in read_model_record(path.parent).signals]
    if driven != [record.signal]:
        raise CheckpointInvalid(
            f"{folder} predicts {record.signal}, but the model beside it is driven by"
            f" {' and '.join(driven)}",
            hint=RETRAIN,
        )
