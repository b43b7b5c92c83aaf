"""Write a video from a stream of frames, completely or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

from v2v.defaults import CODEC, CRF
from v2v.errors import MediaError
from v2v.files import replacing_file
from v2v.images import Picture
from v2v.pipelines.rendering.output import CONTAINERS
from v2v.progress import Reporter
from v2v.video.audio import Sound
from v2v.video.write import CODECS, VideoWriter, concatenate


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
