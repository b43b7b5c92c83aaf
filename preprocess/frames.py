"""Yields the stored frames of a clip in order: reads finished ones and makes the others.

A stored frame is made by decoding the footage, cropping and scaling, encoding, and decoding the
result. Signals are extracted from that decoded frame, which every later reader gets too.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from v2v.config import FrameSettings
from v2v.files import Seal, partial_of
from v2v.preprocess.extractor import PART, write_arrays
from v2v.preprocess.shots import LOOKAHEAD, find_cuts, thumbnail
from v2v.video.plan import FramePlan, Geometry
from v2v.video.probe import Probe
from v2v.video.read import read_upright, stored_matrix
from v2v.video.stored import PixelReader, read_stored
from v2v.video.write import RoundTripEncoder, concatenate

_Decoded = tuple[int, NDArray[np.uint8], NDArray[np.uint8]]  # index, RGB [H, W, 3], thumbnail


@dataclass(frozen=True)
class Item:
    """A frame for the extractors, RGB uint8 [H, W, 3]."""

    index: int
    frame: NDArray[np.uint8]
    cut: bool  # whether the frame starts a new shot


def finished_frames(path: Path, shots: list[int], first: int) -> Iterator[Item]:
    """Read the frames of a finished store from `first` on."""
    cuts = set(shots) - {0}
    for index, frame in enumerate(read_stored(path, first=first), start=first):
        yield Item(index, frame, index in cuts)


class GrowingFrames:
    """The frames of an unfinished store, in parts of `PART` frames."""

    def __init__(
        self,
        folder: Path,
        probe: Probe,
        plan: FramePlan,
        geometry: Geometry,
        settings: FrameSettings,
    ) -> None:
        self.folder = folder
        self.probe = probe
        self.plan = plan
        self.geometry = geometry
        self.settings = settings

    def _video(self, part: int) -> Path:
        return self.folder / f"{part:05}.mp4"

    def _notes(self, part: int) -> Path:
        return self.folder / f"{part:05}.npz"

    @property
    def parts(self) -> int:
        return -(-len(self.plan) // PART)

    def _seal(self, part: int) -> Seal:
        return Seal(self.folder / f".{part:05}.seal")

    @cached_property
    def parts_done(self) -> int:
        """Number of intact parts on disk at the start, up to the first damaged one."""
        done = 0
        while done < self.parts and self._seal(done).holds([self._video(done), self._notes(done)]):
            done += 1
        return done

    def items(self, first: int) -> Iterator[Item]:
        """All frames from `first` on; missing ones are made."""
        # Cut detection needs the three previous frames.
        start = max(first - 3, 0)
        window: deque[_Decoded] = deque()
        seen = 0
        for index, frame, thumb in self._frames(start):
            window.append((index, frame, thumb))
            seen = index
            if index - LOOKAHEAD >= max(first, start):
                yield self._with_cut(window, index - LOOKAHEAD)
        for index in range(max(first, seen - LOOKAHEAD + 1), seen + 1):
            yield self._with_cut(window, index)

    @staticmethod
    def _with_cut(window: deque[_Decoded], index: int) -> Item:
        while window[0][0] < index - 3:
            window.popleft()
        place = index - window[0][0]
        thumbs = [thumb for i, _, thumb in window if i <= index + LOOKAHEAD]
        return Item(index, window[place][1], bool(find_cuts(np.stack(thumbs))[place]))

    def _frames(self, first: int) -> Iterator[_Decoded]:
        done = min(self.parts_done * PART, len(self.plan))
        index = first
        while index < done:
            part, offset = divmod(index, PART)
            for frame in read_stored(self._video(part), first=offset):
                yield index, frame, thumbnail(frame)
                index += 1
        if done < len(self.plan):
            for seen in self._make(done):
                if seen[0] >= first:
                    yield seen

    def _make(self, first: int) -> Iterator[_Decoded]:
        """Make the frames from `first`, the start of a part, and finish each part."""
        encoder: RoundTripEncoder | None = None
        thumbs: list[NDArray[np.uint8]] = []
        lost: list[bool] = []
        out = first
        pixels = PixelReader()

        def emit(frame: av.VideoFrame) -> _Decoded:
            nonlocal out
            rgb = pixels(frame)
            thumbs.append(thumbnail(rgb))
            out += 1
            return out - 1, rgb, thumbs[-1]

        for placed in read_upright(self.probe, self.plan, self.geometry, first=first):
            part = placed.index // PART
            if encoder is None:
                encoder = RoundTripEncoder(
                    self._partial(part), width=self.geometry.width, height=self.geometry.height,
                    rate=self.plan.rate, crf=self.settings.crf, preset=self.settings.preset,
                    matrix=stored_matrix(self.probe),
                )  # fmt: skip
            lost.append(placed.lost)
            yield from map(emit, encoder.encode(placed.frame))
            if (placed.index + 1) % PART == 0 or placed.index + 1 == len(self.plan):
                yield from map(emit, encoder.close())
                encoder = None
                write_arrays(
                    self._notes(part), {"thumbs": np.stack(thumbs), "lost": np.array(lost)}
                )
                os.replace(self._partial(part), self._video(part))
                self._seal(part).write([self._video(part), self._notes(part)])
                thumbs, lost = [], []

    def _partial(self, part: int) -> Path:
        return partial_of(self._video(part))

    def finish(self, target: Path) -> tuple[list[int], list[int]]:
        """Join all parts into `target`; returns the shots' first frames and the lost frames."""
        notes = []
        for part in range(self.parts):
            with np.load(self._notes(part), allow_pickle=False) as file:
                notes.append((file["thumbs"], file["lost"]))
        cuts = find_cuts(np.concatenate([thumbs for thumbs, _ in notes]))
        lost = np.flatnonzero(np.concatenate([part_lost for _, part_lost in notes]))
        concatenate(
            [self._video(part) for part in range(self.parts)], target, container="mp4",
            rate=self.plan.rate,
        )  # fmt: skip
        return [0, *np.flatnonzero(cuts).tolist()], lost.tolist()
