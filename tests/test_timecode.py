"""Parsing of times and frame rates."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2v.cli import app
from v2v.config import PreprocessSettings, load_config
from v2v.errors import ConfigError, UsageError
from v2v.timecode import LONGEST, parse_rate, parse_time


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("90", 90), ("12.5", 12.5), (".5", 0.5), ("1e1", 10), (" 5 ", 5), (7, 7), (0.25, 0.25),
        ("1:30", 90), ("90:00", 5400), ("00:00:01", 1), ("01:02:03.25", 3723.25), ("0:01.5", 1.5),
        ("100:00:00", 360000), ("0", 0), ("1e-320", 0),
    ],
)  # fmt: skip
def test_times(given: Any, seconds: float) -> None:
    assert parse_time(given) == pytest.approx(seconds, abs=1e-9)


INVALID = ["nan", "inf", "-inf", "-1", "1e400", "1:99", "1:2:3:4", "0:60:00", ":30", "1:", "x", "",
           "５", "²", "1e99999999", "1_0", "0x10", "--", "1:30:", "9" * 5000, "-0:01",
           float("nan"), float("inf"), -0.5, 1e10, 10**400, True, None, [1], "1:5:00"]  # fmt: skip


@pytest.mark.parametrize("given", INVALID, ids=lambda value: repr(value)[:20])
def test_invalid_times_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"expected seconds .* hh:mm:ss"):
        parse_time(given)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59999))
def test_a_clock_time_equals_its_seconds(hours: int, minutes: int, milliseconds: int) -> None:
    text = f"{hours:02}:{minutes:02}:{milliseconds / 1000:06.3f}"
    assert parse_time(text) == pytest.approx(3600 * hours + 60 * minutes + milliseconds / 1000)


@given(st.text("0123456789:.eE+-/ ", max_size=30))
def test_any_text_gives_a_bounded_number_or_is_refused(text: str) -> None:
    for parse, most in ((parse_time, LONGEST), (parse_rate, 2e6)):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert 0 <= value <= most


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ("25", 25), (30, 30), ("29.97", Fraction(30000, 1001)), (23.976, Fraction(24000, 1001)),
        ("30000/1001", Fraction(30000, 1001)), ("12.5", Fraction(25, 2)), ("1e2", 100),
        (Fraction(500, 31), Fraction(500, 31)),
    ],
)  # fmt: skip
def test_rates(given: Any, rate: Fraction | int) -> None:
    assert parse_rate(given) == rate


@pytest.mark.parametrize(
    "given", ["1e99999999", "1e-99999999", "0", "-1", "1/0", "0/5", "nan", "inf", "1e9", "x",
              "9" * 10_000, "1/" + "9" * 10_000, "٣"],
    ids=lambda value: value[:12],
)  # fmt: skip
def test_invalid_rates_are_refused_at_once(given: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="expected a frame rate such as 25"):
        parse_rate(given)
    with pytest.raises(ConfigError, match=r"frames\.fps cannot be"):
        load_config(PreprocessSettings, "preprocess", values={"frames.fps": given})
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("text", ['"00:01:30.5"', "00:01:30.5", "1:30.5", "90.5"])
def test_times_in_settings(text: str) -> None:
    """YAML reads some of them as base-60 numbers, with the same result."""
    settings = load_config(
        PreprocessSettings, "preprocess", overrides=[f"frames.start={text}", "frames.end=2:00"]
    )
    assert settings.frames.start == 90.5 and settings.frames.end == 120
    assert settings.model_dump(mode="json")["frames"]["start"] == 90.5
    with pytest.raises(ConfigError, match=r"frames\.end cannot be '1:99': expected seconds"):
        load_config(PreprocessSettings, "preprocess", overrides=["frames.end='1:99'"])


@pytest.mark.parametrize(
    "command",
    [
        ["preprocess", "x.mp4", "--start"], ["preprocess", "x.mp4", "--end"],
        ["transfer", "--source", "x", "-m", "b", "--start"],
        ["reenact", "--source", "x", "-m", "b", "--neutral"],
        ["synthesize", "--labels", "x", "-m", "b", "--end"],
        ["predict-frames", "--input", "x", "-m", "b", "--at"],
        ["compare", "x.mp4", "y.mp4", "--start"], ["study", "x.mp4", "y.mp4", "--end"],
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)  # fmt: skip
def test_every_time_option_names_the_accepted_forms(command: list[str]) -> None:
    for text in ("1:99", "nan", "1e400"):
        with pytest.raises(UsageError, match=rf"{command[-1]} {text} is not a time") as caught:
            app([*command, text], standalone_mode=False)
        assert "hh:mm:ss" in str(caught.value.hint)
