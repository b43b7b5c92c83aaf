"""Detect data leakage: measured frames that nearly duplicate training frames.

A hold-out by time does not prevent it: a dance that repeats, a loop, or footage that overlaps with
a training clip puts copies of training frames into the measured ones. Scores on those reward the
model, and `nearest`, for memorisation. Static frames are counted separately: training contains
them, too, but no motion is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from v2v.data.store import ClipStore
from v2v.evaluation.clips import Measured, find_store, is_of
from v2v.evaluation.duplicates import (
    DuplicateFinder,
    Thumbnails,
    still,
    thumbnail,
    tolerances,
)
from v2v.images import Picture
from v2v.pipelines.model import LoadedModel
from v2v.progress import Reporter

APART = 0.5  # seconds: closer frames of one clip are similar in any footage
STILL = 0.25  # seconds without motion before and after a frame that counts as static
SHARE = 0.05  # fraction of the measured frames: fewer duplicates hardly change a mean
PIECE = 32  # training frames per read
SEARCHED = 4096  # measured frames per pass over the training frames


@dataclass(frozen=True)
class Leakage:
    """Counts of one clip's measured frames that have a nearly identical training frame."""

    measured: int  # all measured frames
    moving: int  # duplicates with motion around them: the motion repeats
    still: int  # duplicates without motion around them

    def notes(self, name: str, *, held_out: bool) -> list[str]:
        """Warnings for the report of the clip `name`; empty if duplicates are few."""
        found = []
        if self.moving > SHARE * self.measured:
            other = "hold out more (-s data.hold_out=0.3) of" if held_out else "measure"
            found.append(
                f"{name}: {self.moving} of the {self.measured} measured frames are nearly identical"
                " to training frames: their scores reflect memorisation and favour nearest;"
                f" {other} longer footage that does not repeat, or measure footage outside the"
                " training data (--data)"
            )
        if self.still > SHARE * self.measured:
            found.append(
                f"{name}: nothing moves in {self.still} of the {self.measured} measured frames,"
                " and training contains the same picture: their scores do not measure motion;"
                " measure footage or a part of it with motion (--data)"
            )
        return found


def find_leakage(
    trained: LoadedModel, clips: Sequence[Measured], report: Reporter
) -> tuple[list[Leakage], list[str]]:
    """Search the training frames for the measured frames. Returns counts per clip and notes.

    Training frames are read once per `SEARCHED` measured frames; only thumbnails of the measured
    frames are kept in memory. Raises `StoreDamaged`.
    """
    stores, notes = [], []
    for number, use in enumerate(trained.model.record.clips):
        store = find_store(trained, use)
        if store is not None:
            stores.append((number, store))
        else:
            notes.append(
                f"{use.name}: its clip store cannot be found, so it is unknown whether measured"
                " frames occur in this training clip"
            )
    ends = [0, *accumulate(clip.count for clip in clips)]
    found = np.zeros(ends[-1], np.bool_)
    static = np.zeros(ends[-1], np.bool_)
    for first in range(0, ends[-1], SEARCHED):
        stop = min(first + SEARCHED, ends[-1])
        parts, within = [], []  # thumbnails and tolerances of each clip
        for clip, (begin, end) in zip(clips, pairwise(ends), strict=True):
            low, high = max(first - begin, 0), min(stop, end) - begin
            if low < high:
                parts.append(_thumbnails(clip, low, high))
                within.append(tolerances(parts[-1]))
                reach = max(round(STILL * float(clip.store.rate)), 1)
                static[begin + low : begin + high] = still(parts[-1], reach)
        finder = DuplicateFinder(np.concatenate(parts), np.concatenate(within))
        _search(finder, first, trained, stores, clips, ends, report)
        found[first:stop] = finder.found
    leaks = [
        Leakage(clip.count, int((found & ~static)[a:b].sum()), int((found & static)[a:b].sum()))
        for clip, (a, b) in zip(clips, pairwise(ends), strict=True)
    ]
    for clip, leak in zip(clips, leaks, strict=True):
        notes += leak.notes(clip.name, held_out=clip.held_out)
    return leaks, notes


def _thumbnails(clip: Measured, low: int, high: int) -> Thumbnails:
    return np.stack([thumbnail(picture) for picture in clip.pictures(clip.order[low:high])])


def _search(
    finder: DuplicateFinder,
    first: int,
    trained: LoadedModel,
    stores: Sequence[tuple[int, ClipStore]],
    clips: Sequence[Measured],
    ends: Sequence[int],
    report: Reporter,
) -> None:
    """Pass all training frames to `finder`, whose frames start at measured frame `first`."""
    stage = "search training frames"
    uses = trained.model.record.clips
    report.start(stage, sum(uses[n].trained[1] - uses[n].trained[0] for n, _ in stores))
    for number, store in stores:
        same = [
            (clip, begin - first)
            for clip, begin in zip(clips, ends[:-1], strict=True)
            if is_of(clip.store.record, uses[number])
        ]
        apart = round(APART * float(store.rate))
        for t, picture in _training_frames(trained, number, store):
            if finder.all_found:
                break
            # Held-out frames follow the training frames: those up to t + apart are too close.
            near = [
                (place, place + min(t + apart - clip.start, clip.count)) for clip, place in same
            ]
            finder.look_at(thumbnail(picture), near)
            report.advance(stage)
    report.finish(stage)


def _training_frames(
    trained: LoadedModel, number: int, store: ClipStore
) -> Iterator[tuple[int, Picture]]:
    """Yield the frames of a training clip with their numbers, at the model's size."""
    begin, end = trained.model.record.clips[number].trained
    placement = trained.placement(number)
    for low in range(begin, end, PIECE):
        frames: NDArray[np.uint8] = store.frames(low, min(low + PIECE, end))
        for t, frame in enumerate(frames, low):
            yield t, np.asarray(placement.picture(frame), np.uint8)
