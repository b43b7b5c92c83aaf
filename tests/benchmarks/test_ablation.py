"""The ablation's list and its arithmetic; that it trains and measures, it shows when it is run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ablation() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("V2V_DEBUG", "1")  # leave the test process's own streams alone
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("ablation")


def result(**seeds: dict[str, list[float]]) -> dict[str, Any]:
    """Measures of every row over seeds; `default` is what the others are held against."""
    rows = {
        row: {name: {"seeds": values, "drift": [1.0] * len(values)} for name, values in of.items()}
        for row, of in seeds.items()
    }
    variants = {row: {"than": "default", "updates": 10} for row in seeds if row != "real"}
    return {"rows": rows, "variants": variants}


def test_every_variant_changes_something_of_the_one_it_is_held_against(ablation: Any) -> None:
    made = {}
    for variant in ablation.VARIANTS:
        settings = ablation.settings_of("pose", 64, list(variant.changes))
        made[variant.name] = settings.model_dump()
        assert variant.extra or not ablation.BY_VARIANT[variant.than].extra, variant.name
    for variant in ablation.VARIANTS:
        if variant.name != variant.than:
            assert made[variant.name] != made[variant.than], variant.name


def test_a_variant_is_marked_where_all_seeds_tell_it_apart(ablation: Any) -> None:
    found = result(
        default={"tof": [1.0, 1.1, 0.9], "psnr": [20.0, 21.0, 22.0]},
        better={"tof": [0.8, 0.91, 0.7], "psnr": [20.5, 20.5, 22.5]},
        worse={"tof": [1.2, 1.31, 1.1], "psnr": [19.0, 20.1, 21.0]},
        real={"tof": [0.1] * 3, "psnr": [40.0] * 3},
    )
    assert "+" in ablation.mark(found, "better", "tof")
    assert "−" in ablation.mark(found, "worse", "tof")
    assert "−" in ablation.mark(found, "worse", "psnr")
    assert not ablation.mark(found, "better", "psnr")  # one seed says otherwise
    assert not ablation.mark(found, "default", "tof") and not ablation.mark(found, "real", "tof")


def test_what_should_be_as_in_the_real_video_is_judged_by_its_distance(ablation: Any) -> None:
    """Less warping error than the real video has is no gain: that is blur."""
    found = result(
        default={"warping_error": [0.20, 0.21]},
        blurred={"warping_error": [0.01, 0.01]},
        real={"warping_error": [0.15, 0.15]},
    )
    assert "−" in ablation.mark(found, "blurred", "warping_error")


def test_the_table_has_a_line_for_each_row_and_no_number_where_none_is(ablation: Any) -> None:
    found = result(
        default={"tof": [1.0, 1.2], "psnr": [20.0, 20.0]},
        other={"tof": [1.0, None], "psnr": [19.0, 21.0]},
        real={"tof": [0.1, 0.1], "psnr": [40.0, 40.0]},
    )
    header, rule, real, default, other = ablation.table(found).splitlines()
    assert header.count("|") == rule.count("|") == other.count("|")
    assert "20.00" in default and "20.00 ±0.00" not in default and "1.100 ±0.141" in default
    assert other.split("|")[-2].strip() == "–" and "20.00 ±1.41" in other
    assert not real.split("|")[3].strip()  # nothing was trained


def test_a_row_says_what_it_is_held_against_where_that_was_trained(ablation: Any) -> None:
    found = result(blend={"tof": [1.0, 1.2]}, default={"tof": [1.0, 1.1]}, real={"tof": [0.1, 0.1]})
    found["variants"]["default"]["than"] = "blend"
    said = {line.split("|")[1].strip(): line.split("|")[2].strip()
            for line in ablation.table(found).splitlines()[2:]}  # fmt: skip
    assert said == {"real": "", "blend": "default", "default": "blend"}
    del found["variants"]["blend"], found["rows"]["blend"]
    assert "blend" not in ablation.table(found)


def test_drift_is_that_of_the_first_seed(ablation: Any) -> None:
    found = result(default={"tof": [1.0, 1.0], "psnr": [20.0, 20.0]}, real={"tof": [0.1, 0.1]})
    found["rows"]["default"]["tof"]["drift"] = [1.07, None]
    found["rows"]["default"]["psnr"]["drift"] = [None, None]
    assert ablation.drift_table(found).splitlines() == [
        "| drift | tOF |", "|---|---:|", "| default | 1.07 |"
    ]  # fmt: skip
    found["rows"]["default"]["tof"]["drift"] = [None, None]
    assert ablation.drift_table(found) == "No drift was measured."
