"""Commands that run the whole workflow: run, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2v.cli.rendering import print_rendered
from v2v.cli.shared import (
    AsJson,
    Quiet,
    print_lines,
    print_result,
    print_table,
    progress,
    task_option,
    yaml_default,
)
from v2v.defaults import MINUTES
from v2v.runtime import prepare_process

EXAMPLES_RUN = """
Everything in one command: preprocess both clips, train, and render the new video.

Finished stages are kept. Run the same command again to resume after a stop, or with more
`--minutes` to train further.

**Examples**

    v2v run --target me.mp4 --source dance.mp4

    v2v run --target me.mp4 --source dance.mp4 --minutes 15 --size 128 --compare

    v2v run --target talk.mp4 --source other.mp4 --task face
"""


def run(
    target: Annotated[
        Path, typer.Option("--target", help="Person to animate: footage or a clip store.")
    ],
    source: Annotated[
        Path, typer.Option("--source", help="Motion to follow: footage or a clip store.")
    ],
    task: Annotated[str, task_option("pose (the body) or face.")] = "pose",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Video to write. [default: SOURCE-TARGET.mp4]"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", help="Name of the run. [default: the target's name]"),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.05, help="Minutes of training.")] = MINUTES,
    size: Annotated[int, typer.Option(help="Shorter side of the frames in pixels.")] = yaml_default(
        "train", "data.size"
    ),
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also write input, signals and output side by side."),
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Training setting, KEY=VALUE: -s generator.preset=base."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a video that this command did not write.")
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
    if done.kept and not as_json:
        print_result(None, "nothing left to do", quiet=quiet)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path(
        "v2v_demo"
    ),
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Length of each drawn clip.")] = 6.0,
    minutes: Annotated[float, typer.Option(min=0.02, max=600, help="Minutes of training.")] = 3.5,
) -> None:
    """Draw two dancers, train a model on one and drive it with the other: minutes on a laptop.

    Writes a video, a contact sheet and a page. Run it again to resume; with more minutes, it
    trains further.

    **Examples**

        v2v demo

        v2v demo --minutes 15 --output better
    """
    prepare_process()
    from v2v.pipelines.demo import demo as run_demo

    with progress(False) as report:
        made = run_demo(output, seconds=seconds, minutes=minutes, report=report)
    print_table(None, [(what, f"{took:.0f} s") for what, took in made.steps])
    print_lines(
        f"{name}: {path}"
        for name, path in (
            ("new video", made.video), ("input, signals and output", made.run.rendered.comparison),
            ("contact sheet", made.sheet), ("everything on one page", made.page),
        )
    )  # fmt: skip
