"""Stretches of a rendering that ask more of a model than its training footage showed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHOWN = 4  # stretches of one kind that are told one by one
MOST = 6  # kinds that are told at all


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `stop` (excluded)."""

    start: int
    stop: int
    what: str  # "the left arm raised above the head"
    advice: str  # "film yourself raising the left arm above the head"


def joined(mask: NDArray[np.bool_], shortest: int) -> list[tuple[int, int]]:
    """Runs of True, joined over gaps below `shortest`, that hold at least `shortest` of them."""
    frames = np.flatnonzero(mask)
    if not len(frames):
        return []
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > shortest) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs if len(run) >= shortest]


def format_segments(segments: Iterable[Segment], seconds: Callable[[int], float]) -> list[str]:
    """A sentence for each thing to film, the longest first.

    Args:
        seconds: the moment of a frame, as the user counts.
    """
    by_advice: dict[str, list[Segment]] = {}
    for stretch in segments:
        by_advice.setdefault(stretch.advice, []).append(stretch)
    length = {a: sum(s.stop - s.start for s in found) for a, found in by_advice.items()}
    sentences = []
    ordered = sorted(by_advice, key=lambda a: -length[a])
    for advice in ordered[:MOST]:
        found = sorted(by_advice[advice], key=lambda s: s.start - s.stop)
        places = [
            f"{seconds(s.start):.1f} to {seconds(s.stop):.1f} s"
            for s in sorted(found[:SHOWN], key=lambda s: s.start)
        ]
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        sentences.append(f"not in training: {found[0].what} ({', '.join(places)}{more}); {advice}")
    if len(ordered) > MOST:
        rest = ", ".join(a.removeprefix("film yourself ") for a in ordered[MOST:])
        sentences.append(f"shorter, and not in training either: {rest}")
    return sentences
