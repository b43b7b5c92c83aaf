"""Open the clips of a comparison and align them on one time base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from v2v.data.store import CLIP_FILE, ClipStore
from v2v.errors import UsageError
from v2v.images import Picture
from v2v.pipelines.provenance import Provenance, read_provenance
from v2v.video.audio import Sound
from v2v.video.plan import FramePlan, plan_frames, plan_geometry
from v2v.video.probe import Probe, probe
from v2v.video.read import read_upright
from v2v.video.stored import PixelReader


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
