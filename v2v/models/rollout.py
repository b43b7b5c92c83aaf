"""The one rollout: training, rendering and export go through these few lines.

A model trained by one loop and run by another drifts between the two; here there is but one.
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
    """Render frame after frame, each from its condition and the state that the last one left.

    Lazy: memory does not grow with the number of frames, unless gradients flow through them.

    Args:
        conditions: one for each frame.
        state: where to go on; None starts from nothing.
        corrupt: what happens to past frames [B, P, 3, H, W] before the generator sees them. In
            training, noise and blur there teach it to mend its own errors instead of adding to
            them.
        recompute: keep no activations for the backward pass, compute each frame again there
            (arXiv 1604.06174): half the memory for a third more time.

    Yields:
        Each frame's output, and the state after it. States hold the frames as rendered.
    """
    for condition in conditions:
        if state is None:
            state = GeneratorState.empty(condition, PAST)
        seen = state if corrupt is None else state.with_frames(corrupt(state.frames))
        if recompute:
            output = checkpoint(generator, condition, seen, use_reentrant=False)
        else:
            output = generator(condition, seen)
        state = state.push(condition, output.frame)
        yield output, state
