"""The command that evaluates a model: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2v.cli.shared import AsJson, Device, Quiet, console, print_result, progress
from v2v.defaults import DRIFT_FRAMES, EVALUATED_FRAMES
from v2v.runtime import prepare_process

EXAMPLES_EVALUATE = """
Measure how good a model is: compare its video of held-out frames with the real one.

Without --data, uses the held-out frames of the model's own clips; other clips are measured in
full. Rendering is free-running, without real past frames. Writes report.html, one file with
figures, curves, frames and a side-by-side video, and report.json.

**Examples**

    v2v evaluate --model b

    v2v evaluate --model b --data data/held_out --against copy,nearest,frame

    v2v evaluate --model b --region 0,0,720,1100

    v2v evaluate --model b --against frozen,other=runs/c,theirs=their_video.mp4 -o report
"""


def evaluate(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A run's name (runs/b is b), or its folder.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Clip store or footage; repeat for several clips."
            " [default: the held-out frames of the model's clips]"
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Baselines to compare with: copy (the previous real frame), frozen, nearest"
            " (training frame), warped (parts of training frames warped to the pose), frame (the"
            " frame-by-frame run beside this one), NAME=RUN, NAME=VIDEO. [default:"
            " copy,frozen,nearest; for a body or a face also warped]"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write. [default: evaluation in the run]"),
    ] = None,
    frames: Annotated[int, typer.Option(min=2, help="Most frames per clip.")] = EVALUATED_FRAMES,
    drift: Annotated[
        int,
        typer.Option(
            min=0,
            help="Frames over which to measure drift; shorter clips are played forwards and"
            " backwards. 0: none.",
        ),
    ] = DRIFT_FRAMES,
    region: Annotated[
        str | None,
        typer.Option(
            help="Measure only this region: x0,y0,x1,y1 in pixels of the clip, or a mask image,"
            " bright where pixels count. Use it to exclude captions and logos."
        ),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    prepare_process()
    from v2v import api

    names = None if against is None else [name for name in against.split(",") if name]
    with progress(quiet or as_json) as report:
        found = api.evaluate(
            model, data or (), against=names,
            output=output, frames=frames, drift=drift, device=device, region=region,
            report=report,
        )  # fmt: skip
    print_result(found.as_json(), as_json=as_json, quiet=quiet)
    if not quiet and not as_json:
        from v2v.evaluation.table import lines, table

        out = console(150)
        out.print(table(found))
        for line in lines(found):
            out.print(line, highlight=False, soft_wrap=True)
