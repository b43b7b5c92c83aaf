"""What is trained when: space and time grow in turn.

A run is a list of stages, plain data. Within a size, windows double in length: single frames from
nothing first, then ever longer rollouts from the model's own outputs. Then the size doubles: the
new scale is trained alone for a while, then all together, and the windows grow again
(arXiv 1808.06601, section 4). Starting from real past frames instead is a trap: the model learns
to copy them and freezes once it sees its own.
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
    single_frame_share: Unit  # share of the first size's time that goes to the first length
    freeze_share: Unit  # share of a later size's time in which its new scale trains alone
    scale_time_ratio: Annotated[
        float, Field(gt=0, le=100)
    ]  # time for a size, relative to the size below
    rate_decay: Annotated[
        float, Field(gt=0, le=10)
    ]  # learning rate of a size, relative to the size below
    frames: Annotated[
        int, Field(ge=1, le=4096)
    ]  # rendered for one update, over all windows of the batch


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one size and one length of windows."""

    scale: int  # of the generator, counted from the core
    height: int
    width: int
    length: int  # frames of a window
    batch: int  # windows side by side, over all processes
    freeze_lower: bool  # whether only the newest scale is trained
    rate: float  # factor on the learning rates
    until: float  # share of the whole budget at which the stage ends

    def __str__(self) -> str:
        freeze_lower = ", new scale alone" if self.freeze_lower else ""
        return f"{self.width}x{self.height}, {self.length} frame(s) x {self.batch}{freeze_lower}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def build_schedule(
    settings: ScheduleSettings, *, height: int, width: int, scales: int, bptt_steps: int
) -> tuple[Stage, ...]:
    """The stages of a run whose frames are `height` x `width` in the end.

    Args:
        scales: of the generator; each stage below the last size halves the sides.
        bptt_steps: frames of a window that gradients flow through, i.e. that one update renders.
    """
    first, *longer = settings.lengths
    plan: list[tuple[int, int, bool, float]] = []  # scale, length, alone, weight
    for scale in range(scales):
        weight = settings.scale_time_ratio**scale
        if scale == 0:
            single_frame_share = settings.single_frame_share if longer else 1.0
            plan.append((scale, first, False, weight * single_frame_share))
            rest, lengths = weight * (1 - single_frame_share), longer
        else:
            # The scales below know the past by now: single frames would unlearn it.
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
    """The index of the stage at a share of the budget."""
    return next((i for i, stage in enumerate(schedule) if share < stage.until), len(schedule) - 1)
