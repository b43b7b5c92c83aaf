"""Commands that render: one for each registered pipeline, built from its declaration.

All of them share the options that say what to render and how to write it (`_shared`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2v.cli.shared import (
    AsJson,
    Codec,
    Crf,
    Device,
    Overwrite,
    Quiet,
    choice_option,
    parse_size,
    print_result,
    print_table,
    progress,
    time_option,
)
from v2v.defaults import CODEC, CRF, SUFFIXES
from v2v.pipelines.registry import Option, PipelineSpec
from v2v.runtime import prepare_process

if TYPE_CHECKING:
    from v2v.pipelines.rendering.frames import RenderResult
    from v2v.pipelines.rendering.output import Output
    from v2v.pipelines.rendering.rendering import Rendering
    from v2v.progress import Reporter

CAMERA_PATHS = ("still", "target", "source")


def _shared(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Video to write. [default: SOURCE-MODEL.mp4]"),
    ] = None,
    camera_path: Annotated[
        str,
        choice_option(
            "--camera-path",
            CAMERA_PATHS,
            "Camera motion: still; target: as in the model's footage; source: as in the source."
            " The last two need a model trained on hand-held footage.",
        ),
    ] = "still",
    start: Annotated[
        float | None, time_option("--start", "First moment to render, in seconds or hh:mm:ss.")
    ] = None,
    end: Annotated[
        float | None, time_option("--end", "Where to stop, in seconds or hh:mm:ss.")
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also write NAME-compare: input, signals, output side by side."
        ),
    ] = False,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Only draw the signals of some frames, as one picture."),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(help="Shorter side in pixels, or WIDTHxHEIGHT. [default: the model's own]"),
    ] = None,
    codec: Codec = CODEC,
    crf: Crf = CRF,
    clip: Annotated[
        str | None,
        typer.Option("--clip", help="Training clip that sets the appearance. [default: the first]"),
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The options of every command that renders; only its signature is used."""


SHARED = {
    name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for name, parameter in inspect.signature(_shared, eval_str=True).parameters.items()
}
COMMON = {"start": "start", "end": "end", "clip": "clip", "camera": "camera_path"}  # -> option


def render_command(spec: PipelineSpec) -> Callable[..., None]:
    """The function that typer runs for a pipeline; its signature is that of the command."""
    omitted = {option for name, option in COMMON.items() if name not in spec.common}
    if not spec.previews:
        omitted.add("preview")
    own = [_parameter(option) for option in spec.options]
    declared = {parameter.name for parameter in own}
    shared = [p for name, p in SHARED.items() if name not in omitted | declared]
    parameters = [_parameter(spec.input, True), _parameter(spec.model, True)]
    parameters += [*shared[:1], *own, *shared[1:]]  # after the output, those of the pipeline

    def command(**values: Any) -> None:
        _render(spec, values)

    command.__name__ = spec.command.replace("-", "_")
    command.__doc__ = spec.help
    # typer reads both.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(option: Option, required: bool = False) -> inspect.Parameter:
    flags = [option.flag, *([f"-{option.short}"] if option.short else [])]
    kind: Any = float if option.kind == "time" else option.kind
    if option.kind == "time":
        declared = time_option(option.flag, option.help)
    elif option.choices:
        declared = choice_option(option.flag, option.choices, option.help)
    else:
        declared = typer.Option(*flags, help=option.help)
    if option.repeat:
        kind = list[kind]
    if option.default is None and not required:
        kind = kind | None
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, declared],
        default=inspect.Parameter.empty if required else option.default,
    )  # fmt: skip


def _render(spec: PipelineSpec, values: dict[str, Any]) -> None:
    prepare_process()
    given, model = values[spec.input.name], values[spec.model.name]
    quiet, as_json = values["quiet"], values["as_json"]
    preview = values.get("preview", False)
    output = _output(values, given, model)
    if not preview:
        output.check()  # before any computation
    arguments = {option.name: values[option.name] for option in spec.options}
    arguments |= {name: values[COMMON[name]] for name in spec.common}
    if spec.prepare is not None:
        arguments = spec.prepare(arguments)
    with progress(quiet or as_json) as report:
        pipeline = spec.pipeline().from_pretrained(model, device=values["device"])
        rendering = pipeline(given, report=report, **arguments)
        result = _finish(rendering, output, preview, quiet or as_json, report)
        errors = spec.errors(rendering) if spec.errors is not None and output.compare else {}
    if isinstance(result, Path):
        print_result({"preview": str(result)}, str(result), quiet=quiet, as_json=as_json)
        return
    plain = {kind: [round(float(v), 4) for v in found] for kind, found in errors.items()}
    print_rendered(result, quiet=quiet, as_json=as_json, more={"errors": plain} if errors else None)
    if errors and not quiet and not as_json:
        _print_errors(errors)


def _output(values: dict[str, Any], given: str, model: str) -> Output:
    """Where and how to write, from the options."""
    from v2v.pipelines.rendering.output import Output

    folder = Path(model).resolve()
    name = folder.parent.name if folder.name == "model" else folder.name
    suffix = SUFFIXES.get(values["codec"], ".mp4")
    chosen = parse_size(values["size"])
    return Output(
        values["output"] or Path(f"{Path(given).resolve().stem}-{name}{suffix}"),
        compare=values["compare"], size=chosen, codec=values["codec"], crf=values["crf"],
        overwrite=values["overwrite"],
    )  # fmt: skip


def _finish(
    rendering: Rendering, output: Output, preview: bool, silent: bool, report: Reporter
) -> RenderResult | Path:
    """Render the video, or only draw the preview of its signals."""
    if not silent:
        for note in rendering.notes:
            report.note(note)
    if preview:
        return rendering.preview(output.path.with_suffix(".png"), overwrite=output.overwrite)
    return rendering.save(output, report=report)


def print_rendered(
    result: RenderResult, *, quiet: bool, as_json: bool, more: dict[str, Any] | None = None
) -> None:
    files = " and ".join(str(file) for file in (result.video, result.comparison) if file)
    print_result(
        result.as_json() | (more or {}),
        f"{files}: {result.frames} frames of {result.width}x{result.height} at"
        f" {float(result.rate):.4g} fps, marked as synthetic",
        quiet=quiet, as_json=as_json,
    )  # fmt: skip


def _print_errors(errors: dict[str, Any]) -> None:
    count = len(next(iter(errors.values())))
    shown = sorted({n for n in (1, 2, 5, 10, 20, 30, 60, 100, count) if n <= count})
    rows = [
        (name, *(f"{values[ahead - 1]:.{1 if name.startswith('psnr') else 3}f}" for ahead in shown))
        for name, values in errors.items()
    ]
    print_table(["frames ahead", *map(str, shown)], rows)
