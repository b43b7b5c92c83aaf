"""Render the methods of an evaluation into lossless videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from v2v.evaluation.clips import Measured
from v2v.evaluation.methods import Method
from v2v.evaluation.returns import difference_on_return
from v2v.images import Picture
from v2v.progress import Reporter
from v2v.video.write import VideoWriter

RenderedVideos = dict[str, Path]  # method -> its lossless video; `REAL_FRAMES` -> the real one
REAL_FRAMES = ""  # not a valid method name


def render_methods(
    methods: Sequence[Method], clip: Measured, folder: Path, report: Reporter
) -> RenderedVideos:
    """Render one clip with every method into lossless videos in `folder`."""
    folder.mkdir()
    rendered = {REAL_FRAMES: folder / "truth.mkv"}
    _write_frames(rendered[REAL_FRAMES], clip, clip.pictures(), report)
    for number, method in enumerate(methods):
        rendered[method.name] = folder / f"{number}.mkv"
        stage = f"render {method.name}"
        wanted = len(clip.order) if method.runs_on else clip.count
        report.start(stage, wanted)
        _write_frames(
            rendered[method.name], clip, islice(method.frames(clip), wanted), report, stage
        )
        report.finish(stage)
    return rendered


def return_differences(
    methods: Sequence[Method], clip: Measured, rendered: RenderedVideos
) -> dict[str, float]:
    """World consistency of the autoregressive methods on one clip, by name."""
    found = {
        method.name: difference_on_return(rendered[method.name], clip.order)
        for method in methods
        if method.runs_on
    }
    return {name: gap for name, gap in found.items() if gap is not None}


def _write_frames(
    path: Path,
    clip: Measured,
    pictures: Iterator[Picture],
    report: Reporter,
    stage: str | None = None,
) -> None:
    height, width = clip.placement.size
    with VideoWriter(
        path, width=width, height=height, rate=clip.store.rate, codec="ffv1"
    ) as writer:
        for picture in pictures:
            writer.write(picture)
            if stage:
                report.advance(stage)
