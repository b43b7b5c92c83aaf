"""The files of a study: its key and the participants' answers."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from v2v.pipelines.provenance import Provenance

KEY_FILE, PAGE_FILE, RESULTS_FILE = "key.json", "index.html", "results.json"
RESULTS = "v2v study results"
CODE = re.compile(r"[A-Za-z0-9_-]{1,40}")  # participant code; the page uses the same pattern


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StudyClip(_Record):
    """Origin of one clip of the page."""

    method: str
    content: str  # name shared by the clips of all methods
    file: str  # name of the source file
    spoiled: bool = False  # degraded for an attention check
    mark: Provenance | None = None  # provenance tag of the source, if it is synthetic


class Trial(_Record):
    """Two clips shown together, by their ids."""

    id: str
    clips: tuple[str, str]


class Key(_Record):
    kind: Literal["v2v study key"] = "v2v study key"
    version: Literal[1] = 1
    tool: str
    study: str
    question: str
    methods: tuple[str, ...]
    trials: tuple[Trial, ...]  # in the order of the page's data
    clips: dict[str, StudyClip]
    notes: tuple[str, ...] = ()

    def is_check(self, trial: Trial) -> bool:
        return any(self.clips[clip].spoiled for clip in trial.clips)


class Answer(_Record):
    trial: str
    left: str  # clip ids
    right: str
    answer: Literal["left", "right"]
    seconds: float = Field(ge=0, allow_inf_nan=False)  # from display to answer

    @property
    def chosen(self) -> str:
        return self.left if self.answer == "left" else self.right


class Answers(_Record):
    """The answer file that a participant downloads from the page."""

    kind: Literal["v2v study answers"]
    version: Literal[1]
    study: str
    participant: str
    started: datetime
    finished: datetime
    trials: tuple[Answer, ...]
