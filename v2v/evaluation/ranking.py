"""Rank several videos by all metrics together; no single metric decides.

Every metric can be won by a bad video: a blurred one has a small pixel error, a frozen one does
not flicker. Metrics are therefore grouped (picture, motion, subject) with equal weight per group,
and a video with an obvious fault (frozen, blurred, noisy) ranks below all without one, whatever its
scores. Warping error does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from v2v.evaluation.frame_scores import FrameScores
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics import all_metrics
from v2v.evaluation.statistics import Summary, interval

# Thresholds relative to the real video: of its frame difference, and of its sharpness.
FROZEN = 0.4  # below: frozen
SHAKING = 2.5  # above: noise or flicker
BLURRED = 0.6  # below: blurred
NOISY = 1.7  # above: noisy

MethodSummary = Mapping[str, Summary]  # metric -> summary


@dataclass(frozen=True)
class Place:
    """A method's place in the ranking."""

    method: str
    faults: tuple[str, ...]
    rank: float  # mean over the groups of metrics; 1: best in all
    groups: dict[str, float]  # mean rank in each group


def faults(method: MethodSummary, real: MethodSummary) -> tuple[str, ...]:
    """Describe the obvious faults of a video."""
    found = []
    change, expected = (_mean(side, "frame_difference") for side in (method, real))
    if expected > 0 and change / expected < FROZEN:
        found.append(f"frozen: it moves {change / expected:.0%} as much as the real video")
    if expected > 0 and change / expected > SHAKING:
        found.append(
            f"unsteady: it changes {change / expected:.1f} times as much as the real video"
        )
    sharp = _mean(method, "sharpness")
    if sharp < BLURRED:
        found.append(f"blurred: {sharp:.0%} of the real video's sharpness")
    if sharp > NOISY:
        found.append(f"noisy: {sharp:.0%} of the real video's sharpness")
    return tuple(found)


def order(methods: Mapping[str, MethodSummary], real: MethodSummary) -> list[Place]:
    """Rank the methods from best to worst."""
    groups: dict[str, list[dict[str, float]]] = {}
    for name, metric in all_metrics().items():
        if metric.family is None or not any(name in method for method in methods.values()):
            continue
        costs = {method: _cost(_mean(values, name), name) for method, values in methods.items()}
        if all(np.isinf(cost) for cost in costs.values()):
            continue
        groups.setdefault(metric.family, []).append(_ranks(costs))
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
    """Metrics in which one video is better, worse, or not significantly different from another.

    The comparison is paired by frame, because hard frames are hard for both. A difference is not
    significant if the 95 % interval of its mean contains 0.

    Args:
        one, other: per-frame scores of the two videos on each clip.
        counts: number of measured frames of each clip.
        block: see `summary`.

    Returns:
        Names of the metrics: better, worse, not significantly different.
    """
    better: list[str] = []
    worse: list[str] = []
    same: list[str] = []
    for metric in all_metrics().values():
        name = metric.name
        if metric.family is None or not all(name in c for c in (*one, *other)):
            continue
        ours, theirs = (
            [np.asarray(scores[name][:count]) for scores, count in zip(side, counts, strict=True)]
            for side in (one, other)
        )
        known = [bool(np.isfinite(np.concatenate(side)).any()) for side in (ours, theirs)]
        if not any(known):
            continue
        if not all(known):  # undefined for one of them, such as a mouth that never moves
            (better if known[0] else worse).append(name)
            continue
        shorter = [min(len(a), len(b)) for a, b in zip(ours, theirs, strict=True)]
        gaps = [
            _costs(a[:n], metric.better) - _costs(b[:n], metric.better)
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


def _mean(method: MethodSummary, metric: str) -> float:
    found = method.get(metric)
    return float("nan") if found is None or found.mean is None else found.mean


def _cost(value: float, metric: str) -> float:
    """A cost, lower is better; infinite if the value is undefined."""
    if np.isnan(value):
        return float("inf")
    better = all_metrics()[metric].better
    if better == "one":
        return abs(float(np.log(max(value, 1e-6))))
    return -value if better == "higher" else value


def _ranks(costs: Mapping[str, float]) -> dict[str, float]:
    """1 for the lowest cost; ties get their mean rank."""
    from scipy.stats import rankdata  # on first use: its import takes half a second

    return dict(zip(costs, rankdata(list(costs.values())).tolist(), strict=True))
