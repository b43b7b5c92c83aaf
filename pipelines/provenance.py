"""The provenance tag of a rendered video: that it is synthetic, and how it was made.

It is stored as JSON in the file's `comment` tag, which all containers and players support.
`digital_source_type` is IPTC's term for media made by a trained model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from v2v import __version__
from v2v.video.read import read_tags

if TYPE_CHECKING:
    from v2v.pipelines.model import LoadedModel

TAG = "comment"


class Provenance(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    synthetic: Literal[True] = True
    note: str = "Synthetic video: rendered by a model, not filmed."
    tool: str
    pipeline: str
    model: str
    model_sha256: str  # of its weights
    trained_on: tuple[str, ...]  # file names of the footage
    source: str  # file name of the driving footage
    source_sha256: str
    render: str = ""  # hash of everything that determines the frames
    digital_source_type: str = (
        "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )

    @classmethod
    def of(
        cls, trained: LoadedModel, pipeline: str, source: str, source_sha256: str, *, render: str
    ) -> Provenance:
        return cls(
            tool=f"v2v {__version__}", pipeline=pipeline, model=trained.name,
            model_sha256=trained.sha256,
            trained_on=tuple(clip.source for clip in trained.model.record.clips),
            source=source, source_sha256=source_sha256, render=render,
        )  # fmt: skip

    def tags(self) -> dict[str, str]:
        return {TAG: json.dumps(self.model_dump(mode="json"))}


def read_provenance(path: Path) -> Provenance | None:
    """Read the provenance tag of a video; None if it has none. Raises `NotAVideo`."""
    try:
        return Provenance.model_validate_json(read_tags(path).get(TAG, ""))
    except ValidationError:
        return None
