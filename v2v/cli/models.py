"""Commands on models and their files: references, info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2v.cli.shared import AsJson, Quiet, print_lines, print_result, progress
from v2v.errors import UsageError
from v2v.runtime import prepare_process


def references(
    model: Annotated[str, typer.Argument(help="A run's name, run folder or model folder.")],
    add: Annotated[
        Path | None, typer.Option("--add", help="A picture of the person to add.")
    ] = None,
    drop: Annotated[
        int | None, typer.Option("--drop", help="Number of the picture to remove.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="One of the training clips. [default: the first]")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """List, add or remove the real pictures that a model renders a person from.

    They are ordinary pictures in model/references. Drop a blurred one or add another expression:
    neither needs training.

    **Examples**

        v2v references b

        v2v references b --drop 3

        v2v references b --add smile.jpg
    """
    prepare_process()
    from v2v.pipelines.references import add_reference, drop_reference, list_references

    if add is not None and drop is not None:
        raise UsageError("--add and --drop are both given", hint="give one at a time")
    if drop is not None:
        drop_reference(model, drop, clip=clip)
    if add is not None:
        with progress(quiet or as_json) as report:
            add_reference(model, add, clip=clip, report=report)
    found = list_references(model, clip=clip)
    print_result([picture.as_json() for picture in found], quiet=quiet, as_json=as_json)
    if not quiet and not as_json:
        print_lines(
            f"{picture.number:3}  {_origin(picture.frame):<12}  {picture.path}" for picture in found
        )


def _origin(frame: int | None) -> str:
    return "added" if frame is None else f"frame {frame}"


def info(
    path: Annotated[str, typer.Argument(help="A video, a clip store, a run or a model.")],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check every file of a store or a model against its record."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Describe a file: a rendered video and how it was made, a clip store, or a model.

    **Examples**

        v2v info out.mp4

        v2v info runs/b

        v2v info data/dance --verify
    """
    from v2v.pipelines.info import describe

    with progress(as_json or not verify) as report:
        found = describe(path, verify=verify, report=report)
    print_result(found, as_json=as_json)
    if as_json:
        return
    wide = max(len(name) for name in found)
    for name, value in found.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        print_lines([f"{name:<{wide}}  {shown}"])
