"""List, add and remove a model's reference pictures: real frames that condition the generator.

>>> for picture in list_references("runs/b"): print(picture)
>>> add_reference("runs/b", "smile.jpg")
>>> drop_reference("runs/b", 3)

They are ordinary pictures in `model/references`, opaque on the person. Adding one needs no
training, because the network takes the appearance from its references.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from v2v.checkpoint import REFERENCES
from v2v.data.references.choosing import reference_signal
from v2v.data.references.gathering import gather
from v2v.data.references.pictures import picture_name, write_picture
from v2v.data.transforms import Placement
from v2v.errors import NothingFound, UsageError
from v2v.files import replacing_file
from v2v.pipelines.model import LoadedModel
from v2v.pipelines.source import open_source
from v2v.progress import Reporter
from v2v.tensors import plain, read_tensors

POINTS = "points.safetensors"
ADDED = -1  # frame number of a picture that does not come from the footage


@dataclass(frozen=True)
class ReferencePicture:
    """One reference picture of a model."""

    number: int
    path: Path
    frame: int | None  # frame number in the training footage; None: added by hand

    def as_json(self) -> dict[str, object]:
        return {"number": self.number, "picture": str(self.path), "frame": self.frame}


def _opened(model: str | Path) -> LoadedModel:
    trained = LoadedModel.open(model, device="cpu")
    if not trained.model.references:
        raise UsageError(
            f"{trained.name} renders without reference pictures",
            hint="train a pose or face model with -s generator.references=on",
        )
    return trained


def list_references(model: str | Path, *, clip: str | None = None) -> list[ReferencePicture]:
    """List the pictures of one training clip, by default the first. Raises `CheckpointInvalid`."""
    trained = _opened(model)
    number = trained.clip_number(clip)
    folder = trained.folder / REFERENCES
    frames = read_tensors(folder / POINTS, missing=True)[f"{number}.frames"].tolist()
    paths = [folder / picture_name(number, i) for i in range(len(frames))]
    return [
        ReferencePicture(i, path, None if frame == ADDED else frame)
        for i, (path, frame) in enumerate(zip(paths, frames, strict=True))
        if path.exists()
    ]


def drop_reference(model: str | Path, number: int, *, clip: str | None = None) -> None:
    """Remove a picture. Raises `UsageError` if it does not exist or is the last one."""
    found = list_references(model, clip=clip)
    by_number = {picture.number: picture.path for picture in found}
    if number not in by_number:
        raise UsageError(
            f"there is no reference {number}",
            hint=f"choose one of {', '.join(map(str, by_number))}; v2v references lists them",
        )
    if len(found) == 1:
        raise UsageError(
            "cannot remove the last reference: the model needs at least one to render",
            hint="add another first: v2v references MODEL --add PICTURE",
        )
    by_number[number].unlink()


def add_reference(
    model: str | Path, picture: str | Path, *, clip: str | None = None,
    report: Reporter | None = None,
) -> ReferencePicture:  # fmt: skip
    """Add a picture of the person; it is preprocessed like footage.

    It must show the person as in the footage: same size, clothes and lighting.

    Raises `NothingFound` if no body or face is detected, and what `preprocess` raises.
    """
    trained = _opened(model)
    number = trained.clip_number(clip)
    references = trained.model.references[number]
    signal = reference_signal([use.name for use in trained.model.record.signals])
    assert signal is not None
    with tempfile.TemporaryDirectory() as data:
        source = open_source(
            picture, [signal.name, "segmentation"], data=Path(data), report=report,
            values={"preview.enabled": False},
        )  # fmt: skip
        found = gather(
            source.store, 0, 1, signal=signal, count=1, whole=references.whole,
            placement=Placement.plain(source.size, trained.size),
        )  # fmt: skip
    if found is None:
        raise NothingFound(
            f"no {signal.name} was found in {picture}",
            hint="use a picture that shows the whole body or face",
        )
    found = replace(found, frames=np.array([ADDED]))
    folder = trained.folder / REFERENCES
    tensors = read_tensors(folder / POINTS, missing=True)
    index = len(tensors[f"{number}.frames"])
    path = folder / picture_name(number, index)
    with replacing_file(path) as partial:
        write_picture(partial, found.pictures[0], found.masks[0])
    # Write the points last: a picture without points is ignored.
    for name, values in found.arrays().items():
        key = f"{number}.{name}"
        tensors[key] = torch.cat([tensors[key], torch.from_numpy(values.copy())])
    with replacing_file(folder / POINTS) as partial:
        save_file(plain(tensors), partial)
    return ReferencePicture(index, path, None)
