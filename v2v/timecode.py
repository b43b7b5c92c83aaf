"""Parse times and frame rates: `90`, `1:30`, `00:01:30.5`; `29.97`, `30000/1001`.

Numbers are bounded before any computation: a few characters such as 1e99999999 would otherwise
become an exact fraction of a hundred million digits.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

TIME_FORMS = "seconds (90 or 12.5), mm:ss or hh:mm:ss (00:01:30.5)"
RATE_FORMS = "a frame rate such as 25, 29.97 or 30000/1001"
LONGEST = 1e9  # seconds, 32 years
HIGHEST_RATE = 1_000_000
MOST_CHARACTERS = 40

_SECONDS = re.compile(r"\+?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)
_CLOCK = re.compile(r"(?:(\d{1,6}):(?=\d\d:))?(\d{1,6}):(\d{1,2}(?:\.\d*)?)", re.ASCII)
_RATIO = re.compile(r"\+?(\d{1,12})\s*/\s*(\d{1,12})", re.ASCII)


def parse_time(value: Any) -> float:
    """Seconds from a number, its text, or mm:ss or hh:mm:ss, with or without a fraction.

    Raises `ValueError` for everything else: negative, NaN, infinite, or more than `LONGEST`; and
    for minutes or seconds above 59 after a larger unit.
    """
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= LONGEST else math.inf
    elif isinstance(value, str) and len(text := value.strip()) <= MOST_CHARACTERS:
        if _SECONDS.fullmatch(text):
            seconds = float(text)
        elif clock := _CLOCK.fullmatch(text):
            hours, minutes, rest = int(clock[1] or 0), int(clock[2]), float(clock[3])
            if rest < 60 and (minutes < 60 or clock[1] is None):
                seconds = 3600 * hours + 60 * minutes + rest
    if not 0 <= seconds <= LONGEST:
        raise ValueError(f"expected {TIME_FORMS}")
    return seconds


def parse_rate(value: Any) -> Fraction:
    """Exact frames per second; values such as 29.97 mean the NTSC rates (30000/1001).

    Raises `ValueError` for text that is not a rate, and for rates that are not positive or above
    `HIGHEST_RATE`.
    """
    rate = Fraction(0)
    text = str(value).strip() if isinstance(value, str | int | float | Fraction) else ""
    if len(text) <= MOST_CHARACTERS:
        if (ratio := _RATIO.fullmatch(text)) and int(ratio[2]):
            rate = Fraction(int(ratio[1]), int(ratio[2]))
        elif _SECONDS.fullmatch(text) and 1 / HIGHEST_RATE <= float(text) <= HIGHEST_RATE:
            rate = Fraction(text)
    if not Fraction(1, HIGHEST_RATE) <= rate <= HIGHEST_RATE:
        raise ValueError(f"expected {RATE_FORMS}")
    ntsc = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    near = ntsc > 0 and abs(rate - ntsc) < Fraction(1, 200)
    return ntsc if near and rate.denominator > 1 else rate
