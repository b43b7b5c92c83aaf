"""The curves of a run: reading the log, smoothing, panels and images."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from v2v.errors import RunConflict, UsageError
from v2v.training.plot import RATE, Curves, _by_group, _by_loss, plot, read_curves, smoothed


def write_log(folder: Path, count: int = 40, **losses: float) -> Path:
    """A run of two stages, with an entry every ten updates."""
    losses = {
        "total": 9.0,
        "l1": 0.5,
        "discriminator/image": 1.0,
        "adversarial/image": -0.1,
    } | losses
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.jsonl", "w") as file:
        for i in range(count):
            late = i >= count // 2
            values = {name: value * (1 + 0.1 * math.sin(i)) for name, value in losses.items()}
            entry = {
                "step": 1 + 10 * i, "minutes": 0.1 * i, "stage": int(late),
                "size": [112, 64] if not late else [224, 128], "length": 1 + late,
                "rate": 5e-4, "losses": values | ({"flow": 1.0} if late else {}),
            }  # fmt: skip
            file.write(json.dumps(entry) + "\n")
    return folder


# ---------------------------------------------------------------- reading


def test_series_and_stages(tmp_path: Path) -> None:
    curves = read_curves(write_log(tmp_path / "b"))
    assert curves.name == "b" and curves.end == 391
    assert set(curves.series) == {
        "total", "l1", "discriminator/image", "adversarial/image", "flow", RATE,
    }  # fmt: skip
    assert [(s.begin, s.label) for s in curves.stages] == [(0, "112x64 x1"), (191, "224x128 x2")]
    places, values = curves.series["flow"]  # only from the second stage on
    assert places[0] == 201 and len(places) == 20 and values == [1.0] * 20
    assert curves.series["l1"][1][0] == 0.5


def test_over_minutes(tmp_path: Path) -> None:
    curves = read_curves(write_log(tmp_path / "b"), minutes=True)
    assert curves.end == pytest.approx(3.9)
    assert curves.stages[1].begin == pytest.approx(1.9)


def test_a_truncated_last_line_is_ignored(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "b")
    whole = (folder / "log.jsonl").read_text()
    (folder / "log.jsonl").write_text(whole[:-30])
    assert read_curves(folder).end == 381


# ---------------------------------------------------------------- smoothing


def test_a_constant_stays_constant() -> None:
    np.testing.assert_allclose(smoothed(range(1, 50, 7), [3.0] * 7, 10), 3.0)


def test_a_step_is_followed_within_the_time_constant() -> None:
    places = list(range(400))
    values = [0.0] * 200 + [1.0] * 200
    after = smoothed(places, values, 20.0)
    assert after[0] == 0 and after[199] == 0
    # One time constant after a step, 1/e of it remains.
    assert after[219] == pytest.approx(1 - math.exp(-1), abs=1e-4)
    assert after[399] > 0.999


def test_entries_further_apart_have_more_weight() -> None:
    assert smoothed([0, 1], [0, 1], 10.0)[1] < smoothed([0, 100], [0, 1], 10.0)[1]


def test_smoothing_reduces_noise() -> None:
    noise = np.random.default_rng(0).standard_normal(1000)
    assert np.std(smoothed(range(1000), list(noise), 30.0)[100:]) < 0.25


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinite_values_are_skipped(bad: float) -> None:
    assert smoothed([0, 1, 2], [1.0, bad, 1.0], 5.0) == pytest.approx([1.0, 1.0, 1.0])
    assert smoothed([3], [2.0], 0.0) == [2.0]


# ---------------------------------------------------------------- panels


def test_every_loss_of_a_run_is_drawn_once(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "b", matte=1, warp_real=1, brand_new=2)
    curves = read_curves(folder)
    panels = _by_group(curves)
    drawn = [series for _, lines in panels for _, series in lines]
    assert len(drawn) == len(curves.series)
    assert all(series in drawn for series in curves.series.values())
    assert [title for title, _ in panels][-2:] == ["other", RATE]


def test_runs_are_compared_loss_by_loss(tmp_path: Path) -> None:
    one = read_curves(write_log(tmp_path / "one", matte=1.0))
    two = read_curves(write_log(tmp_path / "two"))
    panels = dict(_by_loss([one, two]))
    assert next(iter(panels)) == "total" and list(panels)[-1] == RATE
    assert [label for label, _ in panels["l1"]] == ["one", "two"]
    assert [label for label, _ in panels["matte"]] == ["one"]
    assert isinstance(one, Curves)


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("names", [["b"], ["b", "c"]])
@pytest.mark.parametrize("minutes", [False, True])
def test_an_image_is_written(tmp_path: Path, names: list[str], minutes: bool) -> None:
    folders = [write_log(tmp_path / name, matte=1.0) for name in names]
    path = plot(folders, tmp_path / "deep" / "curves.png", minutes=minutes)
    image = cv2.imread(str(path))
    assert image is not None and min(image.shape[:2]) > 200
    assert image.std() > 5
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]  # no partial file


def test_a_single_entry_is_drawn_too(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "b", count=1)
    assert plot([folder], tmp_path / "curves.png").stat().st_size > 1000


def test_runs_with_the_same_name_can_be_plotted(tmp_path: Path) -> None:
    folders = [write_log(tmp_path / home / "b") for home in ("here", "there")]
    assert plot(folders, tmp_path / "curves.svg").read_text("utf-8").startswith("<?xml")


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="has no log" if make else "does not exist"):
        plot([tmp_path / "b"], tmp_path / "curves.png")


@pytest.mark.parametrize("text", ["", '{"step": 1, "minu'])
def test_a_log_without_entries_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(UsageError, match="is empty"):
        plot([tmp_path], tmp_path / "curves.png")


@pytest.mark.parametrize(
    "text", ['{"step": 1}\n', "[1, 2]\n", '{"step": "x", "minutes": 0}\n', '{"step": NaN}\n']
)
def test_an_invalid_log_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(RunConflict, match=r"log\.jsonl, line 1"):
        plot([tmp_path], tmp_path / "curves.png")


@pytest.mark.parametrize("name", ["curves", "curves.gif", "curves.mp4"])
def test_an_unknown_image_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no supported image format"):
        plot([write_log(tmp_path / "b")], tmp_path / name)
    assert not (tmp_path / name).exists()


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run"):
        plot([], tmp_path / "curves.png")


def test_plot_command(tmp_path: Path) -> None:
    run = write_log(tmp_path / "b")
    command = [sys.executable, "-m", "v2v", "plot"]
    done = subprocess.run([*command, str(run)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == run / "curves.png" and (run / "curves.png").exists()
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "has no log.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
