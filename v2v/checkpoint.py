"""Models and training checkpoints on disk: safetensors and JSON, never a stranger's pickle.

    runs/b/model/
      model.json               what the model is: signals, size, generator, clips, provenance
      generator.safetensors    its weights (the moving average of training)
      plates.safetensors       the background of each clip, where the camera stood still
      statistics.safetensors   what transfer must know of the training footage, e.g. its poses

    runs/b/checkpoints/00001200/
      checkpoint.json          format, step, where the schedule stands
      weights.safetensors      generator, moving average, discriminators
      optimisers.pt            Adam's moments; read by torch without pickle's powers

A checkpoint is a folder, written beside its place and moved there as a whole: it is there or it
is not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from v2v.errors import CheckpointInvalid, writing
from v2v.files import partial_of, remove
from v2v.models import build_generator

FORMAT = 1
MODEL_FILE = "model.json"
CHECKPOINT_FILE = "checkpoint.json"


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SignalUse(Record):
    """A signal that the model is driven by."""

    name: str
    channels: int
    spec: dict[str, Any]  # what a reader must know, e.g. classes


class ClipUse(Record):
    """A clip that the model was trained on."""

    name: str
    source: str  # file name of the footage
    sha256: str
    fps: str
    frames: int
    trained: tuple[int, int]  # first frame and end (excluded); the rest was held out
    width: int  # of its stored frames
    height: int
    still: bool  # whether the camera stands still, so that there is a plate


class ModelRecord(Record):
    """model.json."""

    format: int
    tool: str
    task: str
    signals: tuple[SignalUse, ...]
    height: int
    width: int
    generator: dict[str, Any]  # name and arguments, for `build_generator`
    active: int | None  # scales in use, of generators that grow
    clips: tuple[ClipUse, ...]
    training: dict[str, Any]  # steps, minutes, settings
    synthetic: str = "Frames rendered by this model are synthetic. Say so where you publish them."


@dataclass(frozen=True)
class Model:
    """A trained model: what `v2v transfer` and the other pipelines render with."""

    record: ModelRecord
    generator: nn.Module
    plates: dict[int, Tensor] = field(default_factory=dict)  # clip -> [4, H, W] as in `Condition`
    statistics: dict[str, Tensor] = field(default_factory=dict)  # "0.pose.points" [T, 75, 3], ...

    def __repr__(self) -> str:
        record = self.record
        parameters = sum(p.numel() for p in self.generator.parameters())
        return (
            f"Model({record.task}, {record.width}x{record.height}, {parameters / 1e6:.1f} M"
            f" parameters, signals: {', '.join(s.name for s in record.signals)},"
            f" clips: {', '.join(c.name for c in record.clips)})"
        )


def save_model(folder: Path, model: Model) -> None:
    """Write a model, in the place of one that is there."""
    with replacing(folder) as partial:
        save_file(plain(model.generator.state_dict()), partial / "generator.safetensors")
        if model.plates:
            plates = {str(clip): plate for clip, plate in model.plates.items()}
            save_file(plain(plates), partial / "plates.safetensors")
        if model.statistics:
            save_file(plain(model.statistics), partial / "statistics.safetensors")
        write_json(partial / MODEL_FILE, model.record.model_dump(mode="json"))


def load_model(path: str | Path, *, device: torch.device | str = "cpu") -> Model:
    """Load a model folder, or the model of a run folder. Raises `CheckpointInvalid`."""
    folder = Path(path)
    if not (folder / MODEL_FILE).is_file() and (folder / "model" / MODEL_FILE).is_file():
        folder = folder / "model"
    data = read_json(folder / MODEL_FILE, what="a model")
    check_format(folder, data)
    try:
        record = ModelRecord.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(p) for p in problem["loc"])
        raise CheckpointInvalid(
            f"{folder / MODEL_FILE}: {where}: {problem['msg']}", hint="train the model again"
        ) from error
    past = record.generator.get("past")
    # It was a flag; before that there was none, and a plate was shown only where it is known.
    if isinstance(past, bool) or (past is None and record.generator.get("plate")):
        raise CheckpointInvalid(
            f"{folder} is of an earlier v2v: its generator said otherwise what it sees of the past",
            hint="train it again",
        )
    generator = build_generator(**record.generator)
    if record.active is not None:
        generator.active = record.active  # type: ignore[assignment]
    load_weights(generator, read_tensors(folder / "generator.safetensors"), folder)
    plates, statistics = folder / "plates.safetensors", folder / "statistics.safetensors"
    return Model(
        record=record,
        generator=generator.to(device).eval(),
        plates={int(k): v.to(device) for k, v in read_tensors(plates).items()}
        if plates.exists()
        else {},
        statistics=read_tensors(statistics) if statistics.exists() else {},
    )


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped."""

    progress: dict[str, Any]  # plain data: step, window, stage, time, learning rate
    modules: Mapping[str, dict[str, Tensor]]  # name -> state dict
    optimisers: Mapping[str, dict[str, Any]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint folder as a whole. Raises `DiskFull`, `NotWritable`."""
    with replacing(folder) as partial:
        weights = {
            f"{name}/{key}": value
            for name, state in checkpoint.modules.items()
            for key, value in state.items()
        }
        save_file(plain(weights), partial / "weights.safetensors")
        torch.save(dict(checkpoint.optimisers), partial / "optimisers.pt")
        record = {"format": FORMAT, "progress": checkpoint.progress}
        write_json(partial / CHECKPOINT_FILE, record)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder. Raises `CheckpointInvalid`."""
    data = read_json(folder / CHECKPOINT_FILE, what="a checkpoint")
    check_format(folder, data)
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(folder / "weights.safetensors").items():
        name, _, rest = key.partition("/")
        modules.setdefault(name, {})[rest] = value
    path = folder / "optimisers.pt"
    try:
        optimisers = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointInvalid(
            f"{path} is refused: it holds more than tensors and numbers",
            hint="it was not written by v2v; use a checkpoint of your own",
        ) from error
    except Exception as error:  # torch has many ways to say that a file is damaged
        raise CheckpointInvalid(
            f"{path} cannot be read: {_first_line(error)}", hint=DAMAGED
        ) from error
    return Checkpoint(data["progress"], modules, optimisers)


DAMAGED = "delete this checkpoint's folder; the run goes on from the one before"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises `CheckpointInvalid`, also for a pickle under any name."""
    if not path.is_file():
        raise CheckpointInvalid(f"{path} is missing", hint=DAMAGED)
    with open(path, "rb") as file:
        head = file.read(9)
    # Safetensors begin with a length in 8 bytes, any bytes, and a header in JSON.
    if path.suffix != ".safetensors" or head[8:] != b"{":
        raise CheckpointInvalid(
            f"{path} is refused: it is a pickle or a torch archive, which can run code",
            hint="only safetensors are loaded as weights",
        )
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointInvalid(
            f"{path} cannot be read: {_first_line(error)}", hint=DAMAGED
        ) from error


def load_weights(module: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    """Raises `CheckpointInvalid` where the tensors are not this module's."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise CheckpointInvalid(
            f"{where} holds other weights than its description says: {reason[0].strip()}",
            hint="another version of v2v trained it, or files were mixed up: train it again, or"
            " restore them",
        ) from error


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: whole, on the CPU, sharing no memory."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


class replacing:  # noqa: N801 - reads as a verb where it is used
    """`with replacing(folder) as partial`: fill `partial`, which then takes the folder's place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.partial = partial_of(folder)

    def __enter__(self) -> Path:
        with writing(self.folder):
            settle(self.folder)
            self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if error is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            if isinstance(error, SafetensorError | RuntimeError):
                _raise_full_disk(self.folder, error)
            if isinstance(error, OSError):
                with writing(self.folder):
                    raise error
            return
        with writing(self.folder):
            for path in self.partial.iterdir():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
            old = _old(self.folder)
            if self.folder.exists():
                os.replace(self.folder, old)
            os.replace(self.partial, self.folder)
            shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def restore_replaced(folder: Path) -> None:
    """Put back what was there, where a process was killed before it could replace it."""
    if not folder.exists() and _old(folder).exists():
        os.replace(_old(folder), folder)


def settle(folder: Path) -> None:
    """Put back or remove what a process left that was killed while it replaced the folder."""
    restore_replaced(folder)
    remove(_old(folder))
    remove(partial_of(folder))


def _raise_full_disk(folder: Path, error: BaseException) -> None:
    """safetensors and torch.save report the system's refusals in words of their own."""
    import errno

    text = str(error).lower()
    full = "no space" in text or "os error 28" in text or "enforce fail" in text
    if full or shutil.disk_usage(_existing(folder)).free < 1 << 20:
        with writing(folder):
            raise OSError(errno.ENOSPC, "no space left on device") from error
    if "permission denied" in text or "read-only" in text:
        with writing(folder):
            raise OSError(errno.EACCES, "permission denied") from error


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointInvalid(
            f"{path.parent} is not {what}: it has no {path.name}",
            hint="give a run folder such as runs/b, or train one: v2v train --help",
        )
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointInvalid(f"{path} is not valid: {error}", hint=DAMAGED) from error
    if not isinstance(data, dict):
        raise CheckpointInvalid(f"{path} is not valid: an object is wanted", hint=DAMAGED)
    return data


def check_format(folder: Path, data: dict[str, Any]) -> None:
    version = data.get("format")
    if version != FORMAT:
        age = "a newer" if isinstance(version, int) and version > FORMAT else "another"
        raise CheckpointInvalid(
            f"{folder} was written by {age} version of v2v (format {version}, this one reads"
            f" {FORMAT})",
            hint="use the version that wrote it, or train again",
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
