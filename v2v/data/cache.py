"""Decoded frames, flow and label maps of the clips, cached in memory as far as they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from v2v.data.sampling import TrainingClip, WindowSample
from v2v.data.store import ClipRecord, ClipStore
from v2v.data.transforms import Pictures, shrink
from v2v.signals import Track
from v2v.signals.traits import FlowSignal, LabelMaps, LabelSignal

BLOCK = 8  # frames cached together: the GOP length of frames.mp4, decoded in one go
PIECE = 32  # frames read together without the cache


class FrameCache:
    """Decoded frames, flow and label maps of the clips; one cache per process.

    Clips are cached whole, in the given order, as long as they fit; the others are read window by
    window. The results are the same.
    """

    def __init__(
        self,
        clips: Sequence[TrainingClip],
        records: Sequence[tuple[Path, ClipRecord]],
        *,
        megabytes: int,
        downscale: Callable[[int, tuple[int, int]], int],
    ) -> None:
        """`downscale` gives the factor by which a clip's frames are shrunk for a frame size."""
        self.clips, self.megabytes, self.downscale = clips, megabytes, downscale
        self.stores = [ClipStore(folder, record) for folder, record in records]
        self.blocks: dict[tuple[str, int, int], Any] = {}
        self.grains: tuple[int, ...] = ()
        self.kept: frozenset[int] = frozenset()

    def frames(self, draw: WindowSample) -> Iterator[Pictures]:
        """Each frame of the window, uint8 [h, w, 3], shrunk by its placement's `downscale`."""
        store, downscale = self.stores[draw.clip], draw.placement.downscale

        def read(start: int, stop: int) -> Any:
            return shrink(store.frames(start, stop), downscale)

        for start, block in self._blocks("frames", draw, read):
            for t in draw.frames:
                if start <= t < start + len(block):
                    yield block[t - start]

    def labels(self, draw: WindowSample) -> LabelMaps:
        """The window's label maps, subsampled by its placement's `downscale`."""
        store, downscale = self.stores[draw.clip], draw.placement.downscale
        signal = store.record.find(LabelSignal)
        assert signal is not None

        def read(start: int, stop: int) -> Any:
            track = cast(LabelMaps, store.track(signal.name, start, stop))
            return track if downscale == 1 else track.subsampled(downscale)

        found: list[LabelMaps] = [
            block[_part(draw, start, len(block))]
            for start, block in self._blocks("labels", draw, read)
        ]
        return type(found[0]).joined(found)

    def flow(self, draw: WindowSample) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Flow and occlusion of all frames that the window spans, at any stride."""
        store = self.stores[draw.clip]
        signal = store.record.find(FlowSignal)
        assert signal is not None
        store.check_signal(signal.name)

        def read(start: int, stop: int) -> Any:
            return signal.packed(store.folder, start, stop)

        found = [
            block[max(draw.start - start, 0) : draw.stop - start]
            for start, block in self._blocks("flow", draw, read)
        ]
        return signal.unpack(np.concatenate(found))

    def track(self, name: str, draw: WindowSample) -> Track:
        """Any signal, uncached: point arrays are memory-mapped, which is fast enough."""
        return self.stores[draw.clip].track(name, draw.start, draw.stop)[:: draw.stride]

    def _blocks(self, kind: str, draw: WindowSample, read: Any) -> Iterator[tuple[int, Any]]:
        """First frame and content of the blocks that together span the window, in order."""
        first = draw.start - draw.start % BLOCK
        if draw.index is None or not self._keeps(draw):
            # Large pieces, since opening a file takes time, but bounded for long windows.
            for start in range(draw.start, draw.stop, PIECE):
                yield start, read(start, min(start + PIECE, draw.stop))
            return
        count = self.clips[draw.clip].count
        for block in range(first, draw.stop, BLOCK):
            key = (kind, draw.clip, block)
            if key not in self.blocks:
                self.blocks[key] = read(block, min(block + BLOCK, count))
            yield block, self.blocks[key]

    def _keeps(self, draw: WindowSample) -> bool:
        """Whether a clip is cached; blocks downscaled for another size are discarded."""
        size = draw.placement.size
        grains = tuple(self.downscale(clip, size) for clip in range(len(self.clips)))
        if grains != self.grains:
            self.grains, kept = grains, set()
            self.blocks = {k: v for k, v in self.blocks.items() if k[0] == "flow"}
            budget = self.megabytes * 2**20
            for number, downscale in enumerate(grains):
                budget -= self.clips[number].train[1] * self._bytes(number, downscale)
                if budget < 0:
                    break
                kept.add(number)
            self.kept = frozenset(kept)
            self.blocks = {k: v for k, v in self.blocks.items() if k[1] in kept}
        return draw.clip in self.kept

    def _bytes(self, clip: int, downscale: int) -> int:
        """Bytes of one decoded frame with its flow and label maps."""
        height, width = self.clips[clip].source
        record = self.stores[clip].record
        pixels = (height // downscale) * (width // downscale)
        total = 3 * pixels
        labels, flow = record.find(LabelSignal), record.find(FlowSignal)
        if labels is not None:
            total += pixels * (3 if labels.has_instances(record.signals[labels.name].spec) else 1)
        if flow is not None:
            total += flow.packed_bytes(record.signals[flow.name].spec)
        return total


def _part(draw: WindowSample, start: int, count: int) -> slice:
    """Which of `count` frames from `start` belong to the window."""
    skip = -(start - draw.start) % draw.stride if start > draw.start else draw.start - start
    return slice(skip, min(draw.stop - start, count), draw.stride)
