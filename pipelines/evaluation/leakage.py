"""Measured frames that occur in training too: what the hold-out by time does not keep apart.

A dance that repeats, a loop, or footage that overlaps with a training clip puts copies of training
frames into what is measured. Figures on those reward a model, and `nearest`, for memory. Frames in
which nothing moves are counted apart: training shows them too, but they are no repetition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from v2v.data.store import ClipStore
from v2v.evaluation.duplicates import (
    DuplicateFinder,
    Picture,
    Thumbnails,
    still,
    thumbnail,
    tolerances,
)
from v2v.pipelines.evaluation.clips import Measured, find_store, is_of
from v2v.pipelines.model import LoadedModel
from v2v.progress import Reporter

APART = 0.5  # seconds: nearer frames of one clip are alike in any footage
STILL = 0.25  # seconds before and after a frame in which nothing moves if it is still
SHARE = 0.05  # of the measured frames: fewer duplicates hardly change a mean
PIECE = 32  # training frames that are read together
SEARCHED = 4096  # measured frames that one pass over the training frames searches for


@dataclass(frozen=True)
class Leakage:
    """How many of one clip's measured frames have a nearly identical training frame."""

    measured: int
    moving: int  # of those found: something moves around them, so that the motion repeats
    still: int  # of those found: nothing moves around them

    def notes(self, name: str, *, held_out: bool) -> list[str]:
        """Sentences for the report of the clip `name`; none where too few frames are found."""
        found = []
        if self.moving > SHARE * self.measured:
            other = "hold out more (-s data.hold_out=0.3) of" if held_out else "measure"
            found.append(
                f"{name}: {self.moving} of the {self.measured} measured frames occur in training"
                " too, nearly identical: their figures show what was memorised, and nearest has"
                f" an advantage; {other} longer footage that does not repeat, or measure footage"
                " that was not trained on (--data)"
            )
        if self.still > SHARE * self.measured:
            found.append(
                f"{name}: nothing moves in {self.still} of the {self.measured} measured frames,"
                " and training shows the same picture: their figures say nothing about motion;"
                " measure a part or other footage (--data) in which something moves"
            )
        return found


def find_leakage(
    trained: LoadedModel, clips: Sequence[Measured], report: Reporter
) -> tuple[list[Leakage], list[str]]:
    """Search all training frames for those measured: counts for each clip, and notes.

    Frames are read once for every `SEARCHED` measured frames, and only thumbnails of the latter
    are kept. Raises `StoreDamaged`.
    """
    stores, notes = [], []
    for number, use in enumerate(trained.model.record.clips):
        store = find_store(trained, use)
        if store is not None:
            stores.append((number, store))
        else:
            notes.append(
                f"{use.name}: its clip store is not here, so whether measured frames occur in"
                " this training clip is not known"
            )
    ends = [0, *accumulate(clip.count for clip in clips)]
    found = np.zeros(ends[-1], np.bool_)
    unmoved = np.zeros(ends[-1], np.bool_)
    for first in range(0, ends[-1], SEARCHED):
        stop = min(first + SEARCHED, ends[-1])
        parts, within = [], []  # of each clip: thumbnails, and its tolerances
        for clip, (begin, end) in zip(clips, pairwise(ends), strict=True):
            low, high = max(first - begin, 0), min(stop, end) - begin
            if low < high:
                parts.append(_thumbnails(clip, low, high))
                within.append(tolerances(parts[-1]))
                reach = max(round(STILL * float(clip.store.rate)), 1)
                unmoved[begin + low : begin + high] = still(parts[-1], reach)
        finder = DuplicateFinder(np.concatenate(parts), np.concatenate(within))
        _search(finder, first, trained, stores, clips, ends, report)
        found[first:stop] = finder.found
    leaks = [
        Leakage(clip.count, int((found & ~unmoved)[a:b].sum()), int((found & unmoved)[a:b].sum()))
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
    """Show all training frames to `finder`, whose frames begin with measured frame `first`."""
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
            # What is measured follows what was trained on: its frames up to t + apart are near.
            near = [
                (place, place + min(t + apart - clip.start, clip.count)) for clip, place in same
            ]
            finder.look_at(thumbnail(picture), near)
            report.advance(stage)
    report.finish(stage)


def _training_frames(
    trained: LoadedModel, number: int, store: ClipStore
) -> Iterator[tuple[int, Picture]]:
    """Frames of a training clip with their numbers, as the model shows them."""
    begin, end = trained.model.record.clips[number].trained
    placement = trained.placement(number)
    for low in range(begin, end, PIECE):
        frames: NDArray[np.uint8] = store.frames(low, min(low + PIECE, end))
        for t, frame in enumerate(frames, low):
            yield t, np.asarray(placement.picture(frame), np.uint8)
