"""Summarise per-frame values: means, confidence intervals and drift.

Frames of a video are not independent: errors persist from frame to frame. Resampling single frames
would make the intervals far too narrow, so blocks of neighbours are drawn (moving-block bootstrap,
Künsch 1989). Clips vary more than the frames of one clip: with several clips, rely on the interval
over clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2v.evaluation.measures import Values, average

DRAWS = 1000  # bootstrap samples
COVERAGE = 0.95
SEED = 0  # the same values give the same interval
FEWEST = 10  # minimum number of values for a drift


@dataclass(frozen=True)
class Summary:
    """One measure of one method. None: undefined."""

    mean: float | None
    low: float | None = None  # lower bound of the 95 % interval over frames, by block bootstrap
    high: float | None = None
    frames: int = 0  # number of defined values
    clips: tuple[float | None, ...] = ()  # mean of each clip
    clips_low: float | None = None  # lower bound of the 95 % interval over clips, if several
    clips_high: float | None = None
    drift: float | None = None  # see `drift`

    def as_json(self) -> dict[str, Any]:
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


def summary(
    clips: Sequence[Values],
    *,
    block: int,
    longer: Sequence[tuple[Values, NDArray[np.int64]]] = (),
) -> Summary:
    """Summarise the values [T] of some clips.

    Args:
        block: length of a bootstrap block in frames; about a second.
        longer: values of longer rendering and the frame number of each, to measure drift.
    """
    means = [average(values) for values in clips]
    every = np.concatenate([np.asarray(values, np.float64) for values in clips])
    count = int((~np.isnan(every)).sum())
    if not count:
        return Summary(None, clips=tuple(known(mean) for mean in means))
    low, high = interval(clips, block)
    clip_low, clip_high = _interval_of_clips(means)
    drifts = [drift(values, order) for values, order in longer]
    return Summary(
        mean=average(every), low=low, high=high, frames=count,
        clips=tuple(known(mean) for mean in means), clips_low=clip_low, clips_high=clip_high,
        drift=known(average(np.asarray(drifts, np.float64))) if drifts else None,
    )  # fmt: skip


def interval(clips: Sequence[Values], block: int) -> tuple[float | None, float | None]:
    """95 % interval of the mean over frames, from blocks that lie within one clip."""
    sums, counts = np.zeros(DRAWS), np.zeros(DRAWS)
    random = np.random.default_rng(SEED)
    for values in clips:
        length = len(values)
        if not length:
            continue
        # At least five blocks per clip, if it has enough frames.
        size = max(min(block, length // 5), 1)
        defined = ~np.isnan(values)
        total = np.concatenate([[0.0], np.cumsum(np.where(defined, values, 0.0))])
        number = np.concatenate([[0], np.cumsum(defined)])
        starts = random.integers(0, length - size + 1, (DRAWS, -(-length // size)))
        sums += (total[starts + size] - total[starts]).sum(axis=1)
        counts += (number[starts + size] - number[starts]).sum(axis=1)
    drawn = sums[counts > 0] / counts[counts > 0]
    return _quantiles(drawn) if counts.max(initial=0) > 1 else (None, None)


def _interval_of_clips(means: Sequence[float]) -> tuple[float | None, float | None]:
    defined = np.asarray([mean for mean in means if not np.isnan(mean)])
    if len(defined) < 2:
        return None, None
    drawn = np.random.default_rng(SEED).choice(defined, (DRAWS, len(defined))).mean(axis=1)
    return _quantiles(drawn)


def _quantiles(drawn: Values) -> tuple[float | None, float | None]:
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return known(float(low)), known(float(high))


def drift(values: Values, order: NDArray[np.int64] | None = None) -> float:
    """Ratio of the mean over the last fifth of the frames to an earlier mean: 1 means no drift.

    The earlier mean is over the second fifth, because a model without initial frames settles
    during the first. If frames repeat, `order` [T] gives their numbers, and the last fifth is
    compared with the first rendering of the same frames after the first fifth, so that content
    does not count as drift; in the same playback direction if possible, because motion differs
    forwards and backwards. NaN for fewer than ten values.
    """
    count, fifth = len(values), len(values) // 5
    if fifth < FEWEST // 5:
        return float("nan")
    early, late = np.arange(fifth, 2 * fifth), np.arange(count - fifth, count)
    if order is not None:
        direction = np.sign(np.diff(order, prepend=order[0]))
        moments = list(zip(order.tolist(), direction.tolist(), strict=True))
        for keys in (moments, order.tolist()):
            shown: dict[Any, int] = {}
            for place in range(fifth, count - fifth):
                shown.setdefault(keys[place], place)
            again = np.asarray([t for t in late if keys[t] in shown], np.int64)
            if len(again) >= fifth / 2:
                late, early = again, np.asarray([shown[keys[t]] for t in again])
                break
    before, after = average(values[early]), average(values[late])
    return after / before if before else float("nan")


def known(value: float) -> float | None:
    """The value, or None for NaN and infinity, which JSON cannot represent."""
    return float(value) if np.isfinite(value) else None
