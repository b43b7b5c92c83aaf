"""What each part of the model buys: one list of variants, the same clip, compute and seeds.

python benchmarks/ablation.py                                     drawn footage, CPU
python benchmarks/ablation.py --data data/dance --task pose       own footage, CPU
python benchmarks/ablation.py --data data/dance --size 256 --minutes 30 --jobs 1     one GPU
python benchmarks/ablation.py --data data/dance --only frame,both --seeds 5

Every variant changes one thing of one other. All have about the same compute: what an update of
each costs on this machine is measured first, in turn, and --minutes of training become so many
updates, which are kept in OUT/plan.json: a machine that is busy later, or a second sitting, changes
no figure. Runs of one seed see the same windows in the same order. A variant that this footage does
not allow (no person mask, shots that are too short), or that comes to the same as the one it is
held against, is left out, and that is said.

On two cores, two at a time, the list with three seeds takes some 40 minutes at 64 px. Leave the
machine alone in the first ten, in which the costs are measured. Stop it with Ctrl-C; the same
command goes on.

OUT holds runs/SEED/VARIANT, evaluation/SEED (what `v2v evaluate` writes), table.md, results.json
and frames.png: the typical and the worst frame of the default, and what every variant makes of it.
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
from shared import command, drawn, machine, panel, ranked_moments, rendered, settings_of, titled

from v2v import __version__
from v2v.checkpoint import MODEL_FILE, load_model
from v2v.data.store import ClipStore
from v2v.errors import ConfigError, TooFewFrames, UnknownName, UsageError
from v2v.evaluation.registry import BY_NAME
from v2v.pipelines.evaluation.evaluate import evaluate
from v2v.pipelines.evaluation.methods import FRAME, REAL
from v2v.progress import Reporter, Silent, Terminal
from v2v.training.estimate import DryRunTrainer
from v2v.training.loop import train
from v2v.training.settings import TrainSettings

DEFAULT = "default"
SECONDS = 20.0  # of drawn footage


@dataclass(frozen=True)
class Variant:
    """A model to train; `changes` is what it has of its own, on top of the defaults."""

    name: str
    what: str
    changes: tuple[str, ...] = ()
    than: str = DEFAULT  # which other it differs from by one thing
    extra: bool = False  # trained where --only names it: the list is to be done in 40 minutes


# The temporal critics and how much the generator makes of each (arXiv 1808.06601 weighs all alike).
TEMPORAL_DISCRIMINATORS = {1: 0.5, 3: 0.25, 9: 0.25}


def _discriminators(*strides: int) -> tuple[str, ...]:
    return tuple(
        f"losses.discriminators.temporal_{n}={TEMPORAL_DISCRIMINATORS[n]}" for n in strides
    )


SEEN, BLENDED = "generator.past=frames", "generator.compose=blend"

VARIANTS = (
    Variant(FRAME, "frame by frame: no past", ("generator.sequential=false",)),
    Variant("past", "past frames are seen, nothing is warped",
            ("generator.compose=none", SEEN), FRAME),
    Variant("blend", "and warped by a flow, blended in (equation 4), with the losses of motion",
            (BLENDED, SEEN, "generator.control_points=off"), "past"),
    Variant("control_points", "the flow begins with how the signal's points move", (BLENDED, SEEN),
            "blend"),
    Variant(DEFAULT, "the core sees nothing of the past: the defaults", (), "control_points"),
    Variant("signals", "the core sees the past's signals, not its frames",
            ("generator.past=signals",), extra=True),
    Variant("nothing", "the core sees nothing of the past, plate or not",
            ("generator.past=nothing",), extra=True),
    Variant("both", "the warped frame is a condition of the last blocks too",
            ("generator.compose=both",)),
    Variant("blended", "the warped frame is blended in, references or not", (BLENDED,),
            extra=True),
    Variant("stride-1", "a temporal critic at stride 1", _discriminators(1)),
    Variant("strides-1-3", "temporal discriminators at strides 1 and 3",
            _discriminators(1, 3), "stride-1"),
    Variant("strides-1-3-9", "temporal critics at strides 1, 3 and 9", _discriminators(1, 3, 9),
            "strides-1-3"),
    Variant("bptt-2", "gradients through two frames of half as many windows",
            ("loop.bptt_steps=2",),
            extra=True),
    Variant("no-progression", "windows of 20 frames from the first update on",
            ("schedule.lengths=[20]",)),
    Variant("no-plate", "no background plate: all is synthesised",
            ("generator.background_plate=off", SEEN),
            "control_points"),
    Variant("prior", "foreground and background by parts of their own (equation 6), no plate",
            ("generator.background_plate=off", "generator.prior=on"), "no-plate"),
)  # fmt: skip
BY_VARIANT = {variant.name: variant for variant in VARIANTS}

# What the table shows, where it was measured.
SHOWN = (
    "psnr", "person_psnr", "ssim", "person_sharpness", "pose_error", "pck", "face_error", "mouth",
    "label_iou", "warping_error", "tof", "flicker", "frame_difference",
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What was asked for."""

    data: Path
    task: str
    size: int
    minutes: float
    seeds: int
    jobs: int
    changes: tuple[str, ...]  # of all variants
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


# ---------------------------------------------------------------- the same compute for all

ROUNDS = 3


def stand(bench: Bench, names: Sequence[str]) -> tuple[dict[str, DryRunTrainer], dict[str, str]]:
    """Runs to try, and of the variants that there is no use in trying, why."""
    standing: dict[str, DryRunTrainer] = {}
    left_out: dict[str, str] = {}
    same: dict[str, str] = {}  # what a run is, to the variant that is it
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
        standing[name] = run
    return standing, left_out


def costs_of(
    bench: Bench, names: Sequence[str]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Updates that variants make in the minutes, and what is left out, with the reason.

    A window of each in turn, since a slow minute of the machine is to hit all; the fastest counts,
    since what disturbs only adds.
    """
    standing, left_out = stand(bench, names)
    times: dict[str, list[float]] = {name: [] for name in standing}
    for _ in range(ROUNDS + 1):
        for name, run in standing.items():
            times[name].append(run.update())
    found = {}
    for name, run in standing.items():
        if run.trainer.progress.accumulate > run.settings.loop.accumulate:
            raise UsageError(
                f"{name} does not fit into memory beside the others", hint="use --only, or --size"
            )
        seconds = min(times[name][1:])  # the first warms up
        stages = run.stages(seconds)
        # A run by updates gives each stage its share of those, not of the minutes.
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
    costs: dict[str, dict[str, float]]  # of the variants to train, in the order of the list
    left_out: dict[str, str]


def plan(bench: Bench, report: Reporter) -> AblationPlan:
    """What every variant is and how long it trains; kept, so that it stays so."""
    path = bench.out / "plan.json"
    asked = {
        key: getattr(bench, key) for key in ("task", "size", "minutes", "changes", "jobs")
    } | {
        "data": ClipStore.open(bench.data).record.source.sha256,
        # Another version's variants may be other models of the same names.
        "models": sha256("".join(_model(bench, v.name) for v in VARIANTS).encode()).hexdigest(),
    }  # fmt: skip
    asked = json.loads(json.dumps(asked))
    costs: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    if path.is_file():
        kept = json.loads(path.read_text("utf-8"))
        if kept["asked"] != asked:
            raise UsageError(f"{path} is of other settings", hint="choose another --out")
        costs, left_out = kept["costs"], kept["left_out"]
    missing = [name for name in bench.variants if name not in costs and name not in left_out]
    if missing:
        report.start("cost of an update", 1)
        for _, (found, why) in in_processes(bench, costs_of, [(missing,)]):
            costs |= {name: cost for name, cost in found.items() if name in missing}
            left_out |= why
        report.finish("cost of an update")
        bench.out.mkdir(parents=True, exist_ok=True)
        write_whole(path, {"asked": asked, "costs": costs, "left_out": left_out})
    for name in bench.variants:
        if name in left_out:
            report.note(f"{name} is left out: {left_out[name]}")
    return AblationPlan({name: costs[name] for name in bench.variants if name in costs}, left_out)


def _model(bench: Bench, variant: str) -> str:
    """All that decides what is trained; for how long and by how many cores is said elsewhere."""
    return bench.settings(variant, 0).model_dump_json(exclude={"loop": {"threads"}, "budget": True})


def write_whole(path: Path, data: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    os.replace(partial, path)


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
    """All variants of a seed beside one another, and what is cheaper than any model."""
    first, *others = variants
    evaluate(
        bench.run(first, seed), [bench.data], name=first, output=bench.evaluation(seed),
        against=["frozen", "nearest", *(f"{name}={bench.run(name, seed)}" for name in others)],
        frames=bench.frames, drift=bench.drift if seed == 0 else 0,  # it takes most of the time
    )  # fmt: skip
    write_whole(bench.evaluation(seed) / "asked.json", _asked(bench, seed, variants))


def _asked(bench: Bench, seed: int, variants: Sequence[str]) -> dict[str, Any]:
    models = [bench.run(name, seed) / "model" / MODEL_FILE for name in variants]
    return {
        "variants": list(variants), "frames": bench.frames, "drift": bench.drift,
        "models": [sha256(model.read_bytes()).hexdigest() for model in models],
    }  # fmt: skip


def is_evaluated(bench: Bench, seed: int, variants: Sequence[str]) -> bool:
    """Whether there is a report of these variants, as they are now."""
    path = bench.evaluation(seed) / "asked.json"
    if not path.is_file() or not (bench.evaluation(seed) / "report.json").is_file():
        return False
    return bool(json.loads(path.read_text("utf-8")) == _asked(bench, seed, variants))


def in_processes(
    bench: Bench, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """`work(bench, *call)` for every call, --jobs at a time, as they are done.

    No more than that are handed over: what a pool has taken on it finishes, Ctrl-C or not.
    """
    ahead = iter(calls)
    with ProcessPoolExecutor(
        bench.jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        waiting: dict[Future[Any], tuple[Any, ...]] = {}
        while True:
            for call in islice(ahead, bench.jobs - len(waiting)):
                waiting[pool.submit(work, bench, *call)] = call
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()


def measure(bench: Bench, report: Reporter) -> dict[str, Any]:
    """Train and measure whatever is not there yet. Returns what is in results.json."""
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


# ---------------------------------------------------------------- telling


def told(result: dict[str, Any], row: str, name: str) -> str:
    """Mean and standard deviation over seeds, and a mark where a variant is told from its other.

    The mark (+ better, - worse) stands where all seeds agree and the mean difference is over
    twice its standard error; with one seed there is none.
    """
    measure, values = BY_NAME[name], result["rows"][row].get(name, {}).get("seeds", [None])
    if any(value is None for value in values):
        return "–"
    text = measure.format(statistics.mean(values))
    if len(values) > 1 and len(set(values)) > 1:
        text += f" ±{measure.format(statistics.stdev(values))}"
    return text + mark(result, row, name)


def compared(result: dict[str, Any], row: str) -> str:
    """What a variant is held against: where that was not trained, what that one would be."""
    other: str = result["variants"][row]["than"]
    while other not in result["variants"] and other != row:
        other = BY_VARIANT[other].than
    return other


def mark(result: dict[str, Any], row: str, name: str) -> str:
    if row not in result["variants"]:
        return ""
    other = compared(result, row)
    other_values = result["rows"].get(other, {}).get(name, {}).get("seeds", [])
    values = result["rows"][row][name]["seeds"]
    if row == other or len(values) < 2 or len(other_values) != len(values):
        return ""
    if None in values or None in other_values:
        return ""
    real = result["rows"][REAL][name]["seeds"]
    pairs = zip(values, other_values, real, strict=True)
    gains = [_cost(BY_NAME[name].better, b, r) - _cost(BY_NAME[name].better, a, r)
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
    titles = [titled(name) for name in names]
    lines = [
        "| variant | than | updates | " + " | ".join(titles) + " |",
        "|---" * 2 + "|---:" * (len(titles) + 1) + "|",
    ]
    for row in rows:
        variant = result["variants"].get(row)
        than = compared(result, row) if variant else row
        head = [row, than if than != row and than in result["variants"] else "",
                f"{variant['updates']:.0f}" if variant else ""]  # fmt: skip
        lines.append("| " + " | ".join([*head, *(told(result, row, n) for n in names)]) + " |")
    return "\n".join(lines)


def drift_table(result: dict[str, Any]) -> str:
    """Last fifth over second of the free running of the first seed."""
    rows = list(result["variants"])
    first = {
        row: {n: measure["drift"][0] for n, measure in result["rows"][row].items()} for row in rows
    }
    names = [n for n in SHOWN if any(first[row].get(n) is not None for row in rows)]
    if not names:
        return "No drift was measured."
    lines = ["| drift | " + " | ".join(BY_NAME[n].title for n in names) + " |",
             "|---" + "|---:" * len(names) + "|"]  # fmt: skip
    for row in rows:
        values = [first[row].get(n) for n in names]
        cells = ["–" if value is None else f"{value:.2f}" for value in values]
        lines.append("| " + " | ".join([row, *cells]) + " |")
    return "\n".join(lines)


def draw_frames(bench: Bench, variants: Sequence[str], path: Path) -> None:
    """The default's typical and worst frame by SSIM, seed 0, and what the others make of them."""
    report = json.loads((bench.evaluation(0) / "report.json").read_text("utf-8"))
    first, stop = report["data"][0]["frames"]
    ranked = ranked_moments(report["courses"][0][DEFAULT], stop - first)
    moments = {"typical": ranked[len(ranked) // 2], "worst": ranked[0]}
    columns = []
    for variant in variants:
        frames, clip = rendered(
            bench.run(variant, 0), bench.data, list(moments.values()), bench.frames
        )
        if not columns:
            real = [next(clip.pictures(clip.order[[t]])) for t in moments.values()]
            columns.append([panel(p, f"real, {w}") for p, w in zip(real, moments, strict=True)])
        columns.append([panel(picture, variant) for picture in frames])
    Image.fromarray(np.hstack([np.vstack(column) for column in columns])).save(path)


# ---------------------------------------------------------------- the command


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a clip store (default: footage that is drawn)")
    parser.add_argument("--task", choices=["pose", "face", "street"], default="pose")
    parser.add_argument("--size", type=int, default=64, help="shorter side (default: 64)")
    parser.add_argument(
        "--minutes", type=float, default=0.75, help="of training, each run (default: 0.75)"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, help="runs at a time (default: the cores, on a GPU 1)")
    parser.add_argument(
        "--only",
        help="variants beside the defaults, comma-separated (default: all but"
        f" {', '.join(variant.name for variant in VARIANTS if variant.extra)})",
    )
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a setting of all variants")  # fmt: skip
    parser.add_argument("--frames", type=int, default=600, help="measured at most (default: 600)")
    parser.add_argument(
        "--drift", type=int, default=300, help="frames run over, first seed (default: 300)"
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
        raise UsageError("--seeds and --minutes are above 0", hint="leave them out for 3 and 0.75")
    label = chosen.data.name if chosen.data else f"drawn-{chosen.task}"
    out = chosen.out or Path("runs/ablation") / f"{label}-{chosen.size}"
    data = chosen.data or drawn(out / "drawn", chosen.task, seconds=SECONDS, seed=11, report=report)
    for signal in settings_of(chosen.task, chosen.size).data.signals:
        ClipStore.open(data).track(signal, 0, 1)  # what is missing is said at once
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
        # Threads that wait for a busy core spin: every process has its own cores.
        os.environ["OMP_NUM_THREADS"] = str(max(cores() // bench.jobs, 1))
        result = measure(bench, report)
    (bench.out / "results.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    text = f"{table(result)}\n\n{drift_table(result)}\n"
    (bench.out / "table.md").write_text(text, "utf-8")
    draw_frames(bench, list(result["variants"]), bench.out / "frames.png")
    print(f"{result['machine']}; {result['width']}x{result['height']}, {bench.minutes} minutes,"
          f" {bench.seeds} seed(s)\n{text}\n{bench.out}")  # fmt: skip


if __name__ == "__main__":
    command(lambda: run(arguments()))
