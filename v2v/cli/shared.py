"""Shared by the commands: options, progress, and everything that is printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2v.defaults import CODECS
from v2v.errors import UnknownName, UsageError, V2VError
from v2v.timecode import TIME_FORMS, parse_time

if TYPE_CHECKING:
    from rich.console import Console

    from v2v.preprocess.job import BuildResult
    from v2v.preprocess.run import ClipResult
    from v2v.progress import Reporter

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing video.")]
Crf = Annotated[
    float, typer.Option(help="Codec quality: a lower value gives a better, larger file.")
]


def choice_option(name: str, choices: Sequence[str], help: str, *short: str) -> Any:
    """An option with few values: shells complete them, and an unknown one suggests the nearest."""

    def parse(text: Any) -> str | None:
        if text is not None and text not in choices:
            raise UnknownName.among(name, text, choices)
        return None if text is None else str(text)

    return typer.Option(
        name, *short, parser=parse, metavar=f"[{'|'.join(choices)}]", help=help,
        autocompletion=lambda: list(choices),
    )  # fmt: skip


Codec = Annotated[
    str,
    choice_option(
        "--codec", CODECS, "h264 (plays everywhere), hevc, vp9, or ffv1 (lossless, .mkv)."
    ),
]


def task_option(help: str) -> Any:
    """The task of a training; installed packages add tasks with their pipelines."""

    def names() -> list[str]:
        from v2v.pipelines.registry import PREDICT, tasks

        return [*tasks(), PREDICT]

    return typer.Option("--task", "-t", help=help, autocompletion=names)


def yaml_default(name: str, key: str) -> Any:
    """The default of a setting in configs/NAME.yaml, to show it in `--help`."""
    value = _defaults(name)
    for part in key.split("."):
        value = value[part]
    return value


@cache
def _defaults(name: str) -> Any:
    import yaml  # type: ignore[import-untyped]

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: --help reads this
    return yaml.load(files("v2v.configs").joinpath(f"{name}.yaml").read_text("utf-8"), loader)


def console(width: int = 140) -> Console:
    """Standard output; without a terminal, of a fixed width, so that lines do not wrap."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


@contextmanager
def progress(silent: bool) -> Iterator[Reporter]:
    """Bars on standard error, or nothing."""
    from v2v.progress import Silent, Terminal, reporting

    with nullcontext(Silent()) if silent else Terminal() as chosen, reporting(chosen) as report:
        yield report


def parse_size(text: str | None) -> int | tuple[int, int] | None:
    """The shorter side, or (width, height). Raises `UsageError`."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(p.isascii() and p.isdigit() for p in parts) or len(parts) > 2:
        raise UsageError(
            f"--size {text} is not a size",
            hint="give 512 (the shorter side) or 512x768 (WIDTHxHEIGHT)",
        )
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def time_option(name: str, help: str) -> Any:
    """An option for a time in the footage: seconds, mm:ss or hh:mm:ss."""

    def parse(text: Any) -> float | None:
        if text is None:
            return None
        try:
            return parse_time(text)
        except ValueError:
            raise UsageError(
                f"{name} {text} is not a time", hint=f"accepted: {TIME_FORMS}"
            ) from None

    return typer.Option(name, parser=parse, metavar="TIME", help=help)


def report_errors(results: list[ClipResult]) -> None:
    errors = [found for result in results for found in result.errors]
    for where, error in errors:
        print_error(error, prefix=where if len(results) > 1 else None)
    if errors:
        raise typer.Exit(max(error.exit_code for _, error in errors))


def print_outcomes(outcomes: list[BuildResult]) -> None:
    from fractions import Fraction

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
    out = console()
    out.print(table)
    for outcome in outcomes:
        if outcome.made:
            text = f"made {', '.join(outcome.made)} in {outcome.seconds:.1f} s"
        else:
            text = "nothing left to do"
        preview = outcome.folder / "preview.mp4"
        look = f"; look at {preview}" if preview.exists() else ""
        out.print(f"{outcome.folder}: {text}{look}", highlight=False, soft_wrap=True)


def print_result(value: Any, *lines: str, quiet: bool = False, as_json: bool = False) -> None:
    """Print a command's result: as JSON if asked, else as lines, unless quiet."""
    if as_json:
        import json

        print(json.dumps(value, indent=1))
    elif not quiet:
        print_lines(lines)


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        console().print(line, highlight=False, soft_wrap=True, markup=False)


def print_table(head: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> None:
    """Print rows of cells; all columns but the first are numbers, aligned right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=head is not None)
    for number, name in enumerate(head or ()):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_error(error: V2VError, prefix: str | None = None) -> None:
    from rich.console import Console
    from rich.text import Text

    out = Console(stderr=True)
    where = f"{prefix}: " if prefix else ""
    out.print(Text("error: ", style="bold red") + Text(where + error.message), soft_wrap=True)
    if error.hint:
        out.print(Text("  try: ", style="bold") + Text(error.hint), soft_wrap=True)
