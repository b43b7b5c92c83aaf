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
from v2v.signals.segmentation import LabelTrack
from v2v.video.stored import read_range

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

    def labels(self, draw: WindowSample) -> LabelTrack:
        """The window's label maps, subsampled by its placement's `downscale`."""
        store, downscale = self.stores[draw.clip], draw.placement.downscale

        def read(start: int, stop: int) -> Any:
            track = store.track("segmentation", start, stop)
            return track if downscale == 1 else _thin(cast(LabelTrack, track), downscale)

        found = [
            block[_part(draw, start, len(block))]
            for start, block in self._blocks("labels", draw, read)
        ]
        instances = [track.instances for track in found]
        return LabelTrack(
            labels=np.concatenate([track.labels for track in found]),
            classes=found[0].classes,
            palette=found[0].palette,
            instances=None if instances[0] is None else np.concatenate(instances),
        )

    def flow(self, draw: WindowSample) -> NDArray[np.uint16]:
        """Packed flow of all frames that the window spans, at any stride."""
        store = self.stores[draw.clip]
        store.check_signal("flow")

        def read(start: int, stop: int) -> Any:
            return read_range(store.folder / "flow.mkv", start, stop, pixel_format="gray16le")

        found = [
            block[max(draw.start - start, 0) : draw.stop - start]
            for start, block in self._blocks("flow", draw, read)
        ]
        return np.concatenate(found)

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
        signals = self.stores[clip].record.signals
        pixels = (height // downscale) * (width // downscale)
        total = 3 * pixels
        if "segmentation" in signals:
            total += pixels * (3 if signals["segmentation"].spec["instances"] else 1)
        if "flow" in signals:
            grid = signals["flow"].spec["grid"]
            total += 6 * grid[0] * grid[1]
        return total


def _part(draw: WindowSample, start: int, count: int) -> slice:
    """Which of `count` frames from `start` belong to the window."""
    skip = -(start - draw.start) % draw.stride if start > draw.start else draw.start - start
    return slice(skip, min(draw.stop - start, count), draw.stride)


def _thin(track: LabelTrack, downscale: int) -> LabelTrack:
    """Subsample labels by `downscale`, taking the middle of each block."""
    rows, columns = track.height // downscale * downscale, track.width // downscale * downscale
    middle = downscale // 2

    def thin(maps: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(maps[:, middle:rows:downscale, middle:columns:downscale])

    instances = None if track.instances is None else thin(track.instances)
    return LabelTrack(thin(track.labels), track.classes, track.palette, instances)
