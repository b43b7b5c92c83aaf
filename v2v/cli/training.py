"""Commands for training: train, plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from v2v.cli.shared import AsJson, ConfigFile, Quiet, console, progress
from v2v.errors import UnknownName, UsageError
from v2v.runtime import prepare_process

if TYPE_CHECKING:
    from v2v.training.loop import TrainingResult

PREDICT = "predict"
EXAMPLES_TRAIN = """
Train a model on clip stores; it renders video from the signals that preprocessing extracted.

The run folder `runs/NAME` holds the model, previews of held-out frames, checkpoints, a log, and
curves for TensorBoard. Run the same command again to resume after a stop; Ctrl-C saves first.

**Examples**

    v2v train --task pose --data data/dance --name b

    v2v train --task face --data data/talk --size 128 --minutes 15

    v2v train --task street --data data/berlin --data data/bonn -s generator.preset=base

    v2v train --task pose --data data/dance --dry-run

    v2v train --task predict --data data/dance --name b

    torchrun --nproc-per-node 2 -m v2v train --task pose --data data/dance -s schedule.frames=8
"""


def train(
    data: Annotated[
        list[Path],
        typer.Option("--data", "-d", help="Clip store; repeat for several."),
    ],
    task: Annotated[
        str,
        typer.Option(
            "--task",
            "-t",
            help="Signal that drives the model: pose, face or street; or predict, which trains a"
            " frame predictor for the run's model.",
        ),
    ] = "pose",
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", help="Name of the run. [default: the first clip's name]"),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    size: Annotated[
        int | None, typer.Option(help="Shorter side of the frames in pixels. [default: 256]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates to train for.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes to train for. [default: 60]")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="Processes, one per device. [default: 1]")
    ] = None,
    config: ConfigFile = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="One setting, KEY=VALUE: -s generator.preset=base."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be trained and its cost.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard an existing run of this name first.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    prepare_process()
    from v2v.config import load_config
    from v2v.records import check_name
    from v2v.training.settings import TASKS, TrainSettings

    if task not in (*TASKS, PREDICT):
        raise UnknownName.among("task", task, (*TASKS, PREDICT))
    if steps is not None and minutes is not None:
        raise UsageError("--steps and --minutes are both given", hint="give one of them")
    folder = runs / check_name(data[0].resolve().name if name is None else name)
    if task == PREDICT:
        for option, given in (("--size", size), ("--devices", devices), ("--dry-run", dry_run)):
            if given:
                raise UsageError(
                    f"{option} cannot be used with --task {PREDICT}",
                    hint="leave it out; configs/predict.yaml lists the predictor's settings",
                )
        _train_predictor(
            data, folder, steps=steps, minutes=minutes, config=config, setting=setting,
            overwrite=overwrite, quiet=quiet, as_json=as_json,
        )  # fmt: skip
        return
    values = {
        "task": task, "data.size": size, "loop.devices": devices,
        "budget.steps": steps, "budget.minutes": minutes,
    }  # fmt: skip
    settings = load_config(
        TrainSettings, "train", f"train-{task}", file=config, overrides=setting, values=values
    )
    if dry_run:
        from v2v.training.estimate import estimate

        with progress(quiet or as_json or _is_helper_process()) as report:
            plan = estimate(settings, data, report)
        if _is_helper_process():
            return
        if as_json:
            import json

            print(json.dumps(plan.as_json(), indent=1))
        else:
            plan.render(console(110))
        return
    from v2v.training.loop import train as run_training

    with progress(quiet or as_json or _is_helper_process()) as report:
        outcome = run_training(settings, data, folder, report, overwrite=overwrite)
    if _is_helper_process():
        return
    if as_json:
        import json

        print(json.dumps(outcome.as_json(), indent=1))
    elif not quiet:
        _print_training(outcome)


def _train_predictor(
    data: list[Path],
    folder: Path,
    *,
    steps: int | None,
    minutes: float | None,
    config: Path | None,
    setting: list[str] | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from v2v.config import load_config
    from v2v.prediction.settings import PredictSettings
    from v2v.prediction.training import train_predictor

    values = {"budget.steps": steps, "budget.minutes": minutes}
    settings = load_config(
        PredictSettings, "predict", file=config, overrides=setting, values=values
    )
    with progress(quiet or as_json) as report:
        outcome = train_predictor(settings, data, folder, report, overwrite=overwrite)
    if as_json:
        import json

        print(json.dumps(outcome.as_json(), indent=1))
    elif not quiet:
        print(outcome)
        print("errors on the validation frames, which decided when to stop; lower is better")


def _is_helper_process() -> bool:
    """Whether this is a training process other than the one that reports."""
    import os

    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) != "0"


def _print_training(outcome: TrainingResult) -> None:
    out = console()
    out.print(
        f"{outcome.folder}: {outcome.steps} updates in {outcome.minutes:.1f} min; the model is"
        f" {outcome.model}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if outcome.preview:
        out.print(
            f"look at {outcome.preview} (held-out frames: signals, rendered, real)",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, such as runs/b.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Picture to write: .png, .svg or .pdf. [default: curves.png in the run's folder;"
            " here for several runs]",
        ),
    ] = None,
    minutes: Annotated[
        bool, typer.Option("--minutes", help="Plot over minutes of training instead of updates.")
    ] = False,
) -> None:
    """Plot the curves of one training run, or of several runs to compare them.

    **Examples**

        v2v plot runs/b

        v2v plot runs/b runs/c --minutes -o compared.png
    """
    from v2v.training.plot import plot as draw

    default = (runs[0] if len(runs) == 1 else Path()) / "curves.png"
    print(draw(runs, output or default, minutes=minutes))
