"""Comparison video: synchronised panels, their differences and an enlarged region.

    clip 1     clip 2      clip 3          each with its label above
               |2 - 1|     |3 - 1|         with `difference`
    region 1   region 2    region 3        with `zoom`

The first clip sets the frame rate, the timestamps and the aspect ratio of every panel. Frames are
streamed: memory does not grow with the clips' length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from v2v.defaults import CODEC, CRF
from v2v.errors import UsageError
from v2v.evaluation.compare.align import ComparedVideo, align, open_all
from v2v.evaluation.compare.compose import composed
from v2v.evaluation.compare.layout import Layout, panel_height
from v2v.evaluation.compare.provenance import Composite
from v2v.evaluation.compare.view import parse_zoom, size_notes
from v2v.evaluation.compare.write import write_video
from v2v.pipelines.rendering.output import Output
from v2v.progress import Reporter, Silent
from v2v.video.audio import Sound

MOST = 9  # maximum number of panels


@dataclass(frozen=True)
class Compared:
    """The result of `compare`."""

    video: Path
    frames: int
    rate: Fraction
    width: int
    height: int
    labels: tuple[str, ...]
    synthetic: tuple[str, ...]  # labels of the clips marked as synthetic
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "video": str(self.video), "frames": self.frames, "fps": str(self.rate),
            "width": self.width, "height": self.height, "labels": list(self.labels),
            "synthetic": list(self.synthetic), "notes": list(self.notes),
        }  # fmt: skip


def compare(
    given: Sequence[str | Path],
    output: str | Path,
    *,
    labels: Sequence[str] | None = None,
    size: int | None = None,
    start: float | None = None,
    end: float | None = None,
    longest: bool = False,
    difference: bool = False,
    amplify: float = 4.0,
    zoom: str | None = None,
    sound: int | None = None,
    codec: str = CODEC,
    crf: float = CRF,
    overwrite: bool = False,
    report: Reporter | None = None,
) -> Compared:
    """Write one video with a panel for each clip.

    Args:
        labels: one per clip; defaults to the file names.
        size: height of a panel in pixels; defaults to the first clip's.
        start, end, longest: see `align`.
        difference: add panels |clip - first|, brightened `amplify` times.
        zoom: "X,Y,W,H" of a region to enlarge, in fractions or in pixels of the first clip.
        sound: number of the clip whose sound is used, from 1; 0 for none; defaults to the first.
        codec, crf, overwrite: see `Rendering.save`.

    Raises `UsageError`, `NotWritable`, `DiskFull`, and what reading the clips raises.
    """
    report, path = report or Silent(), Path(output)
    if not 2 <= len(given) <= MOST:
        raise UsageError(
            f"cannot compare {len(given)} {'clip' if len(given) == 1 else 'clips'}",
            hint=f"give 2 to {MOST} clips: v2v compare a.mp4 b.mp4",
        )
    if difference and not 0 < amplify <= 255:
        raise UsageError(
            f"--amplify {amplify:g} is out of range", hint="give a factor above 0, up to 255"
        )
    if any(path.resolve() == Path(clip).resolve() for clip in given):
        raise UsageError(f"--output {path} is one of the clips", hint="choose another --output")
    Output(path, codec=codec, crf=crf, overwrite=overwrite).check()
    clips = open_all(given, labels)
    heard = _sound(clips, sound)
    aligned = align(clips, start=start, end=end, longest=longest)
    first = clips[0].size
    layout = panel_height(
        size,
        Layout(
            tuple(clip.label for clip in clips), 2, 2, amplify if difference else None,
            None if zoom is None else parse_zoom(zoom, first),
        ),
        first,
    )  # fmt: skip
    mark = Composite.of_clips(clips)
    write_video(
        composed(aligned, layout), path, size=layout.size, rate=aligned.rate, count=aligned.count,
        codec=codec, crf=crf, report=report, stage="compare", tags=mark.tags() if mark else {},
        sound=None if heard is None else Sound(heard.path, heard.start + aligned.start),
    )  # fmt: skip
    notes = [*aligned.notes, *size_notes(clips, (layout.width, layout.height))]
    notes += aligned.losses()
    if difference:
        notes.append(f"differences are brightened {amplify:g} times")
    return Compared(
        path, aligned.count, aligned.rate, *layout.size, layout.labels,
        tuple(clip.label for clip in clips if clip.mark is not None), tuple(notes),
    )  # fmt: skip


def _sound(clips: Sequence[ComparedVideo], number: int | None) -> Sound | None:
    if number is None:
        return clips[0].sound
    if not 0 <= number <= len(clips):
        raise UsageError(
            f"--sound {number} names no clip",
            hint=f"give 1 to {len(clips)}, or 0 for no sound",
        )
    if number and clips[number - 1].sound is None:
        raise UsageError(
            f"{clips[number - 1].path} has no sound", hint="choose another clip with --sound"
        )
    return clips[number - 1].sound if number else None
