"""The record of a folder that v2v wrote: a model, a checkpoint or a predictor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from v2v.errors import CheckpointInvalid
from v2v.records import Checked, RecordT, read_record, shown

FORMAT = 1


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def read_saved(
    path: Path, model: type[RecordT], what: str, check: Checked, hint: str
) -> RecordT:  # fmt: skip
    """Read the record of a model, checkpoint or predictor. Raises `CheckpointInvalid`.

    Args:
        what: the kind of record, for the error message.
    """
    if not path.is_file():
        raise CheckpointInvalid(
            f"{path.parent} is not {what}: it has no {path.name}",
            hint="give a run folder such as runs/b, or train one: v2v train --help",
        )
    return read_record(path, model, CheckpointInvalid, hint=hint, check=check)


def check_format(folder: Path, data: dict[str, Any]) -> None:
    version = data.get("format")
    if version != FORMAT or not isinstance(version, int):
        age = "a newer" if isinstance(version, int) and version > FORMAT else "another"
        raise CheckpointInvalid(
            f"{folder} was written by {age} version of v2v (format {shown(version)}, this"
            f" version reads {FORMAT})",
            hint="use the version that wrote it, or train again",
        )
