"""The generator over a chunk of frames as one module."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from v2v.data.transforms import PastCorruption, corrupt_past
from v2v.models import Generator
from v2v.models.rollout import rollout
from v2v.types import Batch, GeneratorState


class Unroll(nn.Module):
    """The generator over a chunk as one module: DDP needs one forward per backward."""

    def __init__(self, generator: Generator, corruption: PastCorruption) -> None:
        super().__init__()
        self.generator = generator
        self.corruption = corruption
        self.recompute = False

    def forward(
        self, batch: dict[str, Tensor | None], state: dict[str, Tensor] | None, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Takes and returns plain dicts: Fabric and DDP find tensors only in those."""
        chunk = Batch(**batch)  # type: ignore[arg-type]
        random = torch.Generator(chunk.frames.device).manual_seed(seed)

        def corrupt(frames: Tensor) -> Tensor:
            with torch.autocast(frames.device.type, enabled=False):
                return corrupt_past(frames, **self.corruption.model_dump(), generator=random)

        conditions = [chunk.condition(t) for t in range(chunk.length)]
        if self.generator.wants_target:
            conditions = [replace(c, style=chunk.frames[:, t]) for t, c in enumerate(conditions)]
        past = None if state is None else GeneratorState(**state)
        rolled = rollout(
            self.generator, conditions, past, corrupt=corrupt, recompute=self.recompute
        )
        outputs, states = zip(*rolled, strict=True)
        names = ("frame", "synthesised", "synthesis_only", "warped", "flow", "occlusion", "matte")
        stacked = {
            name: torch.stack([getattr(o, name) for o in outputs], dim=1)
            for name in names
            if getattr(outputs[0], name) is not None
        }
        extra = [o.auxiliary for o in outputs if o.auxiliary is not None]
        if extra:
            stacked["auxiliary"] = torch.stack(extra).mean()
        return stacked, vars(states[-1])
