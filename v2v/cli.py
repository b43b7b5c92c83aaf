"""The commands people type. Each is thin: it reads options and calls the part that does the work.

Heavy imports are inside the functions, so that `v2v --help` is instant.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2v import __version__
from v2v.errors import MissingLibrary, UnknownName, UsageError, V2VError
from v2v.native import prepare_process

if TYPE_CHECKING:
    from preprocess.build import Outcome
    from preprocess.run import ClipResult
    from v2v.progress import Reporter
    from v2v.training.loop import Outcome as TrainOutcome

STOPPED = 130  # the exit code of Ctrl-C, which typer turns it into

app = typer.Typer(
    name="v2v",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Video-to-video synthesis from your own footage.",
)


def _print_version(asked: bool) -> None:
    """Print the version."""
    if asked:
        print(f"v2v {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    pass


EXAMPLES_PREPROCESS = """
Turn footage into clip stores: frames and the signals that models are trained on.

A store is a folder of ordinary files (`frames.mp4`, `pose.npz`, ...). Give a video, an image, a
folder of images, a folder of videos, a pattern, or a store to add signals to. Run the same command
again to go on after a stop; what is finished is kept.

**Examples**

    v2v preprocess dance.mp4 --signal pose

    v2v preprocess dance.mp4 --signal all --size 512 --crop person

    v2v preprocess talk.mov --signal face,segmentation --crop face --size 512x512

    v2v preprocess street/images --labels street/labels --signal segmentation,flow --fps 17

    v2v preprocess "clips/*.mp4" --signal pose --workers 2

    v2v preprocess data/dance --signal flow -s flow.dis_preset=fast
"""


@app.command(help=EXAMPLES_PREPROCESS)
def preprocess(
    inputs: Annotated[
        list[str], typer.Argument(help="Videos, images, folders, patterns, or stores.")
    ],
    signal: Annotated[
        list[str] | None,
        typer.Option(
            "--signal",
            "-S",
            help="pose, face, segmentation, flow or all; repeat it or separate with commas."
            " [default: pose]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The store's folder; with several inputs the folder to put stores in."
            " [default: data/NAME]",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Shorter side in pixels (512), or WIDTHxHEIGHT. [default: as filmed]"),
    ] = None,
    fps: Annotated[
        str | None, typer.Option(help="Frames per second, e.g. 25 or 29.97. [default: as filmed]")
    ] = None,
    start: Annotated[float | None, typer.Option(help="First moment to keep, in seconds.")] = None,
    end: Annotated[float | None, typer.Option(help="Where to stop, in seconds.")] = None,
    crop: Annotated[
        str | None,
        typer.Option(help="none, person or face: a box held still over the clip. [default: none]"),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of label or instance maps (PNG), one a frame, as segmentation."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="One setting, KEY=VALUE, e.g. -s pose.max_gap=0.5."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Clips at a time.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make anew what is there already.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    prepare_process()
    from preprocess.run import expand_inputs, expand_signals, preprocess_all
    from v2v.config import PreprocessSettings, load_config
    from v2v.errors import ConfigError

    values = {
        "frames.size": _parse_size(size), "frames.fps": fps, "frames.start": start,
        "frames.end": end, "frames.crop": crop,
    }  # fmt: skip
    if labels is not None:
        values |= {"segmentation.labels": str(labels), "segmentation.backend": "labels"}
    if crop is not None and crop not in ("none", "person", "face"):
        raise UnknownName.among("--crop", crop, ("none", "person", "face"))
    settings = load_config(
        PreprocessSettings, "preprocess", file=config, overrides=setting, values=values
    )
    default = ["segmentation"] if labels is not None else ["pose"]
    names = expand_signals(signal or default)
    if labels is not None and "segmentation" not in names:
        raise ConfigError(
            "--labels gives the segmentation signal, which is not asked for",
            hint=f"add it: --signal {','.join([*names, 'segmentation'])}",
        )
    jobs = expand_inputs(inputs, output)
    with _progress(quiet or as_json) as report:
        results = preprocess_all(
            jobs, names, settings, workers=workers, overwrite=overwrite, report=report
        )
    if as_json:
        import json

        print(json.dumps([result.as_json() for result in results], indent=1))
    elif not quiet:
        _print_outcomes([r.outcome for r in results if r.outcome is not None])
    _report_errors(results)


EXAMPLES_TRAIN = """
Train a model on clip stores: it renders video from the signals that a clip was preprocessed with.

The run's folder is `runs/NAME`: the model, previews of held-out frames, checkpoints, a log, curves
for TensorBoard. Run the same command again to go on after a stop; Ctrl-C saves first.

**Examples**

    v2v train --task pose --data data/dance --name b

    v2v train --task face --data data/talk --size 128 --minutes 15

    v2v train --task street --data data/berlin --data data/bonn -s generator.preset=base

    v2v train --task pose --data data/dance --dry-run

    torchrun --nproc-per-node 2 -m v2v train --task pose --data data/dance -s schedule.frames=8
"""


@app.command(help=EXAMPLES_TRAIN)
def train(
    data: Annotated[
        list[Path],
        typer.Option("--data", "-d", help="A clip store; repeat it for several."),
    ],
    task: Annotated[
        str, typer.Option("--task", "-t", help="What drives the model: pose, face or street.")
    ] = "pose",
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", help="Of the run. [default: the first clip's name]"),
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder of all runs.")] = Path("runs"),
    size: Annotated[
        int | None, typer.Option(help="Shorter side of the frames in pixels. [default: 256]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Train for so many updates.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for so long. [default: 60]")] = None,
    devices: Annotated[
        int | None, typer.Option(help="Processes, one for each device. [default: 1]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="One setting, KEY=VALUE: -s generator.preset=base."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained, and what it costs.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away a run of this name first.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    prepare_process()
    from v2v.config import load_config
    from v2v.training.settings import TASKS, TrainSettings

    if task not in TASKS:
        raise UnknownName.among("task", task, TASKS)
    if steps is not None and minutes is not None:
        raise UsageError("--steps and --minutes are both given", hint="one of them is the budget")
    values = {
        "task": task, "data.size": size, "loop.devices": devices,
        "budget.steps": steps, "budget.minutes": minutes,
    }  # fmt: skip
    settings = load_config(
        TrainSettings, "train", f"train-{task}", file=config, overrides=setting, values=values
    )
    folder = runs / (name or data[0].resolve().name)
    if dry_run:
        from v2v.training.estimate import estimate

        plan = estimate(settings, data)
        if _is_helper_process():
            return
        if as_json:
            import json

            print(json.dumps(plan.as_json(), indent=1))
        else:
            from rich.console import Console

            plan.render(Console(width=None if sys.stdout.isatty() else 110))
        return
    from v2v.training.loop import train as run_training

    with _progress(quiet or as_json or _is_helper_process()) as report:
        outcome = run_training(settings, data, folder, report, overwrite=overwrite)
    if _is_helper_process():
        return
    if as_json:
        import json

        print(json.dumps(outcome.as_json(), indent=1))
    elif not quiet:
        _print_training(outcome)


def _is_helper_process() -> bool:
    """Whether this is one of several training processes, and not the one that reports."""
    import os

    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) != "0"


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, such as runs/b.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The picture: .png, .svg or .pdf. [default: curves.png in the run's folder; here,"
            " for several runs]",
        ),
    ] = None,
    minutes: Annotated[
        bool, typer.Option("--minutes", help="Over minutes of training instead of updates.")
    ] = False,
) -> None:
    """Draw the curves of a training run as a picture; of several runs, to compare them.

    **Examples**

        v2v plot runs/b

        v2v plot runs/b runs/c --minutes -o compared.png
    """
    from v2v.training.plot import plot as draw

    default = (runs[0] if len(runs) == 1 else Path()) / "curves.png"
    print(draw(runs, output or default, minutes=minutes))


@app.command()
def doctor(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Videos, folders, patterns, or stores.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON on standard output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Say what footage is good for, before hours are spent on it.

    Length, sharpness, cuts, other people in view, how much of the body or the face is seen, which
    poses and head angles are missing, and what to film. Without footage: check the installation.

    **Examples**

        v2v doctor

        v2v doctor dance.mp4

        v2v doctor data/dance --json
    """
    prepare_process()
    if not inputs:
        _check_installation(as_json)
        return
    import json

    from rich.console import Console

    from preprocess.doctor import examine
    from preprocess.run import expand_inputs

    found = []
    problems: list[V2VError] = []
    with _progress(quiet or as_json) as report:
        for job in expand_inputs(inputs, None):
            try:
                found.append(examine(job.source, report))
            except V2VError as error:
                problems.append(error)
    if as_json:
        print(json.dumps([footage.as_json() for footage in found], indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 110)
        for footage in found:
            footage.render(console)
    for problem in problems:
        _print_error(problem)
    if problems:
        raise typer.Exit(max(problem.exit_code for problem in problems))


def _check_installation(as_json: bool) -> None:
    """Print the checks; leaves with 1 where one failed."""
    import json

    from rich.console import Console

    from v2v.installation import check_installation, render

    checks = check_installation()
    if as_json:
        print(json.dumps([check.as_json() for check in checks], indent=1))
    else:
        render(checks, Console(width=None if sys.stdout.isatty() else 110))
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


@app.command()
def sample(
    kinds: Annotated[
        list[str] | None, typer.Argument(help="person, face, street. [default: all three]")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to.")] = Path("samples_out"),
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Length of each clip.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Another seed, another dance.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Draw small clips to try things on: a dancing person, a talking face, a street.

    The street comes with exact label maps, instance maps and optical flow.

    **Example**

        v2v sample person && v2v preprocess samples_out/person.mp4 --signal all
    """
    from samples.clips import KINDS, write_sample

    for kind in kinds or KINDS:
        if kind not in KINDS:
            raise UnknownName.among("sample", kind, KINDS)
    with _progress(quiet) as report:
        paths = [
            write_sample(kind, output, seconds=seconds, seed=seed, report=report)
            for kind in kinds or KINDS
        ]
    if not quiet:
        for path in paths:
            print(path)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to.")] = Path("v2v_demo"),
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Length of the drawn clip.")] = 4.0,
) -> None:
    """Draw a dancing person, take all signals from it, and leave a preview to look at.

    Run it again and finished work is kept.

    **Example**

        v2v demo --output try_me
    """
    prepare_process()
    from preprocess.run import ClipJob, preprocess_all
    from samples.clips import write_sample
    from v2v.config import PreprocessSettings, load_config
    from v2v.signals import signal_names

    settings = load_config(PreprocessSettings, "preprocess")
    footage = output / "person.mp4"
    with _progress(False) as report:
        if not footage.exists():
            write_sample("person", output, seconds=seconds, report=report)
        job = ClipJob(footage, output / "data" / "person")
        results = preprocess_all(
            [job], list(signal_names()), settings, workers=1, overwrite=False, report=report
        )
    _report_results(results)


def _report_results(results: list[ClipResult]) -> None:
    """The table, then what went wrong; leaves with the worst exit code."""
    _print_outcomes([r.outcome for r in results if r.outcome is not None])
    _report_errors(results)


def _report_errors(results: list[ClipResult]) -> None:
    errors = [found for result in results for found in result.errors]
    for where, error in errors:
        _print_error(error, prefix=where if len(results) > 1 else None)
    if errors:
        raise typer.Exit(max(error.exit_code for _, error in errors))


def _parse_size(text: str | None) -> Any:
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(p.isdigit() for p in parts) or len(parts) > 2:
        raise UsageError(
            f"--size {text} is not a size", hint="write 512 for the shorter side, or 512x768"
        )
    return int(parts[0]) if len(parts) == 1 else [int(p) for p in parts]


def _progress(silent: bool) -> Any:
    from contextlib import nullcontext

    from v2v.progress import Silent, Terminal

    reporter: Reporter = Silent()
    return nullcontext(reporter) if silent else Terminal()


def _print_outcomes(outcomes: list[Outcome]) -> None:
    from fractions import Fraction

    from rich.console import Console
    from rich.table import Table

    if not outcomes:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("clip", "frames", "size", "fps", "signals on … of the frames", "warnings"):
        table.add_column(column, overflow="fold")
    for outcome in outcomes:
        frames = outcome.record.frames
        signals = [f"{n} {s.coverage:.0%}" for n, s in outcome.record.signals.items()]
        table.add_row(
            str(outcome.folder),
            str(frames.count),
            f"{frames.width}x{frames.height}",
            f"{float(Fraction(frames.fps)):.4g}",
            ", ".join(signals) or "none",
            "; ".join(outcome.warnings) or "none",
        )
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for outcome in outcomes:
        if outcome.made:
            text = f"made {', '.join(outcome.made)} in {outcome.seconds:.1f} s"
        else:
            text = "nothing left to do"
        preview = outcome.folder / "preview.mp4"
        look = f"; look at {preview}" if preview.exists() else ""
        console.print(f"{outcome.folder}: {text}{look}", highlight=False, soft_wrap=True)


def _print_training(outcome: TrainOutcome) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(
        f"{outcome.folder}: {outcome.steps} updates in {outcome.minutes:.1f} min; the model is"
        f" {outcome.model}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if outcome.preview:
        console.print(
            f"look at {outcome.preview} (held-out frames: signals, rendered, real)",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _print_error(error: V2VError, prefix: str | None = None) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    where = f"{prefix}: " if prefix else ""
    console.print(Text("error: ", style="bold red") + Text(where + error.message), soft_wrap=True)
    if error.hint:
        console.print(Text("  try: ", style="bold") + Text(error.hint), soft_wrap=True)


def _library_problem(error: ImportError) -> V2VError | None:
    """The usual missing system libraries, in words; None for our own broken imports."""
    text = str(error)
    for library, package in (
        ("libGL.so", "libgl1"),
        ("libglib-2", "libglib2.0-0"),
        ("libgthread", "libglib2.0-0"),
        ("libEGL", "libegl1"),
        ("libGLES", "libgles2"),
    ):
        if library in text:
            return MissingLibrary(
                f"a system library is missing: {text}",
                hint=f"on Debian or Ubuntu: sudo apt install {package}",
            )
    return None


def main() -> None:
    """The entry point: errors that users cause become two lines and an exit code."""
    import os
    import signal

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        raise KeyboardInterrupt

    def leave_stopped() -> None:
        print("stopped; run the same command again to go on", file=sys.stderr, flush=True)
        os._exit(STOPPED)  # threads inside native code must not hold the process

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored
        signal.signal(signal.SIGINT, stop)
    try:
        app()
    except SystemExit as leaving:
        if leaving.code != STOPPED:
            raise
        leave_stopped()
    except V2VError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except ImportError as error:
        if stopping:  # native modules turn what stops their import into this
            leave_stopped()
        problem = _library_problem(error)
        if problem is None:
            raise
        _print_error(problem)
        sys.exit(problem.exit_code)
    except BrokenPipeError:
        os._exit(0)
