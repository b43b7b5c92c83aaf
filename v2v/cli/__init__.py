"""The command line. Each command only parses its options and calls the library.

Heavy imports are inside the functions, so that `v2v --help` is instant.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from v2v import __version__
from v2v.cli import comparing, end_to_end, evaluation, footage, models, rendering, training
from v2v.cli.shared import print_error
from v2v.errors import MissingLibrary, V2VError
from v2v.pipelines.builtin import BUILT_IN
from v2v.pipelines.registry import command_names, load_spec
from v2v.wording import command_line

STOPPED = 130  # exit code after Ctrl-C, as set by typer


class Commands(TyperGroup):
    """The commands of `v2v`, and those of pipelines from installed packages, loaded when shown."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return own + [name for name in command_names() if name not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in command_names():
            return own
        try:
            spec = load_spec(cmd_name)
        except V2VError as error:
            return _broken_command(cmd_name, error)
        single = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        single.command(cmd_name, help=spec.help, context_settings=HELP)(
            rendering.render_command(spec)
        )
        return typer.main.get_command(single)


def _broken_command(name: str, error: V2VError) -> Any:
    """A command that only reports why its package cannot be used."""

    def report() -> None:
        raise type(error)(error.message, hint=error.hint)

    single = typer.Typer(add_completion=False)
    single.command(name, help=error.message)(report)
    return typer.main.get_command(single)


HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="v2v",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings=HELP,
    help="Video-to-video synthesis from your own footage.",
)


def _print_version(requested: bool) -> None:
    """Print the version and exit."""
    if requested:
        print(f"v2v {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    context.with_resource(command_line())  # errors speak of options from here on


app.command(help=footage.EXAMPLES_PREPROCESS)(footage.preprocess)
app.command(help=training.EXAMPLES_TRAIN)(training.train)
app.command()(training.plot)
for spec in BUILT_IN:
    app.command(spec.command, help=spec.help)(rendering.render_command(spec))
app.command()(models.references)
app.command()(models.info)
app.command(help=evaluation.EXAMPLES_EVALUATE)(evaluation.evaluate)
app.command(help=comparing.EXAMPLES_COMPARE)(comparing.compare)
app.command(help=comparing.EXAMPLES_STUDY)(comparing.study)
app.command()(footage.doctor)
app.command()(footage.sample)
app.command(help=end_to_end.EXAMPLES_RUN)(end_to_end.run)
app.command()(end_to_end.demo)


def _library_problem(error: ImportError) -> V2VError | None:
    """The error for a known missing system library; None for any other failed import."""
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
    """The entry point: prints user errors in two lines and sets the exit code."""
    import os
    import signal

    for stream in (sys.stdout, sys.stderr):
        # A character outside the terminal's encoding must not abort a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        raise KeyboardInterrupt

    def exit_stopped() -> None:
        print("stopped; run the same command again to resume", file=sys.stderr, flush=True)
        os._exit(STOPPED)  # threads in native code must not keep the process alive

    try:
        signal.signal(signal.SIGTERM, stop)
        # An ignored SIGINT stays ignored.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, stop)
        with command_line():
            app()
    except KeyboardInterrupt:  # raised before typer started; typer sets an exit code
        exit_stopped()
    except SystemExit as leaving:
        if leaving.code != STOPPED:
            raise
        exit_stopped()
    except V2VError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except ImportError as error:
        if stopping:  # native modules raise this when their import is interrupted
            exit_stopped()
        problem = _library_problem(error)
        if problem is None:
            raise
        print_error(problem)
        sys.exit(problem.exit_code)
    except BrokenPipeError:
        os._exit(0)
