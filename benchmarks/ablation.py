"""Ablation: what each part of the model contributes, with equal clip, compute and seeds.

python benchmarks/ablation.py                                     drawn footage, CPU
python benchmarks/ablation.py --data data/dance --task pose       own footage, CPU
python benchmarks/ablation.py --data data/dance --size 256 --minutes 30 --jobs 1     one GPU
python benchmarks/ablation.py --data data/dance --only frame,both --seeds 5

Each variant differs from one other variant in one thing. All get about the same compute: the
benchmark first measures the cost of an update of each variant on this machine, converts --minutes
of training to a number of updates and stores it in OUT/plan.json, so that later load on the machine
or a restart does not change the results. Runs of one seed see the same windows in the same order.
A note reports each variant that is left out, because the footage does not allow it (no person mask,
shots that are too short) or because it equals another variant on this footage.

On two cores, two runs at a time, the list with three seeds takes some 40 minutes at 64 px. Do not
use the machine in the first ten minutes, while costs are measured. Stop with Ctrl-C; run the same
command again to resume.

OUT holds runs/SEED/VARIANT, evaluation/SEED (what `v2v evaluate` writes), table.md, results.json
and frames.png: the typical and the worst frame of the default, rendered by every variant.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from v2v.runtime import cores, prepare_process

prepare_process()

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
from v2v.checkpoint import MODEL_FILE, load_model
from v2v.data.store import ClipStore
from v2v.errors import ConfigError, TooFewFrames, UnknownName, UsageError
from v2v.evaluation.evaluate import evaluate
from v2v.evaluation.methods import FRAME, REAL
from v2v.evaluation.metrics import all_metrics
from v2v.files import atomic_file
from v2v.progress import Reporter, Silent, Terminal
from v2v.training.estimate import DryRunTrainer
from v2v.training.loop import train
from v2v.training.settings import TrainSettings

DEFAULT = "default"
SECONDS = 20.0  # of drawn footage


@dataclass(frozen=True)
class Variant:
    """A model to train; `changes` are its settings that differ from the defaults."""

    name: str
    what: str
    changes: tuple[str, ...] = ()
    than: str = DEFAULT  # the variant that it is compared with
    extra: bool = False  # trained only if --only names it, to keep the list within 40 minutes


# Generator loss weight per temporal stride (arXiv 1808.06601 uses equal weights).
TEMPORAL_DISCRIMINATORS = {1: 0.5, 3: 0.25, 9: 0.25}


def _discriminators(*strides: int) -> tuple[str, ...]:
    return tuple(
        f"losses.discriminators.temporal_{n}={TEMPORAL_DISCRIMINATORS[n]}" for n in strides
    )


PAST_FRAMES, BLEND = "generator.past=frames", "generator.compose=blend"

VARIANTS = (
    Variant(FRAME, "frame by frame, without past frames", ("generator.sequential=false",)),
    Variant("past", "past frames are inputs, without warping",
            ("generator.compose=none", PAST_FRAMES), FRAME),
    Variant("blend", "the past frame is warped and blended in (equation 4), with motion losses",
            (BLEND, PAST_FRAMES, "generator.control_points=off"), "past"),
    Variant("control_points", "the initial flow is interpolated from control points",
            (BLEND, PAST_FRAMES), "blend"),
    Variant(DEFAULT, "the core does not see the past (the defaults)", (), "control_points"),
    Variant("signals", "the core sees past signals, but no past frames",
            ("generator.past=signals",), extra=True),
    Variant("nothing", "the core does not see the past, even without a background plate",
            ("generator.past=nothing",), extra=True),
    Variant("both", "the warped frame also conditions the last blocks",
            ("generator.compose=both",)),
    Variant("blended", "the warped frame is blended in, even with references", (BLEND,),
            extra=True),
    Variant("stride-1", "a temporal discriminator at stride 1", _discriminators(1)),
    Variant("strides-1-3", "temporal discriminators at strides 1 and 3",
            _discriminators(1, 3), "stride-1"),
    Variant("strides-1-3-9", "temporal discriminators at strides 1, 3 and 9",
            _discriminators(1, 3, 9), "strides-1-3"),
    Variant("bptt-2", "gradients through two frames, half as many windows",
            ("loop.bptt_steps=2",),
            extra=True),
    Variant("no-progression", "windows of 20 frames from the first update on",
            ("schedule.lengths=[20]",)),
    Variant("no-plate", "no background plate: everything is synthesised",
            ("generator.background_plate=off", PAST_FRAMES),
            "control_points"),
    Variant("prior",
            "separate foreground and background branches (equation 6), no background plate",
            ("generator.background_plate=off", "generator.prior=on"), "no-plate"),
)  # fmt: skip
BY_VARIANT = {variant.name: variant for variant in VARIANTS}

# Measures that the table shows, if available.
SHOWN = (
    "psnr", "person_psnr", "ssim", "person_sharpness", "pose_error", "pck", "face_error", "mouth",
    "label_iou", "warping_error", "tof", "flicker", "frame_difference",
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """The options of a benchmark run."""

    data: Path
    task: str
    size: int
    minutes: float
    seeds: int
    jobs: int
    changes: tuple[str, ...]  # settings of all variants
    variants: tuple[str, ...]
    out: Path
    frames: int
    drift: int

    def settings(self, variant: str, seed: int, *more: str) -> TrainSettings:
        own = ["output.preview_minutes=1e6", "output.preview_seconds=1", "output.log_every=50"]
        if not torch.cuda.is_available():
            own.append(f"loop.threads={max(cores() // self.jobs, 1)}")
        return settings_of(
            self.task, self.size, [*own, *self.changes, *BY_VARIANT[variant].changes, *more],
            loop__seed=seed,
        )  # fmt: skip

    def run(self, variant: str, seed: int) -> Path:
        return self.out / "runs" / str(seed) / variant

    def evaluation(self, seed: int) -> Path:
        return self.out / "evaluation" / str(seed)


# ---------------------------------------------------------------- equal compute

ROUNDS = 3


def prepare_trainers(
    bench: Bench, names: Sequence[str]
) -> tuple[dict[str, DryRunTrainer], dict[str, str]]:
    """Trainers of the variants, and why each other variant is left out."""
    trainers: dict[str, DryRunTrainer] = {}
    left_out: dict[str, str] = {}
    same: dict[str, str] = {}  # model and settings -> variant
    for name in [DEFAULT, *(name for name in names if name != DEFAULT)]:
        more = (f"budget.minutes={bench.minutes}", "data.workers=0")
        try:
            run = DryRunTrainer(bench.settings(name, 0, *more), [bench.data])
        except (ConfigError, TooFewFrames) as error:
            left_out[name] = error.message
            continue
        plan = [
            run.plan.generator,
            run.plan.discriminators,
            [s.as_json() for s in run.plan.schedule],
        ]
        key = json.dumps([plan, run.settings.losses.model_dump()], sort_keys=True)
        if key in same:
            left_out[name] = f"on this footage it is the same as {same[key]}"
            continue
        same[key] = name
        trainers[name] = run
    return trainers, left_out


def costs_of(
    bench: Bench, names: Sequence[str]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Updates that each variant makes in the minutes; the variants left out, with reasons.

    Times windows of the variants in turn, so that load on the machine affects all of them, and
    takes the fastest, since load only adds time.
    """
    trainers, left_out = prepare_trainers(bench, names)
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(ROUNDS + 1):
        for name, run in trainers.items():
            times[name].append(run.update())
    found = {}
    for name, run in trainers.items():
        if run.trainer.progress.accumulate > run.settings.loop.accumulate:
            raise UsageError(
                f"{name} does not fit into memory with the other variants",
                hint="use --only or --size",
            )
        seconds = min(times[name][1:])  # the first is warm-up
        stages = run.stages(seconds)
        # With a budget in updates, a stage gets its share of the updates, not of the minutes.
        shares = [stage.minutes / bench.minutes for stage in stages]
        each = [60 * stage.minutes / max(stage.updates, 1) for stage in stages]
        mean = sum(share * cost for share, cost in zip(shares, each, strict=True))
        found[name] = {
            "updates": max(round(60 * bench.minutes / mean), 1),
            "seconds": seconds,
            "parameters": sum(p.numel() for p in run.trainer.generator.parameters()),
            "multiply_adds": stages[-1].multiply_adds,
        }
    return found, left_out


@dataclass(frozen=True)
class AblationPlan:
    costs: dict[str, dict[str, float]]  # of the variants to train, in list order
    left_out: dict[str, str]


def plan(bench: Bench, report: Reporter) -> AblationPlan:
    """Which variants to train, for how many updates; read from plan.json if it exists."""
    path = bench.out / "plan.json"
    request = {
        key: getattr(bench, key) for key in ("task", "size", "minutes", "changes", "jobs")
    } | {
        "data": ClipStore.open(bench.data).record.source.sha256,
        # Variants of another version may have the same names.
        "models": sha256("".join(_model(bench, v.name) for v in VARIANTS).encode()).hexdigest(),
    }  # fmt: skip
    request = json.loads(json.dumps(request))
    costs: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    if path.is_file():
        kept = json.loads(path.read_text("utf-8"))
        if kept["asked"] != request:
            raise UsageError(f"{path} was made with other settings", hint="choose another --out")
        costs, left_out = kept["costs"], kept["left_out"]
    missing = [name for name in bench.variants if name not in costs and name not in left_out]
    if missing:
        report.start("cost of an update", 1)
        for _, (found, why) in in_processes(bench, costs_of, [(missing,)]):
            costs |= {name: cost for name, cost in found.items() if name in missing}
            left_out |= why
        report.finish("cost of an update")
        bench.out.mkdir(parents=True, exist_ok=True)
        write_whole(path, {"asked": request, "costs": costs, "left_out": left_out})
    for name in bench.variants:
        if name in left_out:
            report.note(f"{name} is left out: {left_out[name]}")
    return AblationPlan({name: costs[name] for name in bench.variants if name in costs}, left_out)


def _model(bench: Bench, variant: str) -> str:
    """The settings that define the model, without the budget and the threads."""
    return bench.settings(variant, 0).model_dump_json(exclude={"loop": {"threads"}, "budget": True})


def write_whole(path: Path, data: dict[str, Any]) -> None:
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


# ---------------------------------------------------------------- training and measuring


def train_one(bench: Bench, variant: str, seed: int, updates: int) -> int:
    settings = bench.settings(variant, seed, f"budget.steps={updates}")
    return train(settings, [bench.data], bench.run(variant, seed), Silent()).steps


def is_trained(bench: Bench, variant: str, seed: int, updates: int) -> bool:
    folder = bench.run(variant, seed) / "model"
    if not (folder / MODEL_FILE).is_file():
        return False
    return int(load_model(folder).record.training.get("steps", 0)) >= updates


def evaluate_one(bench: Bench, seed: int, variants: Sequence[str]) -> None:
    """Evaluate all variants of a seed together with the baselines without training."""
    first, *others = variants
    evaluate(
        bench.run(first, seed), [bench.data], name=first, output=bench.evaluation(seed),
        against=["frozen", "nearest", *(f"{name}={bench.run(name, seed)}" for name in others)],
        frames=bench.frames, drift=bench.drift if seed == 0 else 0,  # drift takes most of the time
    )  # fmt: skip
    write_whole(bench.evaluation(seed) / "asked.json", _request(bench, seed, variants))


def _request(bench: Bench, seed: int, variants: Sequence[str]) -> dict[str, Any]:
    models = [bench.run(name, seed) / "model" / MODEL_FILE for name in variants]
    return {
        "variants": list(variants), "frames": bench.frames, "drift": bench.drift,
        "models": [sha256(model.read_bytes()).hexdigest() for model in models],
    }  # fmt: skip


def is_evaluated(bench: Bench, seed: int, variants: Sequence[str]) -> bool:
    """Whether a report of these variants and their current models exists."""
    path = bench.evaluation(seed) / "asked.json"
    if not path.is_file() or not (bench.evaluation(seed) / "report.json").is_file():
        return False
    return bool(json.loads(path.read_text("utf-8")) == _request(bench, seed, variants))


def in_processes(
    bench: Bench, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each call with the result of `work(bench, *call)`, --jobs at a time, as they finish.

    Submits no calls ahead: after Ctrl-C a pool still finishes all that were submitted.
    """
    remaining = iter(calls)
    with ProcessPoolExecutor(
        bench.jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        running: dict[Future[Any], tuple[Any, ...]] = {}
        while True:
            for call in islice(remaining, bench.jobs - len(running)):
                running[pool.submit(work, bench, *call)] = call
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


def measure(bench: Bench, report: Reporter) -> dict[str, Any]:
    """Train and evaluate what is missing. Returns the content of results.json."""
    planned = plan(bench, report)
    costs, variants = planned.costs, list(planned.costs)
    calls = [
        (name, seed, int(costs[name]["updates"]))
        for seed in range(bench.seeds)
        for name in variants
    ]
    missing = [call for call in calls if not is_trained(bench, *call)]
    report.start("train", len(calls), len(calls) - len(missing))
    for _ in in_processes(bench, train_one, missing):
        report.advance("train")
    report.finish("train")
    seeds = [seed for seed in range(bench.seeds) if not is_evaluated(bench, seed, variants)]
    report.start("evaluate", bench.seeds, bench.seeds - len(seeds))
    for _ in in_processes(bench, evaluate_one, [(seed, variants) for seed in seeds]):
        report.advance("evaluate")
    report.finish("evaluate")
    reports = [
        json.loads((bench.evaluation(seed) / "report.json").read_text("utf-8"))
        for seed in range(bench.seeds)
    ]
    return {
        "tool": f"v2v {__version__}", "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(bench.jobs), "data": reports[0]["data"], "size": bench.size,
        "width": reports[0]["model"]["width"], "height": reports[0]["model"]["height"],
        "minutes": bench.minutes, "changes": bench.changes, "left_out": planned.left_out,
        "variants": {name: asdict(BY_VARIANT[name]) | costs[name] for name in variants},
        "rows": {
            row: {
                measure: {
                    "seeds": [r["rows"][row]["measures"].get(measure, {}).get("mean")
                              for r in reports],
                    "drift": [r["rows"][row]["measures"].get(measure, {}).get("drift")
                              for r in reports],
                }
                for measure in reports[0]["rows"][row]["measures"]
            }
            for row in reports[0]["rows"]
        },
    }  # fmt: skip


# ---------------------------------------------------------------- tables


def format_cell(result: dict[str, Any], row: str, name: str) -> str:
    """Mean and standard deviation over seeds, with a mark if the variant differs from its baseline.

    The mark (+ better, - worse) requires that all seeds agree and that the mean difference exceeds
    twice its standard error; one seed gives no mark.
    """
    measure, values = all_metrics()[name], result["rows"][row].get(name, {}).get("seeds", [None])
    if any(value is None for value in values):
        return "–"
    text = measure.format(statistics.mean(values))
    if len(values) > 1 and len(set(values)) > 1:
        text += f" ±{measure.format(statistics.stdev(values))}"
    return text + mark(result, row, name)


def baseline_of(result: dict[str, Any], row: str) -> str:
    """The variant that a row is compared with; if it was not trained, its own baseline."""
    other: str = result["variants"][row]["than"]
    while other not in result["variants"] and other != row:
        other = BY_VARIANT[other].than
    return other


def mark(result: dict[str, Any], row: str, name: str) -> str:
    if row not in result["variants"]:
        return ""
    other = baseline_of(result, row)
    other_values = result["rows"].get(other, {}).get(name, {}).get("seeds", [])
    values = result["rows"][row][name]["seeds"]
    if row == other or len(values) < 2 or len(other_values) != len(values):
        return ""
    if None in values or None in other_values:
        return ""
    real = result["rows"][REAL][name]["seeds"]
    pairs = zip(values, other_values, real, strict=True)
    gains = [_cost(all_metrics()[name].better, b, r) - _cost(all_metrics()[name].better, a, r)
             for a, b, r in pairs]  # fmt: skip
    mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
    if len({gain > 0 for gain in gains}) > 1 or abs(mean) <= 2 * error:
        return ""
    return " **+**" if mean > 0 else " **−**"


def _cost(better: str, value: float, real: float) -> float:
    match better:
        case "lower":
            return value
        case "higher":
            return -value
        case "one":
            return abs(value - 1)
    return abs(value - real)


def table(result: dict[str, Any]) -> str:
    """The table of docs/RESULTS.md."""
    rows = [REAL, *result["variants"], *(r for r in result["rows"] if r not in result["variants"]
                                         and r != REAL)]  # fmt: skip
    names = [n for n in SHOWN if any(n in result["rows"][row] for row in rows)]
    titles = [column_title(name) for name in names]
    lines = [
        "| variant | compared with | updates | " + " | ".join(titles) + " |",
        "|---" * 2 + "|---:" * (len(titles) + 1) + "|",
    ]
    for row in rows:
        variant = result["variants"].get(row)
        than = baseline_of(result, row) if variant else row
        head = [row, than if than != row and than in result["variants"] else "",
                f"{variant['updates']:.0f}" if variant else ""]  # fmt: skip
        lines.append(
            "| " + " | ".join([*head, *(format_cell(result, row, n) for n in names)]) + " |"
        )
    return "\n".join(lines)


def drift_table(result: dict[str, Any]) -> str:
    """Ratio of the last to the second fifth of free-running frames, first seed."""
    rows = list(result["variants"])
    first = {
        row: {n: measure["drift"][0] for n, measure in result["rows"][row].items()} for row in rows
    }
    names = [n for n in SHOWN if any(first[row].get(n) is not None for row in rows)]
    if not names:
        return "No drift was measured."
    lines = ["| drift | " + " | ".join(all_metrics()[n].title for n in names) + " |",
             "|---" + "|---:" * len(names) + "|"]  # fmt: skip
    for row in rows:
        values = [first[row].get(n) for n in names]
        cells = ["–" if value is None else f"{value:.2f}" for value in values]
        lines.append("| " + " | ".join([row, *cells]) + " |")
    return "\n".join(lines)


def draw_frames(bench: Bench, variants: Sequence[str], path: Path) -> None:
    """The default's typical and worst frame by SSIM, seed 0, rendered by every variant."""
    report = json.loads((bench.evaluation(0) / "report.json").read_text("utf-8"))
    first, stop = report["data"][0]["frames"]
    ranked = ranked_moments(report["courses"][0][DEFAULT], stop - first)
    moments = {"typical": ranked[len(ranked) // 2], "worst": ranked[0]}
    columns = []
    for variant in variants:
        frames, clip = render_moments(
            bench.run(variant, 0), bench.data, list(moments.values()), bench.frames
        )
        if not columns:
            real = [next(clip.pictures(clip.order[[t]])) for t in moments.values()]
            columns.append([panel(p, f"real, {w}") for p, w in zip(real, moments, strict=True)])
        columns.append([panel(picture, variant) for picture in frames])
    Image.fromarray(np.hstack([np.vstack(column) for column in columns])).save(path)


# ---------------------------------------------------------------- the command line


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a clip store (default: drawn footage)")
    parser.add_argument("--task", choices=["pose", "face", "street"], default="pose")
    parser.add_argument("--size", type=int, default=64, help="shorter side (default: 64)")
    parser.add_argument(
        "--minutes", type=float, default=0.75, help="training time per run (default: 0.75)"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, help="runs at a time (default: cores; 1 on a GPU)")
    parser.add_argument(
        "--only",
        help="variants besides the default, comma-separated (default: all but"
        f" {', '.join(variant.name for variant in VARIANTS if variant.extra)})",
    )
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a setting of all variants")  # fmt: skip
    parser.add_argument(
        "--frames", type=int, default=600, help="most frames to measure (default: 600)"
    )
    parser.add_argument(
        "--drift", type=int, default=300, help="frames for drift, first seed (default: 300)"
    )
    parser.add_argument("--out", type=Path, help="(default: runs/ablation/DATA-SIZE)")
    return parser.parse_args()


def read(chosen: argparse.Namespace, report: Reporter) -> Bench:
    usual = ",".join(variant.name for variant in VARIANTS if not variant.extra)
    names = [name for name in (chosen.only or usual).split(",") if name]
    for name in names:
        if name not in BY_VARIANT:
            raise UnknownName.among("--only", name, tuple(BY_VARIANT))
    if chosen.seeds < 1 or not chosen.minutes > 0:
        raise UsageError(
            "--seeds and --minutes must be above 0", hint="leave them out for 3 and 0.75"
        )
    label = chosen.data.name if chosen.data else f"drawn-{chosen.task}"
    out = chosen.out or Path("runs/ablation") / f"{label}-{chosen.size}"
    data = chosen.data or draw_store(
        out / "drawn", chosen.task, seconds=SECONDS, seed=11, report=report
    )
    for signal in settings_of(chosen.task, chosen.size).data.signals:
        ClipStore.open(data).track(signal, 0, 1)  # fail early if a signal is missing
    on_gpu = torch.cuda.is_available()
    return Bench(
        data, chosen.task, chosen.size, chosen.minutes, chosen.seeds,
        chosen.jobs or (1 if on_gpu else cores()), tuple(chosen.set),
        tuple(name for name in BY_VARIANT if name in {DEFAULT, *names}), out,
        chosen.frames, chosen.drift,
    )  # fmt: skip


def run(chosen: argparse.Namespace) -> None:
    with Terminal() as report:
        bench = read(chosen, report)
        # Give each process its own cores: threads that wait for a busy core spin.
        os.environ["OMP_NUM_THREADS"] = str(max(cores() // bench.jobs, 1))
        result = measure(bench, report)
    (bench.out / "results.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    text = f"{table(result)}\n\n{drift_table(result)}\n"
    (bench.out / "table.md").write_text(text, "utf-8")
    draw_frames(bench, list(result["variants"]), bench.out / "frames.png")
    print(f"{result['machine']}; {result['width']}x{result['height']}, {bench.minutes} minutes,"
          f" {bench.seeds} seed(s)\n{text}\n{bench.out}")  # fmt: skip


if __name__ == "__main__":
    run_command(lambda: run(arguments()))
