"""Which of several videos is the best, and why: no single measure decides.

Each measure has a video that wins it without being good: a blurred one is near in every pixel, a
frozen one never flickers. So measures are weighed by what they see (picture, motion, subject), each
group alike, and a video with a fault that everybody would notice (frozen, blurred,
noisy) comes after all without one, whatever its numbers. Warping error ranks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from v2v.evaluation.frame_scores import FrameScores
from v2v.evaluation.measures import Values
from v2v.evaluation.registry import BY_NAME, MEASURES
from v2v.evaluation.statistics import Summary, interval

FROZEN = 0.4  # of the real video's frame difference: less than this is frozen
SHAKING = 2.5  # of it: more than this is noise or flicker
BLURRED = 0.6  # of the real video's sharpness
NOISY = 1.7

MethodSummary = Mapping[str, Summary]  # measure -> what it came to


@dataclass(frozen=True)
class Place:
    """Where a row stands."""

    method: str
    faults: tuple[str, ...]
    rank: float  # mean over the groups of measures; 1 is the best in all
    groups: dict[str, float]  # the mean rank in each


def faults(method: MethodSummary, real: MethodSummary) -> tuple[str, ...]:
    """What everybody would notice, in words."""
    found = []
    moves, truly = (_mean(side, "frame_difference") for side in (method, real))
    if truly > 0 and moves / truly < FROZEN:
        found.append(f"frozen: it moves {moves / truly:.0%} as much as the real video")
    if truly > 0 and moves / truly > SHAKING:
        found.append(f"unsteady: it changes {moves / truly:.1f} times as much as the real video")
    sharp = _mean(method, "sharpness")
    if sharp < BLURRED:
        found.append(f"blurred: {sharp:.0%} of the real video's sharpness")
    if sharp > NOISY:
        found.append(f"noisy: {sharp:.0%} of the real video's sharpness")
    return tuple(found)


def order(methods: Mapping[str, MethodSummary], real: MethodSummary) -> list[Place]:
    """The rows from the best to the worst."""
    groups: dict[str, list[dict[str, float]]] = {}
    for name, measure in BY_NAME.items():
        if measure.family is None or not any(name in method for method in methods.values()):
            continue
        costs = {method: _cost(_mean(values, name), name) for method, values in methods.items()}
        if all(np.isinf(cost) for cost in costs.values()):
            continue
        groups.setdefault(measure.family, []).append(_ranks(costs))
    places = []
    for method, values in methods.items():
        means = {
            family: float(np.mean([ranks[method] for ranks in found]))
            for family, found in groups.items()
        }
        rank = float(np.mean(list(means.values()))) if means else float("nan")
        places.append(Place(method, faults(values, real), rank, means))
    return sorted(places, key=lambda place: (bool(place.faults), place.rank, place.method))


def compare(
    one: Sequence[FrameScores], other: Sequence[FrameScores], counts: Sequence[int], *, block: int
) -> tuple[list[str], list[str], list[str]]:
    """Ranked measures in which one video is better, worse, or not told apart from another.

    Frame by frame: both show the same moments, so what is hard in them is hard for both. Not told
    apart: the 95 % interval of the mean difference holds 0.

    Args:
        one, other: their courses on each clip.
        counts: frames of each clip that count.
        block: as in `summary`.
    """
    better: list[str] = []
    worse: list[str] = []
    same: list[str] = []
    for measure in MEASURES:
        name = measure.name
        if measure.family is None or not all(name in c for c in (*one, *other)):
            continue
        ours, theirs = (
            [np.asarray(scores[name][:count]) for scores, count in zip(side, counts, strict=True)]
            for side in (one, other)
        )
        known = [bool(np.isfinite(np.concatenate(side)).any()) for side in (ours, theirs)]
        if not any(known):
            continue
        if not all(known):  # what one of them has nothing of, such as a mouth that moves
            (better if known[0] else worse).append(name)
            continue
        shorter = [min(len(a), len(b)) for a, b in zip(ours, theirs, strict=True)]
        gaps = [
            _costs(a[:n], measure.better) - _costs(b[:n], measure.better)
            for a, b, n in zip(ours, theirs, shorter, strict=True)
        ]
        low, high = interval(gaps, block)
        if low is not None and high is not None and (low > 0 or high < 0):
            (better if high < 0 else worse).append(name)
        else:
            same.append(name)
    return better, worse, same


def _costs(values: Values, better: str) -> Values:
    if better == "one":
        values = np.abs(values - 1)
    return -values if better == "higher" else values


def _mean(method: MethodSummary, measure: str) -> float:
    found = method.get(measure)
    return float("nan") if found is None or found.mean is None else found.mean


def _cost(value: float, measure: str) -> float:
    """Lower is better; what could not be measured is the worst."""
    if np.isnan(value):
        return float("inf")
    better = BY_NAME[measure].better
    if better == "one":
        return abs(float(np.log(max(value, 1e-6))))
    return -value if better == "higher" else value


def _ranks(costs: Mapping[str, float]) -> dict[str, float]:
    """1 for the least cost; equal ones share the mean of their places."""
    ordered: Sequence[float] = sorted(costs.values())
    return {
        method: float(np.mean([i + 1 for i, value in enumerate(ordered) if value == cost]))
        for method, cost in costs.items()
    }
