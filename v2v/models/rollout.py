"""The only rollout: training, rendering and export share it.

Separate loops for training and inference diverge over time, so there is only one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from v2v.types import PAST, Condition, GeneratorOutput, GeneratorState

Corruption = Callable[[Tensor], Tensor]


def rollout(
    generator: nn.Module,
    conditions: Iterable[Condition],
    state: GeneratorState | None = None,
    *,
    corrupt: Corruption | None = None,
    recompute: bool = False,
) -> Iterator[tuple[GeneratorOutput, GeneratorState]]:
    """Render frame by frame, each from its condition and the state after the previous frame.

    Lazy: memory does not grow with the number of frames, unless gradients flow through them.

    Args:
        conditions: one per frame.
        state: where to continue from; None starts without a past.
        corrupt: applied to past frames [B, P, 3, H, W] before the generator sees them. In training,
            noise and blur teach it to correct its own errors instead of accumulating them.
        recompute: discard activations and recompute each frame in the backward pass
            (arXiv 1604.06174): half the memory for a third more time.

    Yields:
        The output of each frame and the state after it. States contain the uncorrupted frames.
    """
    for condition in conditions:
        if state is None:
            state = GeneratorState.empty(condition, PAST)
        past = state if corrupt is None else state.with_frames(corrupt(state.frames))
        if recompute:
            output = checkpoint(generator, condition, past, use_reentrant=False)
        else:
            output = generator(condition, past)
        state = state.push(condition, output.frame)
        yield output, state
