"""Train with and without past frames on footage and measure on its held-out frames.

python benchmarks/held_out.py --data data/dance --task pose --size 128 --minutes 15
python benchmarks/held_out.py --data data/talk --task face --steps 2000 -s generator.preset=base
python benchmarks/held_out.py --data data/dance --task pose --against copy,nearest
    --models sequential=runs/a --models other=runs/b

Trains two models: `sequential`, and `frame`, the same generator without past frames
(generator.sequential=false), with equal compute, budget, data and discriminators. Then `v2v
evaluate` renders and measures them together with baselines (see `v2v/evaluation/methods.py`).

Run the same command again to resume. --models takes finished runs; a run named sequential or frame
replaces the one that would be trained. OUT holds sequential/ and frame/ (the runs), report.html
and report.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from v2v.runtime import prepare_process

prepare_process()

import torch
from rich.console import Console
from shared import run_command, settings_of

from v2v.data.store import ClipStore
from v2v.errors import UnknownName, UsageError
from v2v.evaluation.evaluate import evaluate
from v2v.evaluation.methods import FRAME, SIMPLE
from v2v.evaluation.table import lines, table
from v2v.progress import Terminal
from v2v.training.loop import train

MODEL = "sequential"
AGAINST = (*SIMPLE, FRAME)


def runs(chosen: argparse.Namespace) -> dict[str, Path]:
    """The run folders of all models to compare; trains those that are missing."""
    given = {}
    for text in chosen.models:
        name, separator, folder = text.partition("=")
        if not separator:
            raise UsageError(f"cannot read --models {text}", hint="write NAME=RUNFOLDER")
        given[name] = Path(folder)
    budget = {"budget__minutes": chosen.minutes, "budget__steps": chosen.steps}
    changes = {MODEL: [], FRAME: ["generator.sequential=false"]}
    wanted = {
        name: settings_of(chosen.task, chosen.size, [*chosen.set, *change], **budget)
        for name, change in changes.items()
        if name == MODEL or name in chosen.against
    }
    for name, settings in wanted.items():
        if name not in given:
            print(f"training: {name}", flush=True)
            with Terminal() as report:
                given[name] = train(settings, [chosen.data], chosen.out / name, report).folder
    return given


def compare(chosen: argparse.Namespace) -> None:
    ClipStore.open(chosen.data).track(chosen.task, 0, 1)  # fail early if the signal is missing
    chosen.out.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    found = runs(chosen)
    torch.set_num_threads(threads)  # training changed it; rendering uses all
    others = [f"{name}={folder}" for name, folder in found.items() if name != MODEL]
    simple = [name for name in chosen.against if name in SIMPLE]
    with Terminal() as report:
        result = evaluate(
            found[MODEL], [chosen.data], against=[*simple, *others], output=chosen.out,
            name=MODEL, frames=chosen.frames, report=report,
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table(result))
    for line in lines(result):
        console.print(line, highlight=False, soft_wrap=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a clip store")
    parser.add_argument("--task", choices=["pose", "face"], default="pose")
    parser.add_argument("--size", type=int, default=128, help="shorter side (default: 128)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="training time per model (default: 15)")
    budget.add_argument("--steps", type=int, help="updates per model, instead of --minutes")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--against", default=",".join(AGAINST), help=f"of {','.join(AGAINST)} (default: all)"
    )
    parser.add_argument("--models", action="append", default=[], metavar="NAME=RUNFOLDER")
    parser.add_argument("--frames", type=int, default=600, help="most frames (default: 600)")
    parser.add_argument("--out", type=Path, help="(default: runs/held_out/DATA-SIZE)")
    chosen = parser.parse_args()
    chosen.against = [name for name in chosen.against.split(",") if name]
    for name in chosen.against:
        if name not in AGAINST:
            raise UnknownName.among("--against", name, AGAINST)
    if chosen.steps is None and chosen.minutes is None:
        chosen.minutes = 15.0
    if chosen.out is None:
        chosen.out = Path("runs/held_out") / f"{chosen.data.name}-{chosen.size}"
    return chosen


if __name__ == "__main__":
    run_command(lambda: compare(arguments()))
