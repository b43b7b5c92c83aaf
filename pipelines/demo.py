"""Motion transfer demo on two synthetic dancers: draws clips, trains, renders, writes a page.

It downloads nothing and ships no pretrained model: the model is trained from scratch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from v2v.errors import NotWritable, UsageError
from v2v.files import replacing_file, workplace
from v2v.pages import render
from v2v.pipelines.end_to_end import Run, run
from v2v.pipelines.rendering.frames import Picture, RenderResult
from v2v.progress import Reporter, Silent
from v2v.samples.clips import write_sample
from v2v.video.probe import probe
from v2v.video.stored import read_stored

SEEDS = {"host": 11, "guest": 0}  # the host's arms soon cover their whole range of motion
EMPTY = {"host": 0.4, "guest": 0.0}  # seconds of empty room: they complete the background plate
SIZE = 128  # pixels, training resolution: minutes on a laptop suffice
SHOWN = 2  # upscaling factor of the written video, for easier viewing
SETTINGS = [  # best quality within minutes: more updates instead of more discriminators
    "schedule.lengths=[1,2,4]",
    "discriminator.scales=1",
    "losses.l1=10",
    "losses.discriminators={image: 0.5, temporal_1: 0, temporal_3: 0, temporal_9: 0, face: 0,"
    " hands: 0}",
    "output.preview_minutes=2",
    "output.preview_seconds=1",
]
VIDEO, SHEET, PAGE = "demo.mp4", "demo.png", "demo.html"
COLUMNS = 8  # frames of the contact sheet


@dataclass(frozen=True)
class Demo:
    """The result of `demo`."""

    video: Path
    sheet: Path
    page: Path
    steps: tuple[tuple[str, float], ...]  # name and seconds of each step
    run: Run = field(repr=False)


def demo(
    folder: Path, *, seconds: float = 6.0, minutes: float = 3.5, report: Reporter | None = None
) -> Demo:
    """Draw two dancers, train on one, drive the model with the other and write a result page.

    Finished stages are kept: a second call resumes with the remaining ones.

    Args:
        seconds: length of each drawn clip.
        minutes: training time.
    """
    report = report or Silent()
    _check_output(folder)
    began = time.monotonic()
    busy = NotWritable(
        f"another process is running the demo in {folder}",
        hint="wait for it to end, or choose another --output",
    )
    with workplace(folder / ".drawing", busy) as work:
        clips = {who: _draw_clip(who, folder, work, seconds, report) for who in SEEDS}
        drawn = ("draw two dancers", time.monotonic() - began)
        made = run(
            clips["host"], clips["guest"], output=folder / VIDEO, minutes=minutes, size=SIZE,
            render_size=SHOWN * SIZE, settings=SETTINGS, compare=True, overwrite=True,
            data=folder / "data", runs=folder / "runs", report=report,
        )  # fmt: skip
        steps = (drawn, *made.steps)
        sheet, page = folder / SHEET, folder / PAGE
        with replacing_file(sheet) as partial:
            _write_sheet(made.rendered, partial)
        with replacing_file(page) as partial:
            partial.write_text(_page(made, sheet, steps), "utf-8")
    return Demo(made.rendered.video, sheet, page, steps, made)


def _draw_clip(who: str, folder: Path, work: Path, seconds: float, report: Reporter) -> Path:
    path = folder / f"{who}-{seconds:g}s.mp4"
    if not path.exists():
        sample = write_sample(  # in a separate folder, so that it cannot overwrite other files
            "person", work, seconds=seconds, seed=SEEDS[who], who=who, empty=EMPTY[who],
            report=report,
        )  # fmt: skip
        sample.replace(path)
    return path


def _check_output(folder: Path) -> None:
    """Refuse to replace files that were not written by a demo."""
    for name in (VIDEO, SHEET, PAGE):
        if (folder / name).exists() and not (folder / "runs").is_dir():
            raise UsageError(
                f"{folder / name} exists and was not written by the demo",
                hint="choose another --output",
            )


def _write_sheet(rendered: RenderResult, path: Path) -> None:
    """Write a contact sheet: rows of input, signals and output for some frames."""
    assert rendered.comparison is not None
    count = rendered.frames
    indices = {int(i) for i in np.linspace(0, count - 1, COLUMNS)}
    columns = []
    for index, frame in enumerate(read_stored(rendered.comparison)):
        if index in indices:
            columns.append(np.concatenate(_panels(frame, rendered.width)))
    Image.fromarray(_labelled(np.concatenate(columns, axis=1), rendered.height)).save(path)


def _panels(frame: Picture, width: int) -> list[Picture]:
    """Split a comparison frame into input, signals and output, each as wide as the output."""
    input_width = frame.shape[1] - 2 * width
    first = Image.fromarray(np.ascontiguousarray(frame[:, :input_width]))
    board = Image.new("RGB", (width, frame.shape[0]))
    first.thumbnail(board.size)
    board.paste(first, ((width - first.width) // 2, (frame.shape[0] - first.height) // 2))
    return [
        np.asarray(board),
        frame[:, input_width : input_width + width],
        frame[:, input_width + width :],
    ]


def _labelled(sheet: Picture, height: int) -> Picture:
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=20)
    for row, name in enumerate(("input", "signals", "output")):
        draw.text((8, row * height + 6), name, "white", font, stroke_width=2, stroke_fill="black")
    return np.asarray(image)


def _page(made: Run, sheet: Path, steps: tuple[tuple[str, float], ...]) -> str:
    """A page without scripts or external resources; it refers to the files next to it."""
    rendered = made.rendered
    assert rendered.comparison is not None
    input_width = probe(rendered.comparison).upright_width - 2 * rendered.width
    return render(
        "v2v.pipelines", "demo.html",
        widths=(input_width, rendered.width, rendered.width), steps=steps, notes=rendered.notes,
        minutes=made.training.get("minutes", 0), updates=made.training.get("steps", 0),
        comparison=rendered.comparison.name, sheet=sheet.name, video=rendered.video.name,
    )  # fmt: skip
