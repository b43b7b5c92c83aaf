"""The training schedule: resolution and window length grow in turn.

A run is a list of stages, plain data. At each size the windows double in length: first single
frames without a past, then longer and longer rollouts from the model's own outputs. Then the size
doubles: the new scale is trained alone for a while, then all scales together, and the windows grow
again (arXiv 1808.06601, section 4). Rollouts do not start from real past frames: the model would
learn to copy them, and its video would freeze once it sees its own outputs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Annotated, Any

from pydantic import Field

from v2v.config import Config, Unit

Lengths = Annotated[
    tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=1, max_length=64)
]


class ScheduleSettings(Config):
    lengths: Lengths  # frames of a window, one stage each
    single_frame_share: Unit  # fraction of the first size's time spent on the first length
    freeze_share: Unit  # fraction of a later size's time in which only its new scale trains
    scale_time_ratio: Annotated[
        float, Field(gt=0, le=100)
    ]  # time for a size, relative to the size below
    rate_decay: Annotated[
        float, Field(gt=0, le=10)
    ]  # learning rate of a size, relative to the size below
    frames: Annotated[
        int, Field(ge=1, le=4096)
    ]  # rendered per update, over all windows of the batch


@dataclass(frozen=True)
class Stage:
    """A part of training with one frame size and one window length."""

    scale: int  # of the generator; 0 is the core
    height: int
    width: int
    length: int  # frames per window
    batch: int  # windows per batch, over all processes
    freeze_lower: bool  # whether only the newest scale is trained
    rate: float  # factor on the learning rates
    until: float  # fraction of the budget at which the stage ends

    def __str__(self) -> str:
        freeze_lower = ", new scale only" if self.freeze_lower else ""
        return f"{self.width}x{self.height}, {self.length} frame(s) x {self.batch}{freeze_lower}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def build_schedule(
    settings: ScheduleSettings, *, height: int, width: int, scales: int, bptt_steps: int
) -> tuple[Stage, ...]:
    """Build the stages of a run with final frames of `height` x `width`.

    Args:
        scales: of the generator; the sides double from one scale to the next.
        bptt_steps: frames of a window that gradients flow through, i.e. rendered per update.
    """
    first, *longer = settings.lengths
    plan: list[tuple[int, int, bool, float]] = []  # scale, length, freeze_lower, weight
    for scale in range(scales):
        weight = settings.scale_time_ratio**scale
        if scale == 0:
            single_frame_share = settings.single_frame_share if longer else 1.0
            plan.append((scale, first, False, weight * single_frame_share))
            rest, lengths = weight * (1 - single_frame_share), longer
        else:
            # The lower scales already use the past: training on single frames would undo that.
            lengths = longer or [first]
            plan.append((scale, lengths[0], True, weight * settings.freeze_share))
            rest = weight * (1 - settings.freeze_share)
        plan += [(scale, length, False, rest / len(lengths)) for length in lengths]
    plan = [stage for stage in plan if stage[3] > 0]
    total = sum(weight for *_, weight in plan)
    ends = [end / total for end in accumulate(weight for *_, weight in plan)]
    ends[-1] = 1.0
    return tuple(
        Stage(
            scale=scale, height=height >> (scales - 1 - scale), width=width >> (scales - 1 - scale),
            length=length, batch=max(settings.frames // min(length, bptt_steps), 1),
            freeze_lower=freeze_lower,
            rate=settings.rate_decay**scale, until=until,
        )
        for (scale, length, freeze_lower, _), until in zip(plan, ends, strict=True)
    )  # fmt: skip


def stage_at(schedule: tuple[Stage, ...], share: float) -> int:
    """The index of the stage at `share`, the used fraction of the budget."""
    return next((i for i, stage in enumerate(schedule) if share < stage.until), len(schedule) - 1)
