"""Commands that render: transfer, reenact, synthesize, predict-frames; references and info."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from v2v.cli.shared import AsJson, Quiet, console, parse_size, progress, time_option
from v2v.errors import UsageError
from v2v.runtime import prepare_process

if TYPE_CHECKING:
    from v2v.pipelines.rendering.frames import RenderResult
    from v2v.pipelines.rendering.output import Output
    from v2v.pipelines.rendering.rendering import Rendering
    from v2v.progress import Reporter

Model = Annotated[
    str, typer.Option("--target-model", "-m", help="A run's name (runs/b is b), or its folder.")
]
Source = Annotated[str, typer.Option("--source", help="Footage, or a clip store.")]
OutputFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Video to write. [default: SOURCE-MODEL.mp4]"),
]
Start = Annotated[
    float | None, time_option("--start", "First moment to render, in seconds or hh:mm:ss.")
]
End = Annotated[float | None, time_option("--end", "Where to stop, in seconds or hh:mm:ss.")]
Size = Annotated[
    str | None,
    typer.Option(help="Shorter side in pixels, or WIDTHxHEIGHT. [default: the model's own]"),
]
Codec = Annotated[
    str, typer.Option(help="h264 (plays everywhere), hevc, vp9, or ffv1 (lossless, .mkv).")
]
Crf = Annotated[
    float, typer.Option(help="Codec quality: a lower value gives a better, larger file.")
]
Compare = Annotated[
    bool,
    typer.Option("--compare", help="Also write NAME-compare: input, signals, output side by side."),
]
Preview = Annotated[
    bool,
    typer.Option("--preview", help="Only draw the signals of some frames, as one picture."),
]
Clip = Annotated[
    str | None,
    typer.Option("--clip", help="Training clip that sets the appearance. [default: the first]"),
]
CameraPath = Annotated[
    str,
    typer.Option(
        help="Camera motion: still; target: as in the model's footage; source: as in the source."
        " The last two need a model trained on hand-held footage."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing video.")]

EXAMPLES_TRANSFER = """
Motion transfer: the person that a model was trained on moves like the one in the source.

The source is footage or a clip store. Its skeleton is retargeted to the target's bone lengths,
position and floor. Sound and frame rate come from the source. Run the same command again to
resume after a stop.

**Examples**

    v2v transfer --source a.mp4 --target-model b

    v2v transfer --source a.mp4 --target-model b --preview

    v2v transfer --source data/a --target-model b --start 2 --end 10 --compare -o dance.mp4

    v2v transfer --source a.mp4 --target-model b --retarget global --size 720

    v2v transfer --source a.mp4 --target-model b --camera-path target
"""


def transfer(
    source: Source,
    target_model: Model,
    output: OutputFile = None,
    retarget: Annotated[
        str,
        typer.Option(
            help="limbs: the target's bone lengths; global: position and size; none: as filmed."
        ),
    ] = "limbs",
    camera_path: CameraPath = "still",
    start: Start = None,
    end: End = None,
    compare: Compare = False,
    preview: Preview = False,
    size: Size = None,
    codec: Codec = "h264",
    crf: Crf = 18.0,
    clip: Clip = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    prepare_process()
    from v2v.pipelines.motion_transfer import MotionTransfer

    wanted = _prepare_output(
        output, source, target_model, compare=compare, size=size, codec=codec, crf=crf,
        overwrite=overwrite, preview=preview,
    )  # fmt: skip

    with progress(quiet or as_json) as report:
        pipeline = MotionTransfer.from_pretrained(target_model, device=device)
        rendering = pipeline(
            source,
            start=start,
            end=end,
            retarget=retarget,
            clip=clip,
            camera=camera_path,
            report=report,
        )
        result = _finish(rendering, wanted, preview, quiet or as_json, report)
    _print(result, quiet=quiet, as_json=as_json)


EXAMPLES_REENACT = """
Face re-enactment: the face that a model was trained on moves like the one in the source.

Motion is relative to a neutral moment, which is found in the source and in the training clip, so
the target keeps its own head posture. Sound and frame rate come from the source.

**Examples**

    v2v reenact --source a.mp4 --target-model b

    v2v reenact --source a.mp4 --target-model b --rotation 0.5 --blink 1.2

    v2v reenact --source a.mp4 --target-model b --absolute --compare

    v2v reenact --source a.mp4 --target-model b --part face=0.9 --part eyes=1.1
"""

Strength = Annotated[float, typer.Option(help="0: neutral; 1: as the source; up to 2.")]


def reenact(
    source: Source,
    target_model: Model,
    output: OutputFile = None,
    absolute: Annotated[
        bool,
        typer.Option("--absolute", help="Use the source's head rotation, position and size."),
    ] = False,
    rotation: Strength = 1.0,
    translation: Annotated[
        float | None,
        typer.Option(help="As above. [default: 1, or less to stay in the trained area]"),
    ] = None,
    scale: Strength = 1.0,
    expression: Strength = 1.0,
    gaze: Strength = 1.0,
    blink: Strength = 1.0,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="Scale of a part of the face (face, eyes, brows, nose or mouth), 0.7 to 1.3:"
            " face=0.9 is slimmer."
        ),
    ] = None,
    neutral: Annotated[
        float | None,
        time_option(
            "--neutral", "The source's neutral moment, in seconds or hh:mm:ss. [default: found]"
        ),
    ] = None,
    camera_path: CameraPath = "still",
    start: Start = None,
    end: End = None,
    compare: Compare = False,
    preview: Preview = False,
    size: Size = None,
    codec: Codec = "h264",
    crf: Crf = 18.0,
    clip: Clip = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    prepare_process()
    from v2v.pipelines.face_reenactment import FaceReenactment, Strengths

    wanted = _prepare_output(
        output, source, target_model, compare=compare, size=size, codec=codec, crf=crf,
        overwrite=overwrite, preview=preview,
    )  # fmt: skip

    moves = 1.0 if translation is None else translation
    strengths = Strengths(rotation, moves, scale, expression, gaze, blink)
    parts = {name: _number("--part", f"{name}={n}", n) for name, n in _pairs("--part", part)}
    with progress(quiet or as_json) as report:
        pipeline = FaceReenactment.from_pretrained(target_model, device=device)
        rendering = pipeline(
            source, start=start, end=end, absolute=absolute, strengths=strengths, parts=parts,
            neutral=neutral, stay=translation is None, clip=clip, camera=camera_path,
            report=report,
        )  # fmt: skip
        result = _finish(rendering, wanted, preview, quiet or as_json, report)
    _print(result, quiet=quiet, as_json=as_json)


EXAMPLES_SYNTHESIZE = """
Label maps to video: the street that a model was trained on, with the layout of the maps.

The maps are a clip store's segmentation, or a folder of PNGs, one per frame.

**Examples**

    v2v synthesize --labels street/labels --target-model berlin

    v2v synthesize --labels data/street --target-model berlin --replace vegetation=building

    v2v synthesize --labels data/street --target-model berlin --style car=3 --style photo.jpg
"""


def synthesize(
    labels: Annotated[str, typer.Option("--labels", help="A folder of maps, or a clip store.")],
    target_model: Model,
    output: OutputFile = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(help="Render one class as another: vegetation=building; repeatable."),
    ] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(
            help="Appearance, if the model supports it: a training clip, a picture, or CLASS=NUMBER"
            " for a cluster."
        ),
    ] = None,
    fps: Annotated[
        str | None, typer.Option(help="Frame rate of the maps. [default: the training clip's]")
    ] = None,
    start: Start = None,
    end: End = None,
    compare: Compare = False,
    preview: Preview = False,
    size: Size = None,
    codec: Codec = "h264",
    crf: Crf = 18.0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    prepare_process()
    from v2v.pipelines.label_to_video import LabelToVideo

    wanted = _prepare_output(
        output, labels, target_model, compare=compare, size=size, codec=codec, crf=crf,
        overwrite=overwrite, preview=preview,
    )  # fmt: skip

    with progress(quiet or as_json) as report:
        pipeline = LabelToVideo.from_pretrained(target_model, device=device)
        rendering = pipeline(
            labels, start=start, end=end, fps=fps, replace=dict(_pairs("--replace", replace)),
            style=style or (), report=report,
        )  # fmt: skip
        result = _finish(rendering, wanted, preview, quiet or as_json, report)
    _print(result, quiet=quiet, as_json=as_json)


EXAMPLES_PREDICT = """
Frame prediction: continue a clip of the scene that a model was trained on.

The next signals are predicted from the past ones, then rendered, starting from the last real
frames. The model needs a predictor: `v2v train --task predict --data CLIP --name b`. With
`--compare`, the last frames of the clip are held out and shown beside the prediction, and the error
per frame is printed.

**Examples**

    v2v predict-frames --model b --input clip.mp4 --frames 30

    v2v predict-frames --model b --input data/street --at 1.5 --compare
"""


def predict_frames(
    model: Annotated[str, typer.Option("--model", "-m", help="A run's name, or its folder.")],
    given: Annotated[str, typer.Option("--input", "-i", help="Footage, or a clip store.")],
    output: OutputFile = None,
    frames: Annotated[int, typer.Option("--frames", "-n", help="Frames to predict.")] = 30,
    at: Annotated[
        float | None,
        time_option(
            "--at",
            "Moment to predict from, in seconds or hh:mm:ss. [default: the end; with --compare, the"
            " predicted frames before it]",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Show the real next frames beside it; measure errors."),
    ] = False,
    size: Size = None,
    codec: Codec = "h264",
    crf: Crf = 18.0,
    clip: Clip = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    prepare_process()
    from v2v.pipelines.frame_prediction import FramePrediction

    wanted = _prepare_output(
        output, given, model, compare=compare, size=size, codec=codec, crf=crf,
        overwrite=overwrite,
    )  # fmt: skip

    with progress(quiet or as_json) as report:
        pipeline = FramePrediction.from_pretrained(model, device=device)
        predicted = pipeline(
            given, frames=frames, at=at, hold_back=compare and at is None, look=clip,
            report=report,
        )  # fmt: skip
        result = _finish(predicted, wanted, False, quiet or as_json, report)
        errors = predicted.errors() if compare and predicted.known else {}
    plain = {kind: [round(float(v), 4) for v in values] for kind, values in errors.items()}
    _print(result, quiet=quiet, as_json=as_json, more={"errors": plain} if errors else None)
    if errors and not quiet and not as_json:
        _print_errors(errors)


def _print_errors(errors: dict[str, Any]) -> None:
    from rich.table import Table

    count = len(next(iter(errors.values())))
    shown = sorted({n for n in (1, 2, 5, 10, 20, 30, 60, 100, count) if n <= count})
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("frames ahead")
    for ahead in shown:
        table.add_column(str(ahead), justify="right")
    for name, values in errors.items():
        digits = 1 if name.startswith("psnr") else 3
        table.add_row(name, *(f"{values[ahead - 1]:.{digits}f}" for ahead in shown))
    console().print(table)


def _pairs(option: str, given: list[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for item in given or []:
        name, separator, value = item.partition("=")
        if not (name and separator and value):
            raise UsageError(f"cannot read {option} {item}", hint=f"write {option} NAME=VALUE")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _number(option: str, item: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(
            f"cannot read {option} {item}", hint="write a number, such as face=0.9"
        ) from None


def _prepare_output(
    output: Path | None,
    source: str,
    model: str,
    *,
    compare: bool,
    size: str | None,
    codec: str,
    crf: float,
    overwrite: bool,
    preview: bool = False,
) -> Output:
    """The output options; raises for those that cannot be written, before any computation."""
    from v2v.pipelines.rendering.output import Output

    suffix = {"ffv1": ".mkv", "vp9": ".webm"}.get(codec, ".mp4")
    folder = Path(model).resolve()
    name = folder.parent.name if folder.name == "model" else folder.name
    chosen: Any = parse_size(size)
    wanted = Output(
        output or Path(f"{Path(source).resolve().stem}-{name}{suffix}"),
        compare=compare, size=tuple(chosen) if isinstance(chosen, list) else chosen, codec=codec,
        crf=crf, overwrite=overwrite,
    )  # fmt: skip
    if not preview:
        wanted.check()
    return wanted


def _finish(
    rendering: Rendering, wanted: Output, preview: bool, silent: bool, report: Reporter
) -> RenderResult | Path:
    """Render the video, or only draw the preview of its signals."""
    if not silent:
        for note in rendering.notes:
            report.note(note)
    if preview:
        return rendering.preview(wanted.path.with_suffix(".png"), overwrite=wanted.overwrite)
    return rendering.save(wanted, report=report)


def _print(
    result: RenderResult | Path, *, quiet: bool, as_json: bool, more: dict[str, Any] | None = None
) -> None:
    if not isinstance(result, Path):
        print_rendered(result, quiet=quiet, as_json=as_json, more=more)
    elif as_json:
        import json

        print(json.dumps({"preview": str(result)}))
    elif not quiet:
        print(result)


def print_rendered(
    outcome: RenderResult, *, quiet: bool, as_json: bool, more: dict[str, Any] | None = None
) -> None:
    if as_json:
        import json

        print(json.dumps(outcome.as_json() | (more or {}), indent=1))
    elif not quiet:
        files = " and ".join(str(f) for f in (outcome.video, outcome.comparison) if f)
        console().print(
            f"{files}: {outcome.frames} frames of {outcome.width}x{outcome.height} at"
            f" {float(outcome.rate):.4g} fps, marked as synthetic",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


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
    if as_json:
        import json

        print(json.dumps([picture.as_json() for picture in found], indent=1))
        return
    if not quiet:
        for picture in found:
            origin = "added" if picture.frame is None else f"frame {picture.frame}"
            text = f"{picture.number:3}  {origin:<12}  {picture.path}"
            console().print(text, highlight=False, soft_wrap=True, markup=False)


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
    if as_json:
        import json

        print(json.dumps(found, indent=1))
        return
    wide = max(len(name) for name in found)
    for name, value in found.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        console().print(f"{name:<{wide}}  {shown}", highlight=False, soft_wrap=True, markup=False)
