"""Commands on footage: preprocess, doctor, sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2v.api import CROPS
from v2v.cli.shared import (
    AsJson,
    ConfigFile,
    Quiet,
    choice_option,
    console,
    parse_size,
    print_error,
    print_outcomes,
    print_result,
    progress,
    report_errors,
    time_option,
    yaml_default,
)
from v2v.errors import UnknownName, V2VError
from v2v.runtime import prepare_process

EXAMPLES_PREPROCESS = """
Turn footage into clip stores: frames and the signals that models are trained on.

A store is a folder of ordinary files (`frames.mp4`, `pose.npz`, ...). Give a video, an image, a
folder of images, a folder of videos, a pattern, or a store to add signals to. Run the same command
again to resume after a stop; finished work is kept.

**Examples**

    v2v preprocess dance.mp4 --signal pose

    v2v preprocess dance.mp4 --signal all --size 512 --crop person

    v2v preprocess talk.mov --signal face,segmentation --crop face --size 512x512

    v2v preprocess street/images --labels street/labels --signal segmentation,flow --fps 17

    v2v preprocess "clips/*.mp4" --signal pose --workers 2

    v2v preprocess data/dance --signal flow -s flow.dis_preset=fast
"""


def preprocess(
    inputs: Annotated[
        list[str], typer.Argument(help="Videos, images, folders, patterns, or stores.")
    ],
    signal: Annotated[
        list[str] | None,
        typer.Option(
            "--signal",
            "-S",
            help="pose, face, segmentation, flow, camera or all; repeat or separate with commas."
            " [default: pose]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the store; with several inputs, the folder that holds the stores."
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
    start: Annotated[
        float | None, time_option("--start", "First moment to keep, in seconds or hh:mm:ss.")
    ] = None,
    end: Annotated[
        float | None, time_option("--end", "Where to stop, in seconds or hh:mm:ss.")
    ] = None,
    crop: Annotated[
        str | None,
        choice_option(
            "--crop",
            CROPS,
            f"One fixed crop for the clip. [default: {yaml_default('preprocess', 'frames.crop')}]",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of label or instance maps (PNG), one per frame, to import."),
    ] = None,
    config: ConfigFile = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="One setting, KEY=VALUE, e.g. -s pose.max_gap=0.5."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Clips to process at a time.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Recompute existing frames and signals.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    prepare_process()
    from v2v.api import build_clips

    with progress(quiet or as_json) as report:
        results = build_clips(
            inputs, signals=signal and ",".join(signal), output=output, size=parse_size(size),
            fps=fps, start=start, end=end, crop=crop, labels=labels, config=config,
            overrides=setting or (), overwrite=overwrite, workers=workers, report=report,
        )  # fmt: skip
    print_result([result.as_json() for result in results], quiet=quiet, as_json=as_json)
    if not quiet and not as_json:
        print_outcomes([r.outcome for r in results if r.outcome is not None])
    report_errors(results)


def doctor(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Videos, folders, patterns, or stores.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON on standard output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Check what footage is good for before you spend hours on it.

    Reports length, sharpness, cuts, other people in view, how much of the body or the face is
    visible, which poses and head angles are missing, and what to film. Without footage, checks the
    installation.

    **Examples**

        v2v doctor

        v2v doctor dance.mp4

        v2v doctor data/dance --json
    """
    prepare_process()
    if not inputs:
        _check_installation(as_json)
        return
    from v2v.preprocess.doctor import examine
    from v2v.preprocess.run import expand_inputs

    found = []
    problems: list[V2VError] = []
    with progress(quiet or as_json) as report:
        for job in expand_inputs(inputs, None):
            try:
                found.append(examine(job.source, report))
            except V2VError as error:
                problems.append(error)
    print_result([footage.as_json() for footage in found], as_json=as_json)
    if not as_json:
        for footage in found:
            footage.render(console(110))
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(max(problem.exit_code for problem in problems))


def _check_installation(as_json: bool) -> None:
    """Print the checks; exits with code 1 if one failed."""
    from v2v.installation import check_installation, render

    checks = check_installation()
    print_result([check.as_json() for check in checks], as_json=as_json)
    if not as_json:
        render(checks, console(110))
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


def sample(
    kinds: Annotated[
        list[str] | None, typer.Argument(help="person, face, street. [default: all three]")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path(
        "samples_out"
    ),
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Length of each clip.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Each seed draws another dance.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Draw small sample clips: a dancing person, a talking face, a street.

    The street comes with exact label maps, instance maps and optical flow.

    **Example**

        v2v sample person && v2v preprocess samples_out/person.mp4 --signal all
    """
    from v2v.samples.clips import KINDS, write_sample

    for kind in kinds or KINDS:
        if kind not in KINDS:
            raise UnknownName.among("sample", kind, KINDS)
    with progress(quiet) as report:
        paths = [
            write_sample(kind, output, seconds=seconds, seed=seed, report=report)
            for kind in kinds or KINDS
        ]
    print_result(None, *map(str, paths), quiet=quiet)
