"""Previews during training: held-out frames, rendered free-running without a past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.data.dataset import ClipDataset
from v2v.data.store import ClipStore
from v2v.errors import writing
from v2v.models import Generator
from v2v.models.rollout import rollout
from v2v.pixels import to_picture
from v2v.types import Batch, GeneratorState
from v2v.video.write import VideoWriter

CHUNK = 16


def held_out(windows: ClipDataset, clip: int = 0) -> tuple[int, int] | None:
    """The frame range to show: the held-out frames, else the last ones; None for an empty clip."""
    own = windows.clips[clip]
    start, stop = own.held_out
    if stop > start:
        return start, stop
    return (max(own.count - 60, 0), own.count) if own.count else None


@torch.no_grad()
def render(
    generator: Generator,
    windows: ClipDataset,
    clip: int,
    start: int,
    stop: int,
    *,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    state: GeneratorState | None = None,
    artifacts: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield free-running frames [k, 3, H, W] in [-1, 1] and the batch of the same real frames.

    Uses the same rollout as training; memory does not grow with the number of frames. The
    generator's train or eval mode is restored at the end.

    Args:
        state: where to continue from; None starts without a past, `GeneratorState.from_frame`
            from a real frame.
        artifacts: what the generator collected from the training clips.
    """
    mode = generator.training
    generator.eval()
    try:
        for batch in windows.sequence(clip, start, stop, size=size, chunk=CHUNK):
            batch = batch.to(device)
            conditions = [
                generator.complete(batch.condition(t), artifacts or {}) for t in range(batch.length)
            ]
            outputs, states = zip(*rollout(generator, conditions, state), strict=True)
            state = states[-1]
            yield torch.stack([o.frame[0].float().clamp(-1, 1) for o in outputs]), batch
    finally:
        generator.train(mode)


def write_preview(
    generator: Generator,
    windows: ClipDataset,
    path: Path,
    *,
    size: tuple[int, int],
    seconds: float,
    device: torch.device | str = "cpu",
    artifacts: Mapping[str, Tensor] | None = None,
) -> Path | None:
    """Write signals | rendered | real of the first clip's held-out frames; None if it is empty."""
    shown = held_out(windows)
    if shown is None:
        return None
    store = ClipStore(*windows.records[0])
    rate = store.rate
    start, stop = shown
    stop = min(stop, start + max(round(seconds * rate), 1))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Enlarge small frames, so that they are visible in a player.
    factor = max(round(384 / size[0]), 1)
    width, height = 3 * size[1] * factor, size[0] * factor
    index = start
    with VideoWriter(path, width=width, height=height, rate=rate) as writer:
        for frames, batch in render(
            generator, windows, 0, start, stop, size=size, device=device, artifacts=artifacts
        ):
            signals = _draw_signals(store, windows, batch, index)
            for panel, frame, real in zip(signals, frames, batch.frames[0], strict=True):
                row = np.concatenate([panel, to_picture(frame), to_picture(real)], axis=1)
                writer.write(row.repeat(factor, axis=0).repeat(factor, axis=1))
            index += len(frames)
    return path


def _draw_signals(
    store: ClipStore, windows: ClipDataset, batch: Batch, start: int
) -> Iterator[NDArray[np.uint8]]:
    """Draw the signals of each frame in colour, placed as in rendering."""
    height, width = batch.frames.shape[-2:]
    placement = windows.placement(0, (height, width))
    images = np.zeros((batch.length, height, width, 3), np.uint8)
    for name in windows.signals:
        track = store.track(name, start, start + batch.length)
        drawn = placement.track(track).draw(height, width)
        images = np.maximum(images, drawn)
    yield from images
