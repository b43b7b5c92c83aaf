"""What a training run must remember: its progress, and the frames before a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from torch import Tensor

from v2v.records import Count, Record
from v2v.resume import as_progress
from v2v.training.settings import Budget
from v2v.types import Batch, GeneratorState

ROLLBACKS = 3  # times that a diverged run is rolled back before training gives up


@dataclass
class Progress:
    """The progress of a run; checkpoints store all of it."""

    step: int = 0  # updates of the generator
    window: int = 0  # finished batches of windows; with the seed, it determines the next one
    frame: int = 0  # of the current window, where the next chunk begins
    stage: int = 0
    seconds: float = 0.0  # of training, over all restarts
    lr_scale: float = 1.0  # factor on the learning rates, after rollbacks
    rollbacks: int = 0
    bptt_steps: int = 1  # frames that gradients flow through; lowered when memory runs out
    accumulate: int = 1  # parts of a batch; raised when memory runs out
    recompute: bool = False

    @classmethod
    def read(cls, saved: dict[str, Any], where: Path) -> tuple[Progress, int]:
        """A checkpoint's progress and number of averaged updates. Raises `CheckpointInvalid`."""
        values = as_progress(SavedProgress, saved, where).model_dump()
        averaged = values.pop("averaged")
        return cls(**values), averaged

    def share(self, budget: Budget) -> float:
        """The fraction of the budget that is used up."""
        if budget.steps is not None:
            return self.step / budget.steps
        assert budget.minutes is not None
        return self.seconds / 60 / budget.minutes


class SavedProgress(Record):
    """`Progress` as a checkpoint stores it. Fields of other versions are ignored."""

    model_config = ConfigDict(extra="ignore")

    averaged: Count
    step: Count = 0
    window: Count = 0
    frame: Annotated[int, Field(ge=0, le=256)] = 0
    stage: Annotated[int, Field(ge=0, le=10_000)] = 0
    seconds: Annotated[float, Field(ge=0, le=1e10)] = 0.0
    lr_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    rollbacks: Annotated[int, Field(ge=0, le=ROLLBACKS)] = 0
    bptt_steps: Annotated[int, Field(ge=1, le=8)] = 1
    accumulate: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    recompute: bool = False


@dataclass
class History:
    """The frames of a window before the chunk, for temporal discriminators and losses."""

    batch: Batch
    fake: Tensor | None = None  # [B, t, 3, H, W], detached
    state: GeneratorState | None = None

    def to_carry(self) -> dict[str, Tensor]:
        """The tensors that the next chunk needs."""
        assert self.fake is not None and self.state is not None
        return {"fake": self.fake, **vars(self.state)}

    @classmethod
    def resume(cls, batch: Batch, carried: dict[str, Tensor]) -> History:
        state = {name: value for name, value in carried.items() if name != "fake"}
        return cls(batch, carried["fake"], GeneratorState(**state))
