"""Out-of-distribution segments of a rendering: motion that the training footage did not cover."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_PLACES = 4  # segments of one kind that are listed individually
MAX_KINDS = 6  # kinds that get their own sentence


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `stop` (excluded)."""

    start: int
    stop: int
    what: str  # "the left arm raised above the head"
    advice: str  # "film yourself raising the left arm above the head"


def joined(mask: NDArray[np.bool_], shortest: int) -> list[tuple[int, int]]:
    """Runs of True, merged over gaps below `shortest`, with at least `shortest` True frames."""
    frames = np.flatnonzero(mask)
    if not len(frames):
        return []
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > shortest) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs if len(run) >= shortest]


def format_segments(segments: Iterable[Segment], seconds: Callable[[int], float]) -> list[str]:
    """One sentence per piece of advice on what to film, the longest total duration first.

    Args:
        seconds: converts a frame number to the time in seconds that the user sees.
    """
    by_advice: dict[str, list[Segment]] = {}
    for segment in segments:
        by_advice.setdefault(segment.advice, []).append(segment)
    length = {a: sum(s.stop - s.start for s in found) for a, found in by_advice.items()}
    sentences = []
    ordered = sorted(by_advice, key=lambda a: -length[a])
    for advice in ordered[:MAX_KINDS]:
        found = sorted(by_advice[advice], key=lambda s: s.start - s.stop)
        places = [
            f"{seconds(s.start):.1f} to {seconds(s.stop):.1f} s"
            for s in sorted(found[:MAX_PLACES], key=lambda s: s.start)
        ]
        more = f" and {len(found) - MAX_PLACES} more" if len(found) > MAX_PLACES else ""
        sentences.append(f"not in training: {found[0].what} ({', '.join(places)}{more}); {advice}")
    if len(ordered) > MAX_KINDS:
        rest = ", ".join(a.removeprefix("film yourself ") for a in ordered[MAX_KINDS:])
        sentences.append(f"shorter segments, also not in training: {rest}")
    return sentences
