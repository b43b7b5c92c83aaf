"""The cost of a generator."""

from __future__ import annotations

import torch
from torch import nn

from v2v.types import Condition, GeneratorState


def multiply_adds(generator: nn.Module, condition: Condition, state: GeneratorState) -> int:
    """Multiply-adds of one frame, counted by torch at run time."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        generator(condition, state)
    return int(counter.get_total_flops()) // 2
