"""Models on disk: safetensors and JSON, never untrusted pickles.

    runs/b/model/
      model.json               what the model is: signals, size, generator, clips, provenance
      generator.safetensors    its weights (the moving average of training)
      plates.safetensors       the background plate of each clip, for a static camera
      backgrounds.safetensors  for moving cameras: mosaics and the camera's motion
      statistics.safetensors   statistics of the training footage for transfer, e.g. its poses
      references/              the appearance references of each clip, as pictures

The folder is written under a temporary name and then renamed, so it is complete or absent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor

from v2v.data.background import Backgrounds, Mosaic
from v2v.data.references.choosing import reference_signal
from v2v.data.references.memory import References
from v2v.data.references.pictures import read_references, write_pictures
from v2v.errors import CheckpointInvalid, UnknownName
from v2v.files import replacing
from v2v.models import Generator, build_generator, check_generator
from v2v.records import (
    Count,
    Frames,
    Plain,
    Rate,
    Record,
    Side,
)
from v2v.saved import check_format, read_saved, write_json
from v2v.signals import find, load_signal, signal_names
from v2v.signals.arrays import check_values
from v2v.signals.traits import ArraySignal, CameraSignal
from v2v.tensors import RESTORE, first_line, load_weights, plain, read_tensors

MODEL_FILE = "model.json"
REFERENCES = "references"  # folder of images
BACKGROUNDS = "backgrounds.safetensors"

# Arguments of the generator in records of earlier versions -> their current names.
RENAMED_ARGUMENTS = {"handles": "control_points", "plate": "background_plate"}
MOST_PIXELS = 1 << 25  # per frame of a model: 7680x4320


class SignalUse(Record):
    """A signal that drives the model."""

    name: str
    channels: Annotated[int, Field(ge=1, le=1024)]
    spec: Plain  # what its readers need, e.g. classes


class ClipUse(Record):
    """A clip that the model was trained on."""

    name: str
    source: str  # file name of the footage
    sha256: str
    fps: Rate
    frames: Frames
    trained: tuple[Count, Count]  # first frame and end (exclusive); the rest was held out
    width: Side  # of its stored frames
    height: Side
    still: bool  # whether it has a background plate: the camera is static or tracked

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.trained[0] <= self.trained[1] <= self.frames:
            raise ValueError(f"trained must be a range within the {self.frames} frames")
        return self


Pixels = Annotated[int, Field(ge=8, le=8192)]


class ModelRecord(Record):
    """model.json."""

    format: int
    tool: str
    task: str
    signals: Annotated[tuple[SignalUse, ...], Field(min_length=1)]
    height: Pixels
    width: Pixels
    generator: Plain  # name and arguments, for `build_generator`
    active: Annotated[int, Field(ge=1, le=6)] | None  # active scales, for generators that grow
    clips: tuple[ClipUse, ...]
    training: Plain  # steps, minutes, settings
    synthetic: str = "Frames rendered by this model are synthetic. Say so where you publish them."

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_generator(self.generator)
        name, channels = self.generator.get("name"), self.generator.get("channels")
        if not isinstance(name, str):
            raise ValueError("generator.name must be a string")
        total = sum(use.channels for use in self.signals)
        if channels != total:
            raise ValueError(f"generator takes {channels} channels, but the signals have {total}")
        scales = self.generator.get("scales")
        if self.active is not None and isinstance(scales, int) and self.active > scales:
            raise ValueError(f"active is {self.active}, but the generator has {scales} scale(s)")
        if self.height * self.width > MOST_PIXELS:
            raise ValueError(f"frames of {self.width}x{self.height} are too large")
        for use in self.signals:
            classes = use.spec.get("classes", [])
            if not isinstance(classes, list | tuple) or not all(
                isinstance(name, str) for name in classes
            ):
                raise ValueError(f"classes of {use.name} must be a list of names")
            if use.name in signal_names():
                _check_options(use)
        _ = self.zoom
        return self

    @property
    def zoom(self) -> float:
        """The largest zoom of the training windows."""
        value: Any = self.training
        for key in ("settings", "augment", "scale"):
            value = value.get(key, {}) if isinstance(value, dict) else None
        if value == {}:
            return 1.0
        if isinstance(value, list | tuple) and len(value) == 2:
            largest = value[1]
            if isinstance(largest, int | float) and 1 <= largest <= 4:
                return float(largest)
        raise ValueError("training.settings.augment.scale must be two numbers from 1 to 4")


def _check_options(use: SignalUse) -> None:
    """Raise `ValueError` if a signal's channels contradict the options in its spec."""
    signal = load_signal(use.name)
    for option in signal.options:
        if not isinstance(use.spec.get(option, False), bool):
            raise ValueError(f"{option} of {use.name} must be true or false")
    if signal.options and signal.channels(use.spec) != use.channels:
        raise ValueError(
            f"{use.name} has {use.channels} channels, but its spec describes"
            f" {signal.channels(use.spec)}"
        )


@dataclass(frozen=True)
class Model:
    """A trained model, as `v2v transfer` and the other pipelines use it."""

    record: ModelRecord
    generator: Generator
    # clip -> [4, H, W] as in `Condition`
    background_plates: dict[int, Tensor] = field(default_factory=dict)
    # Of the footage, "0.pose.points" [T, 75, 3], and the generator's artifacts.
    statistics: dict[str, Tensor] = field(default_factory=dict)
    references: dict[int, References] = field(default_factory=dict)  # by clip
    backgrounds: dict[int, Backgrounds] = field(default_factory=dict)  # for moving cameras

    def __repr__(self) -> str:
        record = self.record
        parameters = sum(p.numel() for p in self.generator.parameters())
        return (
            f"Model({record.task}, {record.width}x{record.height}, {parameters / 1e6:.1f} M"
            f" parameters, signals: {', '.join(s.name for s in record.signals)},"
            f" clips: {', '.join(c.name for c in record.clips)})"
        )


def save_model(folder: Path, model: Model) -> None:
    """Write a model, replacing an existing one atomically."""
    with replacing(folder) as partial:
        save_file(plain(model.generator.state_dict()), partial / "generator.safetensors")
        if model.background_plates:
            plates = {str(clip): plate for clip, plate in model.background_plates.items()}
            save_file(plain(plates), partial / "plates.safetensors")
        if model.statistics:
            save_file(plain(model.statistics), partial / "statistics.safetensors")
        if model.references:
            arrays: dict[str, Any] = {}
            for clip, references in model.references.items():
                write_pictures(partial / REFERENCES, clip, references)
                arrays |= {f"{clip}.{name}": v for name, v in references.arrays().items()}
            tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
            save_file(plain(tensors), partial / REFERENCES / "points.safetensors")
        if model.backgrounds:
            write_backgrounds(partial / BACKGROUNDS, model.backgrounds)
        write_json(partial / MODEL_FILE, model.record.model_dump(mode="json"))


def load_model(path: str | Path, *, device: torch.device | str = "cpu") -> Model:
    """Load a model folder, or the model of a run folder. Raises `CheckpointInvalid`."""
    folder = Path(path)
    if not (folder / MODEL_FILE).is_file() and (folder / "model" / MODEL_FILE).is_file():
        folder = folder / "model"
    record = read_model_record(folder)
    generator = generator_of(record, folder)
    if record.active is not None:
        generator.active = record.active
    multiple = generator.multiple
    if record.height % multiple or record.width % multiple:
        raise CheckpointInvalid(
            f"{folder / MODEL_FILE}: height and width must be multiples of {multiple}, not"
            f" {record.height} and {record.width}",
            hint="train the model again",
        )
    load_weights(generator, read_tensors(folder / "generator.safetensors"), folder)
    plates, statistics = folder / "plates.safetensors", folder / "statistics.safetensors"
    return Model(
        record=record,
        generator=generator.to(device).eval(),
        background_plates={
            clip: plate.to(device)
            for clip, plate in _read_background_plates(plates, record).items()
        },
        statistics=_read_statistics(statistics, record, generator),
        references=_read_references(folder / REFERENCES, record),
        backgrounds=_read_backgrounds(folder / BACKGROUNDS, record),
    )


def generator_of(record: ModelRecord, folder: Path) -> Generator:
    """The generator that a record describes, untrained. Raises `CheckpointInvalid`."""
    file = folder / MODEL_FILE
    try:
        return build_generator(**record.generator)
    except UnknownName as error:  # of a package that is not installed here
        raise CheckpointInvalid(
            f"{file}: generator: {error.message}",
            hint="install the package that provides it, or train the model again",
        ) from error
    except (TypeError, ValueError) as error:  # from generators of installed packages
        raise CheckpointInvalid(
            f"{file}: generator: {first_line(error)}", hint="train the model again"
        ) from error


def read_model_record(folder: Path) -> ModelRecord:
    """Read model.json of a model folder. Raises `CheckpointInvalid`."""

    def check(data: dict[str, Any]) -> dict[str, Any] | None:
        check_format(folder, data)
        generator = data.get("generator")
        if not isinstance(generator, dict):
            return None
        generator = {RENAMED_ARGUMENTS.get(name, name): v for name, v in generator.items()}
        past = generator.get("past")
        # Earlier versions stored a flag; before that, nothing, and plates were used differently.
        if isinstance(past, bool) or (past is None and generator.get("background_plate")):
            raise CheckpointInvalid(
                f"{folder} was saved by an earlier version of v2v, with an incompatible"
                " `generator.past`",
                hint="train the model again",
            )
        return data | {"generator": generator}

    return read_saved(folder / MODEL_FILE, ModelRecord, "a model", check, "train the model again")


def _read_background_plates(path: Path, record: ModelRecord) -> dict[int, Tensor]:
    """The plate of each clip. Raises `CheckpointInvalid` if one is missing or invalid."""
    found: dict[int, Tensor] = {}
    if os.path.lexists(path):
        for key, background_plate in read_tensors(path).items():
            shape = [4, record.height, record.width]
            if (
                not key.isdecimal()
                or list(background_plate.shape) != shape
                or background_plate.dtype != torch.float32
            ):
                raise CheckpointInvalid(
                    f"{path}: {key!r} is {background_plate.dtype}"
                    f" {list(background_plate.shape)}, expected a clip"
                    f" number and float32 {shape}",
                    hint=RESTORE,
                )
            found[int(key)] = background_plate
    needed = range(len(record.clips)) if record.generator.get("background_plate") else range(0)
    if not set(needed) <= set(found):
        raise CheckpointInvalid(f"{path} lacks the background of a clip", hint=RESTORE)
    return found


def write_backgrounds(path: Path, backgrounds: Mapping[int, Backgrounds]) -> None:
    """Write the mosaics and camera tracks of the clips, in the model's pixels."""
    arrays: dict[str, Any] = {}
    for clip, found in backgrounds.items():
        for name in found.track.per_frame:
            arrays[f"{clip}.{name}"] = getattr(found.track, name)
        for first, mosaic in found.mosaics.items():
            arrays[f"{clip}.{first}.picture"] = mosaic.picture
            arrays[f"{clip}.{first}.place"] = np.array([*mosaic.corner, *mosaic.scale])
    save_file({n: torch.from_numpy(np.array(v)).contiguous() for n, v in arrays.items()}, path)


def _read_backgrounds(path: Path, record: ModelRecord) -> dict[int, Backgrounds]:
    """The backgrounds of clips with a moving camera. Raises `CheckpointInvalid`."""
    if not os.path.lexists(path):
        return {}
    tensors = read_tensors(path, missing=True)
    clips = sorted({name.partition(".")[0] for name in tensors})
    found = {}
    for clip in clips:
        own = {
            name.removeprefix(f"{clip}."): value.numpy()
            for name, value in tensors.items()
            if name.startswith(f"{clip}.")
        }
        try:
            if not clip.isdecimal() or int(clip) >= len(record.clips):
                raise ValueError(f"{clip!r} is not a clip of the model")
            frames = record.clips[int(clip)].frames
            found[int(clip)] = _background(own, record.height, record.width, frames)
        except ValueError as error:
            raise CheckpointInvalid(f"{path}: {error}", hint=RESTORE) from error
    return found


def _background(arrays: dict[str, Any], height: int, width: int, count: int) -> Backgrounds:
    """Build the background of `count` frames. Raises `ValueError` for invalid arrays."""
    camera = find(CameraSignal, signal_names())
    assert camera is not None
    for name, (kind, shape) in camera.layout.items():
        values = arrays.get(name)
        if values is None or values.dtype != kind or values.shape != (count, *shape):
            raise ValueError(f"{name} must be {kind} {[count, *shape]}")
        if name != "residual" and not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are not finite")
    mosaics = {}
    for name in arrays:
        first, _, kind = name.partition(".")
        if kind != "picture":
            continue
        picture, place = arrays[name], arrays.get(f"{first}.place")
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 4 or (
            not picture.size
        ):  # fmt: skip
            raise ValueError(f"{name} must be an image, uint8 [h, w, 4]")
        if place is None or place.dtype != np.float64 or place.shape != (4,):
            raise ValueError(f"{first}.place must be float64 [4]")
        if not np.isfinite(place).all() or (place[2:] <= 0).any() or not first.isdecimal():
            raise ValueError(f"{first}.place must be finite, with a scale above 0")
        x, y, across, down = place.tolist()
        mosaics[int(first)] = Mosaic(picture, (x, y), (across, down))
    track = camera.assemble(arrays, width=width, height=height)
    known = set(track.reference[track.present()].tolist())
    if not mosaics or not set(mosaics) <= known:
        raise ValueError("a mosaic belongs to no frame")
    return Backgrounds({first: mosaics[first] for first in sorted(mosaics)}, track)


def _read_references(folder: Path, record: ModelRecord) -> dict[int, References]:
    """The appearance references of each clip. Raises `CheckpointInvalid` if a clip has none."""
    signal = reference_signal([use.name for use in record.signals])
    if not record.generator.get("references"):
        return {}
    if signal is None:
        raise CheckpointInvalid(
            f"{folder.parent} has references, but no signal that uses them", hint=RESTORE
        )
    arrays = read_tensors(folder / "points.safetensors", missing=True)
    found = {}
    for clip in range(len(record.clips)):
        own = {
            name.removeprefix(f"{clip}."): value.numpy()
            for name, value in arrays.items()
            if name.startswith(f"{clip}.")
        }
        try:
            references = read_references(
                folder, clip, own, signal=signal, size=(record.height, record.width),
                whole=not record.generator.get("background_plate"),
            )  # fmt: skip
        except ValueError as error:
            raise CheckpointInvalid(
                f"{folder}: {error}",
                hint="restore the file, or remove the image: the model then renders from the"
                " others",
            ) from error
        if references is None:
            raise CheckpointInvalid(
                f"{folder} has no image of {record.clips[clip].name} left, but the model renders"
                " from them",
                hint=RESTORE,
            )
        found[clip] = references
    return found


def _read_statistics(path: Path, record: ModelRecord, generator: Generator) -> dict[str, Tensor]:
    """The stored statistics of the footage. Raises `CheckpointInvalid` if one is invalid."""
    if not os.path.lexists(path):
        return {}
    found = read_tensors(path, missing=True)
    for key, value in found.items():
        problem = (
            generator.check_artifact(key, value)
            if is_artifact(key)
            else _statistic_problem(key, value, found, record)
        )
        if problem:
            raise CheckpointInvalid(f"{path}: {key} {problem}", hint=RESTORE)
    return found


def is_artifact(key: str) -> bool:
    """Whether a stored statistic is the generator's, not that of a clip (`0.pose.points`)."""
    return not key.partition(".")[0].isdecimal()


def _statistic_problem(
    key: str, value: Tensor, found: Mapping[str, Tensor], record: ModelRecord
) -> str | None:
    """What is wrong with a stored statistic, None if it is valid; see `training.prepare`."""
    finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
    clip, _, name = key.partition(".")
    if not clip.isdecimal() or int(clip) >= len(record.clips):
        return f"belongs to no clip; the model has {len(record.clips)}"
    if name == "frames":
        frames = record.clips[int(clip)].frames
        steps = torch.diff(value) if value.ndim == 1 else value
        if value.dtype != torch.int64 or value.ndim != 1 or not len(value):
            return f"is {value.dtype} {list(value.shape)}, expected int64 frame numbers"
        if value[0] < 0 or value[-1] >= frames or bool((steps <= 0).any()):
            return f"must increase, from 0 to below {frames}"
        return None
    if name == "style":
        if value.ndim != 3 or value.shape[0] != 3 or value.dtype != torch.float32 or not finite:
            return (
                f"is {value.dtype} {list(value.shape)}, expected a finite float32 image [3, H, W]"
            )
        return None
    signal, _, kind = name.partition(".")
    if signal not in [use.name for use in record.signals]:
        return "belongs to no signal of the model"
    if kind == "share":
        if list(value.shape) != [256] or not finite or value.dtype != torch.float32:
            return f"is {value.dtype} {list(value.shape)}, expected 256 finite float32 fractions"
        if bool((value < 0).any()) or float(value.sum()) <= 0:
            return "must be fractions from 0 to 1, not all 0"
        return None
    frames_of = found.get(f"{clip}.frames")
    rows = len(frames_of) if frames_of is not None else len(value)
    definition = load_signal(signal)
    layout = definition.layout if isinstance(definition, ArraySignal) else {}
    shape = layout.get(kind, ("", tuple(value.shape[1:])))[1]
    if tuple(value.shape) != (rows, *shape) or value.dtype != torch.float32 or not rows:
        return f"is {value.dtype} {list(value.shape)}, expected float32 {[rows, *shape]}"
    try:
        check_values(kind, value.numpy())
    except ValueError as error:
        return str(error)
    return None
