"""Quality over training time: one run per training time, measured on held-out frames.

python benchmarks/quality_over_time.py                                    drawn footage, 5,20,60
python benchmarks/quality_over_time.py --data data/dance --size 128 --minutes 5,20,60,180
python benchmarks/quality_over_time.py --data data/talk --task face --minutes 2,10

Each training time is a separate run, not a checkpoint of a longer one: window length, size and
learning rate follow the fraction of the budget, so stopping a longer run after 5 minutes gives
another model than a run of 5 minutes. Everything else is equal, including the seed. The baselines
need no training: the last real frame, frozen, and the nearest training frame.

OUT holds runs/MINUTES, evaluation (what `v2v evaluate` writes), table.md, results.json, frames.png
(the same frames after each training time) and curves.png. Stop with Ctrl-C; run the same command
again to resume.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from v2v.runtime import prepare_process

prepare_process()

import matplotlib
import numpy as np
import torch
from PIL import Image
from shared import (
    column_title,
    draw_store,
    machine,
    panel,
    ranked_moments,
    render_moments,
    run_command,
    settings_of,
)

from v2v import __version__
from v2v.checkpoint import load_model
from v2v.evaluation.evaluate import evaluate
from v2v.evaluation.metrics import all_metrics
from v2v.progress import Terminal
from v2v.training.loop import train

SECONDS = 20.0  # of drawn footage
SHOWN = (
    "psnr", "person_psnr", "ssim", "person_sharpness", "pose_error", "pck", "face_error", "mouth",
    "warping_error", "tof", "flicker",
)  # fmt: skip
DIRECTIONS = ("higher", "lower")
MOMENTS = 4  # frames to show, from the worst to a good one


def name_of(minutes: float) -> str:
    return f"{minutes:g} min"


def folder_of(chosen: argparse.Namespace, minutes: float) -> Path:
    return Path(chosen.out) / "runs" / f"{minutes:g}"


def measure(chosen: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """Train and evaluate what is missing. Returns the report and the footage."""
    with Terminal() as report:
        data = chosen.data or draw_store(
            chosen.out / "drawn", chosen.task, seconds=SECONDS, seed=11, report=report
        )
        threads = torch.get_num_threads()
        for minutes in chosen.minutes:
            settings = settings_of(chosen.task, chosen.size, chosen.set, budget__minutes=minutes)
            report.note(f"{name_of(minutes)} of training")
            train(settings, [data], folder_of(chosen, minutes), report)
        torch.set_num_threads(threads)  # training changed it
        longest, *shorter = sorted(chosen.minutes, reverse=True)
        others = [f"{name_of(m)}={folder_of(chosen, m)}" for m in reversed(shorter)]
        evaluate(
            folder_of(chosen, longest), [data], name=name_of(longest),
            against=["frozen", "nearest", *others], output=chosen.out / "evaluation",
            frames=chosen.frames, report=report,
        )  # fmt: skip
    return json.loads((chosen.out / "evaluation" / "report.json").read_text("utf-8")), data


def results(chosen: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    lengths = {}
    for minutes in chosen.minutes:
        record = load_model(folder_of(chosen, minutes) / "model").record
        lengths[name_of(minutes)] = {"minutes": minutes, "updates": record.training["steps"]}
    rows = [*lengths, "frozen", "nearest", "real"]
    return {
        "tool": f"v2v {__version__}", "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(), "data": found["data"], "width": found["model"]["width"],
        "height": found["model"]["height"], "lengths": lengths,
        "rows": {row: found["rows"][row]["measures"] for row in rows},
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The table of docs/RESULTS.md: means over the held-out frames and their 95 % intervals."""
    names = [n for n in SHOWN if any(n in row for row in result["rows"].values())]
    titles = [column_title(name) for name in names]
    lines = ["| training | updates | " + " | ".join(titles) + " |",
             "|---|---:" + "|---:" * len(names) + "|"]  # fmt: skip
    for row, measures in result["rows"].items():
        cells = [row, str(result["lengths"].get(row, {}).get("updates", ""))]
        for name in names:
            summary = measures.get(name, {})
            cell = all_metrics()[name].format(summary.get("mean"))
            if row in result["lengths"] and summary.get("low") is not None:
                cell += f" ({all_metrics()[name].format(summary['low'])}–" \
                        f"{all_metrics()[name].format(summary['high'])})"  # fmt: skip
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(result: dict[str, Any], path: Path) -> None:
    """Plot each measure over minutes, with its interval; dotted: the nearest training frame."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [n for n in SHOWN if all(result["rows"][row].get(n, {}).get("mean") is not None
                                     for row in result["lengths"])]  # fmt: skip
    columns, lines = 4, -(-len(names) // 4)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(3.2 * columns, 2.4 * lines), squeeze=False, layout="constrained"
    )
    minutes = [length["minutes"] for length in result["lengths"].values()]
    for place, axis in enumerate(axes.flat):
        if place >= len(names):
            axis.axis("off")
            continue
        name, measure = names[place], all_metrics()[names[place]]
        rows = [result["rows"][row][name] for row in result["lengths"]]
        means = [row["mean"] * measure.factor for row in rows]
        axis.plot(minutes, means, "o-", color="#1f5fa8")
        if all(row["low"] is not None for row in rows):
            low, high = ([row[key] * measure.factor for row in rows] for key in ("low", "high"))
            axis.fill_between(minutes, low, high, color="#1f5fa8", alpha=0.15, linewidth=0)
        nearest = result["rows"]["nearest"].get(name, {}).get("mean")
        if nearest is not None:
            axis.axhline(nearest * measure.factor, color="#888", linestyle=":", linewidth=1)
        axis.set_xscale("log")
        axis.set_xticks(minutes, [f"{m:g}" for m in minutes])
        axis.minorticks_off()
        better = f" ({measure.better} is better)" if measure.better in DIRECTIONS else ""
        axis.set_title(measure.title + better, fontsize=9)
    figure.supxlabel("minutes of training", fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_frames(chosen: argparse.Namespace, found: dict[str, Any], data: Path, path: Path) -> None:
    """Frames from the worst to a good one by SSIM of the longest run; one row per run."""
    longest = name_of(max(chosen.minutes))
    first, stop = found["data"][0]["frames"]
    ranked = ranked_moments(found["courses"][0][longest], stop - first)
    places = np.linspace(0, len(ranked) - 1, MOMENTS + 1).astype(int)[:MOMENTS]
    moments = [ranked[place] for place in places]
    lines = []
    for minutes in chosen.minutes:
        frames, clip = render_moments(folder_of(chosen, minutes), data, moments, chosen.frames)
        lines.append([panel(picture, name_of(minutes)) for picture in frames])
    real = [next(clip.pictures(clip.order[[t]])) for t in moments]
    lines.append([panel(picture, "real") for picture in real])
    Image.fromarray(np.vstack([np.hstack(line) for line in lines])).save(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a clip store (default: drawn footage)")
    parser.add_argument("--task", choices=["pose", "face"], default="pose")
    parser.add_argument("--size", type=int, default=128, help="shorter side (default: 128)")
    parser.add_argument("--minutes", default="5,20,60", help="training times (default: 5,20,60)")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--frames", type=int, default=600, help="most frames to measure (default: 600)"
    )
    parser.add_argument("--out", type=Path, help="(default: runs/quality/DATA-SIZE)")
    chosen = parser.parse_args()
    try:
        chosen.minutes = sorted({float(text) for text in chosen.minutes.split(",")})
    except ValueError:
        chosen.minutes = []
    if not chosen.minutes or not chosen.minutes[0] > 0:
        parser.error("--minutes must be comma-separated numbers above 0, such as 5,20,60")
    if chosen.out is None:
        label = chosen.data.name if chosen.data else f"drawn-{chosen.task}"
        chosen.out = Path("runs/quality") / f"{label}-{chosen.size}"
    return chosen


def run(chosen: argparse.Namespace) -> None:
    found, data = measure(chosen)
    result = results(chosen, found)
    (chosen.out / "results.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    text = table(result)
    (chosen.out / "table.md").write_text(text + "\n", "utf-8")
    draw_curves(result, chosen.out / "curves.png")
    draw_frames(chosen, found, data, chosen.out / "frames.png")
    print(f"{result['machine']}; {result['width']}x{result['height']}\n{text}\n\n{chosen.out}")


if __name__ == "__main__":
    run_command(lambda: run(arguments()))
