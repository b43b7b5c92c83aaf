"""From values a frame to what is told: means, how sure they are, and how they drift.

Frames of a video are not independent: what is wrong in one is wrong in the next. Resampling them
one by one would give intervals far too narrow, so blocks of neighbours are drawn (the moving-block
bootstrap, Künsch 1989). Between clips there is more to vary than within one: where there are
several, the interval over clips is the one to believe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2v.evaluation.measures import Values, average

DRAWS = 1000
COVERAGE = 0.95
SEED = 0  # the same values give the same interval
FEWEST = 10  # values below which a drift says nothing


@dataclass(frozen=True)
class Summary:
    """One measure of one row. None: it cannot be told."""

    mean: float | None
    low: float | None = None  # of the 95 % interval over frames, in blocks
    high: float | None = None
    frames: int = 0  # that have a value
    clips: tuple[float | None, ...] = ()  # mean of each
    clips_low: float | None = None  # of the 95 % interval over clips, where there are several
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
    """What the values [T] of some clips come to.

    Args:
        block: neighbouring frames that are drawn together; about a second.
        longer: the same of longer free running, and which frame each is, to tell the drift from.
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
    """95 % interval of the mean over frames, by blocks that never cross from clip to clip."""
    sums, counts = np.zeros(DRAWS), np.zeros(DRAWS)
    random = np.random.default_rng(SEED)
    for values in clips:
        length = len(values)
        if not length:
            continue
        # At least five blocks, where a clip has the frames for them.
        size = max(min(block, length // 5), 1)
        there = ~np.isnan(values)
        total = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0))])
        number = np.concatenate([[0], np.cumsum(there)])
        starts = random.integers(0, length - size + 1, (DRAWS, -(-length // size)))
        sums += (total[starts + size] - total[starts]).sum(axis=1)
        counts += (number[starts + size] - number[starts]).sum(axis=1)
    drawn = sums[counts > 0] / counts[counts > 0]
    return _quantiles(drawn) if counts.max(initial=0) > 1 else (None, None)


def _interval_of_clips(means: Sequence[float]) -> tuple[float | None, float | None]:
    there = np.asarray([mean for mean in means if not np.isnan(mean)])
    if len(there) < 2:
        return None, None
    drawn = np.random.default_rng(SEED).choice(there, (DRAWS, len(there))).mean(axis=1)
    return _quantiles(drawn)


def _quantiles(drawn: Values) -> tuple[float | None, float | None]:
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return known(float(low)), known(float(high))


def drift(values: Values, order: NDArray[np.int64] | None = None) -> float:
    """Mean of the last fifth of the frames over the mean earlier on: 1 is steady.

    Earlier on: the second fifth, for the first is where a model that starts from nothing settles.
    Where frames come again, `order` [T] says which each is, and the last fifth is held against
    the first showing of the same frames after the first fifth, the way that they are run over
    included where that has been: else the drift would be told from what happens in them, and
    forth and back are other motions. NaN below ten values.
    """
    count, fifth = len(values), len(values) // 5
    if fifth < FEWEST // 5:
        return float("nan")
    early, late = np.arange(fifth, 2 * fifth), np.arange(count - fifth, count)
    if order is not None:
        way = np.sign(np.diff(order, prepend=order[0]))
        moments = list(zip(order.tolist(), way.tolist(), strict=True))
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
    """JSON knows no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None
