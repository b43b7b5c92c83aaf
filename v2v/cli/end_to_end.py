"""Commands that do the whole job: run, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2v.cli.rendering import print_rendered
from v2v.cli.shared import AsJson, Quiet, console, progress
from v2v.runtime import prepare_process

EXAMPLES_RUN = """
Everything in one command: signals of both clips, training, and the new video.

What is finished is kept; run the same command again to go on after a stop, or with more
`--minutes` to train on.

**Examples**

    v2v run --target me.mp4 --source dance.mp4

    v2v run --target me.mp4 --source dance.mp4 --minutes 15 --size 128 --compare

    v2v run --target talk.mp4 --source other.mp4 --task face
"""


def run(
    target: Annotated[Path, typer.Option("--target", help="Who is to move: footage or a store.")],
    source: Annotated[Path, typer.Option("--source", help="Who shows how: footage or a store.")],
    task: Annotated[str, typer.Option("--task", "-t", help="pose: the body; face.")] = "pose",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The video. [default: SOURCE-TARGET.mp4]"),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Of the run. [default: the target's name]")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.05, help="How long to train.")] = 60.0,
    size: Annotated[int, typer.Option(help="Shorter side of the frames in pixels.")] = 256,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write input, signals, output in step.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="A setting of training: -s generator.preset=base."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a video that this did not make.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    prepare_process()
    from v2v.pipelines.end_to_end import run as run_everything

    with progress(quiet or as_json) as report:
        done = run_everything(
            target, source, task=task, output=output, name=name, minutes=minutes, size=size,
            settings=setting, compare=compare, overwrite=overwrite, report=report,
        )  # fmt: skip
    print_rendered(done.rendered, quiet=quiet, as_json=as_json)
    if done.kept and not quiet and not as_json:
        print("nothing was left to do")


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to.")] = Path("v2v_demo"),
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Length of each drawn clip.")] = 6.0,
    minutes: Annotated[float, typer.Option(min=0.02, max=600, help="How long to train.")] = 3.5,
) -> None:
    """Draw two dancers, train a model on one, and let the other drive it: minutes on a laptop.

    Leaves a video, a contact sheet and a page to look at. Run it again and finished work is kept;
    with more minutes it trains on.

    **Examples**

        v2v demo

        v2v demo --minutes 15 --output better
    """
    prepare_process()
    from rich.table import Table

    from v2v.pipelines.demo import demo as run_demo

    with progress(False) as report:
        made = run_demo(output, seconds=seconds, minutes=minutes, report=report)
    table = Table(box=None, pad_edge=False, show_header=False)
    for what, took in made.steps:
        table.add_row(what, f"{took:.0f} s")
    out = console()
    out.print(table)
    for name, path in (
        ("the new video", made.video), ("input, signals and output", made.run.rendered.comparison),
        ("a contact sheet", made.sheet), ("all of it on a page", made.page),
    ):  # fmt: skip
        out.print(f"{name}: {path}", highlight=False, soft_wrap=True)
