"""The variants of the ablation and its tables; training and measuring are not tested here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ablation() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("V2V_DEBUG", "1")  # keep the test process's standard error
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("ablation")


def result(**seeds: dict[str, list[float]]) -> dict[str, Any]:
    """Measures of each row over seeds; `default` is the baseline."""
    rows = {
        row: {name: {"seeds": values, "drift": [1.0] * len(values)} for name, values in of.items()}
        for row, of in seeds.items()
    }
    variants = {row: {"than": "default", "updates": 10} for row in seeds if row != "real"}
    return {"rows": rows, "variants": variants}


def test_every_variant_differs_from_its_baseline(ablation: Any) -> None:
    dumped = {}
    for variant in ablation.VARIANTS:
        settings = ablation.settings_of("pose", 64, list(variant.changes))
        dumped[variant.name] = settings.model_dump()
        assert variant.extra or not ablation.BY_VARIANT[variant.than].extra, variant.name
    for variant in ablation.VARIANTS:
        if variant.name != variant.than:
            assert dumped[variant.name] != dumped[variant.than], variant.name


def test_a_variant_is_marked_if_all_seeds_agree(ablation: Any) -> None:
    found = result(
        default={"tof": [1.0, 1.1, 0.9], "psnr": [20.0, 21.0, 22.0]},
        better={"tof": [0.8, 0.91, 0.7], "psnr": [20.5, 20.5, 22.5]},
        worse={"tof": [1.2, 1.31, 1.1], "psnr": [19.0, 20.1, 21.0]},
        real={"tof": [0.1] * 3, "psnr": [40.0] * 3},
    )
    assert "+" in ablation.mark(found, "better", "tof")
    assert "−" in ablation.mark(found, "worse", "tof")
    assert "−" in ablation.mark(found, "worse", "psnr")
    assert not ablation.mark(found, "better", "psnr")  # one seed disagrees
    assert not ablation.mark(found, "default", "tof") and not ablation.mark(found, "real", "tof")


def test_a_measure_with_a_real_target_is_compared_by_its_distance(ablation: Any) -> None:
    """A warping error below that of the real video is not a gain: it means blur."""
    found = result(
        default={"warping_error": [0.20, 0.21]},
        blurred={"warping_error": [0.01, 0.01]},
        real={"warping_error": [0.15, 0.15]},
    )
    assert "−" in ablation.mark(found, "blurred", "warping_error")


def test_the_table_has_a_line_per_row_and_a_dash_for_missing_values(ablation: Any) -> None:
    found = result(
        default={"tof": [1.0, 1.2], "psnr": [20.0, 20.0]},
        other={"tof": [1.0, None], "psnr": [19.0, 21.0]},
        real={"tof": [0.1, 0.1], "psnr": [40.0, 40.0]},
    )
    header, rule, real, default, other = ablation.table(found).splitlines()
    assert header.count("|") == rule.count("|") == other.count("|")
    assert "20.00" in default and "20.00 ±0.00" not in default and "1.100 ±0.141" in default
    assert other.split("|")[-2].strip() == "–" and "20.00 ±1.41" in other
    assert not real.split("|")[3].strip()  # the real video has no updates


def test_a_row_names_its_baseline_if_that_was_trained(ablation: Any) -> None:
    found = result(blend={"tof": [1.0, 1.2]}, default={"tof": [1.0, 1.1]}, real={"tof": [0.1, 0.1]})
    found["variants"]["default"]["than"] = "blend"
    baselines = {line.split("|")[1].strip(): line.split("|")[2].strip()
                 for line in ablation.table(found).splitlines()[2:]}  # fmt: skip
    assert baselines == {"real": "", "blend": "default", "default": "blend"}
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
