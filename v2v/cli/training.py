"""Commands for training: train, plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2v.cli.shared import (
    AsJson,
    ConfigFile,
    Quiet,
    console,
    print_result,
    progress,
    task_option,
    yaml_default,
)
from v2v.defaults import MINUTES
from v2v.errors import UsageError
from v2v.pipelines.registry import PREDICT
from v2v.runtime import prepare_process

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
        task_option(
            "Signal that drives the model: pose, face or street; or predict, which trains a"
            " frame predictor for the run's model."
        ),
    ] = "pose",
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", help="Name of the run. [default: the first clip's name]"),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    size: Annotated[
        int | None,
        typer.Option(
            help="Shorter side of the frames in pixels."
            f" [default: {yaml_default('train', 'data.size')}]"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates to train for.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help=f"Minutes to train for. [default: {MINUTES:g}]")
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            help=f"Processes, one per device. [default: {yaml_default('train', 'loop.devices')}]"
        ),
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
    from v2v import api

    folder = api.run_folder(data, name, runs=runs)
    silent = quiet or as_json or _is_helper_process()
    if task == PREDICT:
        for option, given in (("--size", size), ("--devices", devices), ("--dry-run", dry_run)):
            if given:
                raise UsageError(
                    f"{option} cannot be used with --task {PREDICT}",
                    hint="leave it out; configs/predict.yaml lists the predictor's settings",
                )
        with progress(silent) as report:
            predictor = api.train_predictor(
                data, output=folder, steps=steps, minutes=minutes, config=config,
                overrides=setting or (), overwrite=overwrite, report=report,
            )  # fmt: skip
        print_result(
            predictor.as_json(), str(predictor),
            "errors on the validation frames, which decided when to stop; lower is better",
            quiet=quiet, as_json=as_json,
        )  # fmt: skip
        return
    settings = api.train_settings(
        task, size=size, steps=steps, minutes=minutes, devices=devices, config=config,
        overrides=setting or (),
    )  # fmt: skip
    if dry_run:
        from v2v.training.estimate import estimate

        with progress(silent) as report:
            plan = estimate(settings, data, report)
        if not _is_helper_process():
            print_result(plan.as_json(), as_json=as_json)
            if not as_json:
                plan.render(console(110))
        return
    from v2v.training.loop import train as run_training

    with progress(silent) as report:
        outcome = run_training(settings, data, folder, report, overwrite=overwrite)
    if not _is_helper_process():
        preview = f"look at {outcome.preview} (held-out frames: signals, rendered, real)"
        print_result(
            outcome.as_json(),
            f"{outcome.folder}: {outcome.steps} updates in {outcome.minutes:.1f} min; the model is"
            f" {outcome.model}",
            *([preview] if outcome.preview else []),
            quiet=quiet, as_json=as_json,
        )  # fmt: skip


def _is_helper_process() -> bool:
    """Whether this is a training process other than the one that reports."""
    import os

    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) != "0"


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
