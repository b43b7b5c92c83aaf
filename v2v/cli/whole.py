"""Commands that do the whole job: run, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from v2v.cli.shared import progress, report_results
from v2v.native import prepare_process


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
    with progress(False) as report:
        if not footage.exists():
            write_sample("person", output, seconds=seconds, report=report)
        job = ClipJob(footage, output / "data" / "person")
        results = preprocess_all(
            [job], list(signal_names()), settings, workers=1, overwrite=False, report=report
        )
    report_results(results)
