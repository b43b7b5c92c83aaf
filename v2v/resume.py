"""Training checkpoints on disk.

    runs/b/checkpoints/00001200/
      checkpoint.json          format, step, position in the schedule
      weights.safetensors      generator, moving average, discriminators
      optimisers.pt            Adam's moments; loaded by torch with weights_only=True

The folder is written under a temporary name and then renamed, so it is complete or absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from v2v.errors import CheckpointInvalid
from v2v.files import replacing
from v2v.records import Plain, Record, RecordT, explain
from v2v.saved import FORMAT, check_format, read_saved, write_json
from v2v.tensors import DAMAGED, first_line, plain, read_tensors

CHECKPOINT_FILE = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """The complete state of a run, from which it resumes exactly."""

    progress: dict[str, Any]  # plain data: step, window, stage, time, learning rate
    modules: Mapping[str, dict[str, Tensor]]  # name -> state dict
    optimisers: Mapping[str, dict[str, Any]]


class CheckpointRecord(Record):
    """checkpoint.json. The code that resumes from it validates `progress`."""

    format: int
    progress: Plain


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint folder atomically. Raises `DiskFull`, `NotWritable`."""
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
    record = read_saved(
        folder / CHECKPOINT_FILE, CheckpointRecord, "a checkpoint",
        lambda data: check_format(folder, data), DAMAGED,
    )  # fmt: skip
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(folder / "weights.safetensors", hint=DAMAGED).items():
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
    except Exception as error:  # torch raises many types of errors for damaged files
        raise CheckpointInvalid(
            f"{path} cannot be read: {first_line(error)}", hint=DAMAGED
        ) from error
    if not isinstance(optimisers, dict):
        raise CheckpointInvalid(f"{path} contains no optimiser state", hint=DAMAGED)
    return Checkpoint(record.progress, modules, optimisers)


def as_progress(model: type[RecordT], progress: dict[str, Any], where: Path) -> RecordT:
    """The validated training progress of a checkpoint. Raises `CheckpointInvalid`."""
    try:
        return model.model_validate(progress, strict=True)
    except ValidationError as error:
        raise CheckpointInvalid(f"{where}: progress.{explain(error)}", hint=DAMAGED) from error
