"""The demo: two people are drawn, one learns to dance as the other; a page shows how.

Nothing is downloaded and nothing is prepared beforehand: the model is trained on the spot.
"""

from __future__ import annotations

import html
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from v2v.data.probe import probe
from v2v.data.video import read_stored
from v2v.errors import NotWritable, UsageError
from v2v.files import replacing_file, workplace
from v2v.pipelines.end_to_end import Run, run
from v2v.pipelines.rendering import Picture, RenderResult
from v2v.progress import Reporter, Silent
from v2v.samples.clips import write_sample

SEEDS = {"host": 11, "guest": 0}  # dances; each of the host's arms soon shows its whole range
EMPTY = {"host": 0.4, "guest": 0.0}  # seconds of the empty room: its background is then whole
SIZE = 128  # pixels trained at: what minutes on a laptop are enough for
SHOWN = 2  # times as large the video is written, for eyes
SETTINGS = [  # what shows most after minutes: more updates instead of more critics
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
    """What the demo made."""

    video: Path
    sheet: Path
    page: Path
    steps: tuple[tuple[str, float], ...]  # what was done, and the seconds it took
    run: Run = field(repr=False)


def demo(
    folder: Path, *, seconds: float = 6.0, minutes: float = 3.5, report: Reporter | None = None
) -> Demo:
    """Draw two dancers, train on one, drive it by the other, and lay out what came of it.

    Finished stages are kept: a second call does only what is left.

    Args:
        seconds: length of each drawn clip.
        minutes: of training.
    """
    report = report or Silent()
    _check_ours(folder)
    began = time.monotonic()
    busy = NotWritable(
        f"another process is making the demo in {folder}",
        hint="wait for it to end, or choose another --output",
    )
    with workplace(folder / ".drawing", busy) as work:
        clips = {who: _drawn(who, folder, work, seconds, report) for who in SEEDS}
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


def _drawn(who: str, folder: Path, work: Path, seconds: float, report: Reporter) -> Path:
    path = folder / f"{who}-{seconds:g}s.mp4"
    if not path.exists():
        sample = write_sample(  # in a folder of its own: it may not touch what else is there
            "person", work, seconds=seconds, seed=SEEDS[who], who=who, empty=EMPTY[who],
            report=report,
        )  # fmt: skip
        sample.replace(path)
    return path


def _check_ours(folder: Path) -> None:
    """Refuse to replace what no demo made."""
    for name in (VIDEO, SHEET, PAGE):
        if (folder / name).exists() and not (folder / "runs").is_dir():
            raise UsageError(
                f"{folder / name} is there, and is not of a demo", hint="choose another --output"
            )


def _write_sheet(rendered: RenderResult, path: Path) -> None:
    """Some frames of input, signals and output, one above the other."""
    assert rendered.comparison is not None
    count = rendered.frames
    places = {int(i) for i in np.linspace(0, count - 1, COLUMNS)}
    columns = []
    for index, frame in enumerate(read_stored(rendered.comparison)):
        if index in places:
            columns.append(np.concatenate(_panels(frame, rendered.width)))
    Image.fromarray(_labelled(np.concatenate(columns, axis=1), rendered.height)).save(path)


def _panels(frame: Picture, width: int) -> list[Picture]:
    """input, signals and output of a comparison's frame, all as wide as the output."""
    across = frame.shape[1] - 2 * width
    first = Image.fromarray(np.ascontiguousarray(frame[:, :across]))
    board = Image.new("RGB", (width, frame.shape[0]))
    first.thumbnail(board.size)
    board.paste(first, ((width - first.width) // 2, (frame.shape[0] - first.height) // 2))
    return [np.asarray(board), frame[:, across : across + width], frame[:, across + width :]]


def _labelled(sheet: Picture, height: int) -> Picture:
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=20)
    for row, name in enumerate(("input", "signals", "output")):
        draw.text((8, row * height + 6), name, "white", font, stroke_width=2, stroke_fill="black")
    return np.asarray(image)


def _page(made: Run, sheet: Path, steps: tuple[tuple[str, float], ...]) -> str:
    """A page without scripts or anything from elsewhere, beside the files that it shows."""
    rendered = made.rendered
    assert rendered.comparison is not None
    across = probe(rendered.comparison).upright_width - 2 * rendered.width
    shares = f"{across}fr {rendered.width}fr {rendered.width}fr"
    rows = "".join(f"<tr><td>{html.escape(w)}<td>{s:.0f} s" for w, s in steps)
    training = made.training
    notes = "".join(f"<li>{html.escape(note)}" for note in rendered.notes)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>v2v demo</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fafafa }}
video, img {{ width: 100%; border-radius: 6px; background: #000 }}
.captions {{ display: grid; grid-template-columns: {shares}; text-align: center; color: #666 }}
td {{ padding-right: 2rem }} code {{ background: #eee; padding: 0 .3em }}
</style>
<h1>One learns the dance of another</h1>
<p>Both people are drawn. A model was trained on the first, from nothing,
{training.get("minutes", 0):.1f} minutes long ({training.get("steps", 0)} updates). Here it renders
her or him from the skeleton of the second, who has another body, other clothes and another room.
<div class="captions"><span>input</span><span>signals</span><span>output</span></div>
<video src="{html.escape(rendered.comparison.name)}" controls loop muted autoplay playsinline>
</video>
<p><img src="{html.escape(sheet.name)}" alt="Frames of input, signals and output">
<h2>What was done</h2>
<table>{rows}</table>
<ul>{notes}</ul>
<h2>With your own footage</h2>
<p><code>v2v run --target me.mp4 --source dance.mp4</code> does the same. Film whoever agrees to it,
and say of what you publish that it is synthetic: the files say so too
(<code>v2v info {html.escape(rendered.video.name)}</code>).
"""
