"""Order and sides of the pairs that a participant sees, seeded by the participant's code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from v2v.evaluation.study.records import Trial


def deal(study: str, participant: str, trials: Sequence[Trial]) -> list[tuple[str, str, str]]:
    """(trial, left clip, right clip) in the order that this participant sees.

    Half of the trials show their first clip on the left (rounded up or down if odd).
    The page runs the same algorithm: `templates/deal.js`.
    """
    below = _numbers(f"{study}/{participant}")
    order = list(trials)
    _shuffle(order, below)
    coin = below(2)
    sides = [(i + coin) % 2 for i in range(len(order))]
    _shuffle(sides, below)
    return [
        (trial.id, trial.clips[side], trial.clips[1 - side])
        for trial, side in zip(order, sides, strict=True)
    ]


def _shuffle(items: list[Any], below: Callable[[int], int]) -> None:
    """Fisher-Yates shuffle from the end, in place."""
    for last in range(len(items) - 1, 0, -1):
        other = below(last + 1)
        items[last], items[other] = items[other], items[last]


def _numbers(text: str) -> Callable[[int], int]:
    """`below(n)`: random integers from 0 to n - 1; mulberry32, seeded with the text's FNV-1a."""
    word = 0xFFFFFFFF
    state = 2166136261
    for byte in text.encode():
        state = (state ^ byte) * 16777619 & word

    def below(n: int) -> int:
        nonlocal state
        state = state + 0x6D2B79F5 & word
        t = (state ^ state >> 15) * (state | 1) & word
        t ^= t + ((t ^ t >> 7) * (t | 61) & word) & word
        return (t ^ t >> 14) * n >> 32

    return below
