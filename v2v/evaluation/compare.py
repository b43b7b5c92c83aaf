"""Comparison video: synchronised panels, their differences and an enlarged region.

    clip 1     clip 2      clip 3          each with its label above
               |2 - 1|     |3 - 1|         with `difference`
    region 1   region 2    region 3        with `zoom`

The first clip sets the frame rate, the timestamps and the aspect ratio of every panel. Frames are
streamed: memory does not grow with the clips' length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel

from v2v import __version__
from v2v.data.store import CLIP_FILE, ClipStore
from v2v.defaults import CODEC, CRF
from v2v.errors import MediaError, UsageError
from v2v.files import replacing_file
from v2v.pipelines.provenance import Provenance, read_provenance
from v2v.pipelines.rendering.output import CONTAINERS, Output
from v2v.prefetch import prefetch
from v2v.progress import Reporter, Silent
from v2v.runtime import lower_thread_priority
from v2v.video.audio import Sound
from v2v.video.plan import FramePlan, plan_frames, plan_geometry
from v2v.video.probe import Probe, probe
from v2v.video.read import read_upright
from v2v.video.stored import PixelReader
from v2v.video.write import CODECS, VideoWriter, concatenate

Picture = NDArray[np.uint8]  # RGB [H, W, 3]
Box = tuple[float, float, float, float]  # x, y, width, height

MOST = 9  # maximum number of panels
GAP = 4  # pixels between panels
SMALL = 120  # pixels: panels with a shorter side are enlarged so that labels stay legible
SCREEN = (3840, 2160)  # maximum size of the result if no size is given
SAME_SHAPE = 0.02  # tolerance between aspect ratios: models round sizes to multiples of 32
DIMMED = 0.35  # brightness factor of a clip that has ended
DARK, LIGHT, OUTLINE = (24, 24, 24), (235, 235, 235), (255, 210, 0)


# ---------------------------------------------------------------- synchronised clips


@dataclass(frozen=True)
class ComparedVideo:
    """One clip of a comparison."""

    path: Path  # of its frames
    label: str
    seen: Probe
    sound: Sound | None  # starts with the first frame
    mark: Provenance | None  # provenance tag, if the clip is marked as synthetic

    @classmethod
    def open(cls, given: str | Path, label: str | None = None) -> ComparedVideo:
        """Open a video, a folder of images or a clip store. Raises what `probe` raises."""
        path = Path(given)
        sound: Sound | None = None
        if (path / CLIP_FILE).is_file():
            store = ClipStore.open(path)
            audio = store.record.audio
            if audio is not None and store.audio is not None:
                sound = Sound(store.audio, -audio.offset)
            name, path = path.resolve().name, path / "frames.mp4"
        else:
            name = path.resolve().name if path.is_dir() else path.stem
        seen = probe(path)
        if seen.audio is not None:
            sound = Sound(path, 0.0, seen.audio.jumps)
        return cls(path, label or name, seen, sound, None if seen.images else read_provenance(path))

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) of its frames, both even. Raises `UsageError` if they are too small."""
        geometry = plan_geometry(self.seen)
        return geometry.width, geometry.height


def open_all(
    given: Sequence[str | Path], labels: Sequence[str] | None = None
) -> list[ComparedVideo]:
    """Open the clips. Default labels are file names, prefixed by the folder if names repeat."""
    if labels and len(labels) != len(given):
        raise UsageError(
            f"{len(labels)} labels for {len(given)} clips", hint="give one --label for each clip"
        )
    if labels:
        return [ComparedVideo.open(path, label) for path, label in zip(given, labels, strict=True)]
    clips = [ComparedVideo.open(path) for path in given]
    names = [clip.label for clip in clips]
    return [
        replace(clip, label=f"{Path(path).resolve().parent.name}/{clip.label}")
        if names.count(clip.label) > 1
        else clip
        for path, clip in zip(given, clips, strict=True)
    ]


@dataclass(frozen=True)
class Aligned:
    """Clips resampled to one time base: frame k of each is shown at `start + k / rate` seconds."""

    clips: tuple[ComparedVideo, ...]
    plans: tuple[FramePlan, ...]  # frames of each clip; may be shorter than `count`
    rate: Fraction
    count: int  # frames of the result
    start: float  # seconds from the clips' first frames
    notes: tuple[str, ...]
    lost: Counter[str] = field(default_factory=Counter)  # undecodable frames so far, by label

    def pictures(self, index: int) -> Iterator[Picture]:
        """Yield the upright frames of one clip at its own size until the clip ends."""
        clip, pixels = self.clips[index], PixelReader()
        last, picture = None, None
        self.lost[clip.label] = 0  # a clip may be read more than once
        plan = replace(self.plans[index], sources=self.plans[index].sources[: self.count])
        for placed in read_upright(clip.seen, plan, plan_geometry(clip.seen)):
            self.lost[clip.label] += placed.lost
            if placed.frame is not last or picture is None:  # repeats if its frame rate is lower
                last, picture = placed.frame, pixels(placed.frame)
            yield picture

    def losses(self) -> Iterator[str]:
        """Yield a note for each clip with undecodable frames; call after reading all frames."""
        for label, count in self.lost.items():
            if count:
                what = "1 frame" if count == 1 else f"{count} frames"
                yield f"{what} of {label} could not be decoded; the previous frame is shown instead"


def align(
    clips: Sequence[ComparedVideo],
    *,
    start: float | None = None,
    end: float | None = None,
    longest: bool = False,
) -> Aligned:
    """Resample all clips to the first one's frame rate, aligned at their first frames.

    Args:
        start, end: the range in seconds from each clip's first frame, `end` excluded.
        longest: end with the longest clip instead of the shortest.

    Raises `UsageError` if the range is empty or lies beyond the end of a clip.
    """
    rate = clips[0].seen.rate
    begin = 0.0 if start is None else start
    if begin < 0 or (end is not None and end <= begin):
        raise UsageError(
            f"the range from {begin:g} s to {end if end is not None else 'the end'} is empty",
            hint="give --start and --end in seconds from the first frame, --end after --start",
        )
    first = round(begin * rate)
    stop = None if end is None else max(round(end * rate), first + 1)
    # Plan the whole clips before cutting, so that every clip is cut at the same time.
    plans = [plan_frames(clip.seen, fps=rate if i else None) for i, clip in enumerate(clips)]
    for clip, plan in zip(clips, plans, strict=True):
        if len(plan) <= first:
            raise UsageError(
                f"--start {begin:g} is past the end of {clip.path}"
                f" ({len(plan) / float(rate):.2f} s)",
                hint="give an earlier --start",
            )
    plans = [replace(plan, sources=plan.sources[first:stop]) for plan in plans]
    lengths = [len(plan) for plan in plans]
    notes = [*_rate_notes(clips, rate), *_length_notes(clips, lengths, rate, longest)]
    return Aligned(
        tuple(clips), tuple(plans), rate, max(lengths) if longest else min(lengths),
        first / float(rate), tuple(notes),
    )  # fmt: skip


def _rate_notes(clips: Sequence[ComparedVideo], rate: Fraction) -> Iterator[str]:
    for clip in clips:
        own = clip.seen.rate
        if clip.seen.variable_rate:
            yield f"{clip.label} has a variable frame rate; shown at {float(rate):.4g} fps"
        elif own != rate and not clip.seen.images:
            how = "some frames are dropped" if own > rate else "some frames are repeated"
            yield (
                f"{clip.label} has {float(own):.4g} fps; shown at {float(rate):.4g} fps like"
                f" {clips[0].label}: {how}"
            )


def _length_notes(
    clips: Sequence[ComparedVideo], lengths: Sequence[int], rate: Fraction, longest: bool
) -> Iterator[str]:
    if len(set(lengths)) == 1:
        return
    each = ", ".join(
        f"{clip.label} {length / float(rate):.2f} s"
        for clip, length in zip(clips, lengths, strict=True)
    )
    if longest:
        yield f"the lengths differ ({each}): clips that end early freeze, dimmed"
    else:
        shortest = clips[lengths.index(min(lengths))].label
        yield f"the lengths differ ({each}): all are cut to the length of {shortest}"


# ---------------------------------------------------------------- a frame in a panel


@dataclass(frozen=True)
class View:
    """Maps a part of a frame to a panel without distortion; pixels outside the frame are black.

    `box` is in pixels of the frame and may extend beyond it.
    """

    size: tuple[int, int]  # (width, height) of the frame
    box: Box
    width: int  # of the panel
    height: int

    @classmethod
    def whole(cls, size: tuple[int, int], width: int, height: int) -> View:
        """Show the whole frame, centred in the panel."""
        full_w, full_h = size
        if abs(full_w * height / (full_h * width) - 1) <= SAME_SHAPE:
            return cls(size, (0, 0, full_w, full_h), width, height)
        factor = min(width / full_w, height / full_h)
        w, h = width / factor, height / factor
        return cls(size, ((full_w - w) / 2, (full_h - h) / 2, w, h), width, height)

    def part(self, region: Box, width: int, height: int) -> View:
        """Crop this view to a region in fractions of the panel."""
        x, y, w, h = self.box
        box = (x + region[0] * w, y + region[1] * h, region[2] * w, region[3] * h)
        return View(self.size, box, width, height)

    @cached_property
    def inner(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the frame inside the panel."""
        x, y, w, h = self.box
        scale_x, scale_y = self.width / w, self.height / h
        left, right = -x * scale_x, (self.size[0] - x) * scale_x
        top, bottom = -y * scale_y, (self.size[1] - y) * scale_y
        return (
            min(max(round(left), 0), self.width), min(max(round(top), 0), self.height),
            max(min(round(right), self.width), 0), max(min(round(bottom), self.height), 0),
        )  # fmt: skip

    def __call__(self, picture: Picture) -> Picture:
        x, y, w, h = self.box
        # Downscale by area averaging first: otherwise fine patterns alias and flicker.
        shrink = max(self.width / w, self.height / h)
        if shrink < 1:
            small_w, small_h = round(self.size[0] * shrink), round(self.size[1] * shrink)
            small_w, small_h = max(small_w, 1), max(small_h, 1)
            picture = np.asarray(
                cv2.resize(picture, (small_w, small_h), interpolation=cv2.INTER_AREA), np.uint8
            )
            x, w = x * small_w / self.size[0], w * small_w / self.size[0]
            y, h = y * small_h / self.size[1], h * small_h / self.size[1]
        step_x, step_y = w / self.width, h / self.height
        # Pixel centres lie at half integers: panel pixel p samples x + (p + 0.5) * step - 0.5.
        matrix = np.array(
            [[step_x, 0, x + step_x / 2 - 0.5], [0, step_y, y + step_y / 2 - 0.5]], np.float64
        )
        panel = cv2.warpAffine(
            picture, matrix, (self.width, self.height),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        keep_inside(panel, self.inner)
        return np.asarray(panel, np.uint8)


def keep_inside(panel: NDArray[Any], inner: tuple[int, int, int, int]) -> None:
    """Set a panel to black, in place, outside (left, top, right, bottom)."""
    left, top, right, bottom = inner
    panel[:top], panel[bottom:], panel[:, :left], panel[:, right:] = 0, 0, 0, 0


# ---------------------------------------------------------------- layout


def parse_zoom(text: str, size: tuple[int, int]) -> Box:
    """Parse X,Y,W,H, in fractions or in pixels of `size` (width, height), into fractions."""
    try:
        x, y, w, h = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"cannot parse --zoom {text}", hint="give X,Y,W,H, such as 0.4,0.1,0.2,0.2"
        ) from None
    if max(x, y, w, h) > 1:
        x, w, y, h = x / size[0], w / size[0], y / size[1], h / size[1]
    if not (x >= 0 and y >= 0 and x + w <= 1 + 1e-9 and y + h <= 1 + 1e-9):
        raise UsageError(
            f"--zoom {text} extends beyond the frame",
            hint=f"give fractions up to 1, or pixels up to {size[0]},{size[1]}",
        )
    if not (w * size[0] >= 4 and h * size[1] >= 4):
        raise UsageError(f"--zoom {text} is too small", hint="give at least 4x4 pixels")
    return x, y, w, h


@dataclass(frozen=True)
class Layout:
    """The positions of all panels. Widths and heights are even, as video codecs require."""

    labels: tuple[str, ...]  # of the clips
    width: int  # of a panel
    height: int
    gain: float | None = None  # of differences
    region: Box | None = None  # enlarged, in fractions

    @property
    def columns(self) -> int:
        count = len(self.labels)
        return math.ceil(count / math.ceil(count / 4))

    @property
    def font(self) -> int:
        return min(max(min(self.height // 16, self.width // 13), 11), 40)

    @property
    def strip(self) -> int:
        """Height of a label in pixels."""
        return _even(self.font * 1.6)

    @property
    def zoomed(self) -> tuple[int, int]:
        """(width, height) of a panel with the enlarged region: as large as fits into a panel."""
        assert self.region is not None
        _, _, w, h = self.region
        factor = min(1 / w, 1 / h)
        return _even(w * self.width * factor), _even(h * self.height * factor)

    @cached_property
    def blocks(self) -> list[tuple[str, int]]:
        """(name, panel height) of each block, top to bottom."""
        found = [("clip", self.height)]
        if self.gain is not None:
            found.append(("difference", self.height))
        if self.region is not None:
            found.append(("zoom", self.zoomed[1]))
        return found

    @property
    def rows(self) -> int:
        return math.ceil(len(self.labels) / self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the result."""
        lines = [height for _, height in self.blocks for _ in range(self.rows)]
        return (
            self.columns * (self.width + GAP) - GAP,
            sum(self.strip + height + GAP for height in lines) - GAP,
        )

    def place(self, block: str, index: int) -> tuple[int, int, int, int]:
        """x, y, width, height of a panel without its label."""
        row, column = divmod(index, self.columns)
        y = 0
        for name, height in self.blocks:
            if name == block:
                width = self.zoomed[0] if name == "zoom" else self.width
                x = column * (self.width + GAP) + (self.width - width) // 4 * 2
                return x, y + row * (self.strip + height + GAP) + self.strip, width, height
            y += self.rows * (self.strip + height + GAP)
        raise KeyError(block)

    def text(self, block: str, index: int) -> str:
        label = self.labels[index]
        if block == "difference":
            return f"|{label} − {self.labels[0]}| × {self.gain:g}" if index else ""
        if block == "zoom":
            assert self.region is not None
            return f"{label}, × {min(1 / self.region[2], 1 / self.region[3]):.3g}"
        return label

    def board(self) -> Picture:
        """Render the canvas with labels and empty panels."""
        image = Image.new("RGB", self.size, DARK)
        draw = ImageDraw.Draw(image)
        font = label_font(self.font)
        for block, _ in self.blocks:
            for index in range(len(self.labels)):
                x, y, width, _ = self.place(block, index)
                text = shortened(self.text(block, index), font, self.width - 8)
                middle = (x + width / 2, y - self.strip / 2)
                draw.text(middle, text, LIGHT, font, anchor="mm")
        return np.asarray(image)


def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, bundled with matplotlib: covers Latin, Greek, Cyrillic and symbols."""
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Elide the middle of a text that is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if font.getlength(short) <= width:
            return short
    return "…"


def _even(value: float) -> int:
    return max(round(value / 2) * 2, 2)


def panel_height(given: int | None, layout: Layout, size: tuple[int, int]) -> Layout:
    """Set the panel height: the given one, or the first clip's, limited to legible sizes."""
    shape = size[0] / size[1]

    def of_height(height: float) -> Layout:
        return replace(layout, width=_even(_even(height) * shape), height=_even(height))

    if given is not None:
        if not 16 <= given <= 4096:
            raise UsageError(f"--size {given} is out of range", hint="give 16 to 4096 pixels")
        found = of_height(given)
    else:
        found = of_height(size[1] * math.ceil(SMALL / min(size)))
        while found.size[0] > SCREEN[0] or found.size[1] > SCREEN[1]:
            fit = min(SCREEN[0] / found.size[0], SCREEN[1] / found.size[1])
            found = of_height(min(found.height * fit, found.height - 2))
    if max(found.size) > 8192:
        raise UsageError(
            f"the result would be {found.size[0]}x{found.size[1]}; at most 8192 are supported",
            hint="give a smaller --size (height of one panel)",
        )
    return found


# ---------------------------------------------------------------- the video


class PanelMark(BaseModel):
    label: str
    mark: Provenance | None


class Composite(Provenance):
    """Provenance tag of a comparison that contains synthetic clips."""

    pipeline: str = "comparison"
    digital_source_type: str = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeSynthetic"
    panels: tuple[PanelMark, ...]

    @classmethod
    def of_clips(cls, clips: Sequence[ComparedVideo]) -> Composite | None:
        """Merge the marks of all clips; None if no clip is marked."""
        marks = [clip.mark for clip in clips if clip.mark is not None]
        if not marks:
            return None

        def all_of(values: Iterable[str]) -> str:
            return ", ".join(dict.fromkeys(values))

        names = ", ".join(clip.label for clip in clips if clip.mark is not None)
        return cls(
            note=f"Contains synthetic video, rendered by a model, not filmed: {names}.",
            tool=f"v2v {__version__}", model=all_of(m.model for m in marks),
            model_sha256=all_of(m.model_sha256 for m in marks),
            trained_on=tuple(dict.fromkeys(name for m in marks for name in m.trained_on)),
            source=all_of(m.source for m in marks),
            source_sha256=all_of(m.source_sha256 for m in marks),
            panels=tuple(PanelMark(label=clip.label, mark=clip.mark) for clip in clips),
        )  # fmt: skip


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
        _composed(aligned, layout), path, size=layout.size, rate=aligned.rate, count=aligned.count,
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


def size_notes(clips: Sequence[ComparedVideo], size: tuple[int, int]) -> Iterator[str]:
    """Yield a note for each clip that is resized to fit its panel."""
    for clip in clips:
        width, height = clip.size
        if (width, height) == size:
            continue
        bars = View.whole(clip.size, *size).inner != (0, 0, *size)
        why = f" with black bars: its aspect ratio differs from {clips[0].label}" if bars else ""
        yield f"{clip.label} is {width}x{height}, shown at {size[0]}x{size[1]}{why}"


def _composed(aligned: Aligned, layout: Layout) -> Iterator[Picture]:
    views = [View.whole(clip.size, layout.width, layout.height) for clip in aligned.clips]
    board = layout.board()
    for shown in prefetch(_synchronised(aligned), 2, prepare=lower_thread_priority):
        whole = board.copy()

        def put(block: str, index: int, panel: Picture, whole: Picture = whole) -> None:
            x, y, width, height = layout.place(block, index)
            whole[y : y + height, x : x + width] = panel

        panels = [view(picture) for view, (picture, _) in zip(views, shown, strict=True)]
        for index, (picture, ended) in enumerate(shown):
            if layout.gain is not None and index:
                still = ended or shown[0][1]  # nothing to compare with
                put("difference", index, _difference(panels, views, index, layout.gain, still))
            if layout.region is not None:
                view = views[index].part(layout.region, *layout.zoomed)
                put("zoom", index, _dimmed(view(picture)) if ended else view(picture))
        for index, (_, ended) in enumerate(shown):
            panel = _dimmed(panels[index]) if ended else panels[index]
            put("clip", index, _outlined(panel, layout.region) if layout.region else panel)
        yield whole


def _synchronised(aligned: Aligned) -> Iterator[list[tuple[Picture, bool]]]:
    """Yield, for every clip, its frame and whether the clip has ended (its last frame)."""
    readers = [aligned.pictures(index) for index in range(len(aligned.clips))]
    current: list[tuple[Picture, bool]] = []
    for _ in range(aligned.count):
        following = [next(reader, None) for reader in readers]
        current = [
            (picture, False) if picture is not None else (current[index][0], True)
            for index, picture in enumerate(following)
        ]
        yield current


def _difference(
    panels: Sequence[Picture], views: Sequence[View], index: int, gain: float, still: bool
) -> Picture:
    if still:
        return np.zeros_like(panels[index])
    difference = cv2.convertScaleAbs(cv2.absdiff(panels[index], panels[0]), alpha=gain)
    for view in (views[0], views[index]):  # ignore black bars
        keep_inside(difference, view.inner)
    return np.asarray(difference, np.uint8)


def _dimmed(picture: Picture) -> Picture:
    return np.asarray(cv2.convertScaleAbs(picture, alpha=DIMMED), np.uint8)


def _outlined(picture: Picture, region: Box) -> Picture:
    """Outline the region that a zoom panel enlarges."""
    height, width = picture.shape[:2]
    x, y, w, h = region
    corners = (round(x * width), round(y * height)), (
        round((x + w) * width) - 1, round((y + h) * height) - 1,
    )  # fmt: skip
    lined = picture.copy()
    cv2.rectangle(lined, *corners, OUTLINE, max(height // 300, 1))
    return lined


# ---------------------------------------------------------------- writing


def write_video(
    frames: Iterator[Picture],
    path: Path,
    *,
    size: tuple[int, int],
    rate: Fraction,
    count: int,
    codec: str = CODEC,
    crf: float = CRF,
    sound: Sound | None = None,
    tags: dict[str, str] | None = None,
    report: Reporter,
    stage: str,
) -> None:
    """Encode `count` frames; the file appears under its name only when complete."""
    report.start(stage, count)
    written = 0
    with replacing_file(path) as whole:
        part = whole.with_name("part")
        with VideoWriter(
            part, width=size[0], height=size[1], rate=rate, crf=crf, codec=codec
        ) as video:
            for frame in islice(frames, count):
                video.write(frame)
                written += 1
                report.advance(stage)
            if written < count:
                raise MediaError(
                    f"only {written} of {count} frames could be read for {path.name}",
                    hint="a clip is damaged or has changed since; try a smaller --end",
                )
        container = CONTAINERS[path.suffix.lower()]
        concatenate(
            [part], whole, container=container, rate=rate, sound=sound, tags=tags,
            tag=CODECS[codec].tag if container in ("mp4", "mov") else None,
        )  # fmt: skip
    report.finish(stage)
