"""preview.mp4: each frame beside its signals, for eyes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import cast

import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from v2v.ahead import ahead
from v2v.data.store import ClipStore
from v2v.data.video import VideoWriter, stored_frames
from v2v.progress import Reporter
from v2v.signals import Track

Picture = NDArray[np.uint8]
CHUNK = 32  # frames drawn at a time
UNDERLAY = 0.35  # brightness of the frame under points and labels: shows whether they fit


def write_preview(store: ClipStore, side: int, report: Reporter) -> None:
    """Write `preview.mp4` into the store, with its sound; a panel's area is `side` squared."""
    frames = store.record.frames
    shrink = min(side / (frames.width * frames.height) ** 0.5, 1.0)
    width, height = (max(round(n * shrink / 2) * 2, 16) for n in (frames.width, frames.height))
    signals = store.signals
    report.start("preview", len(store))
    audio = store.record.audio
    with VideoWriter(
        store.folder / "preview.mp4", width=width * (1 + len(signals)), height=height,
        rate=store.rate, crf=22, preset="ultrafast", audio=store.audio,
        audio_offset=audio.offset if audio else 0.0,
    ) as writer:  # fmt: skip
        decoded = ahead(_shrunk(store, height, width), CHUNK)
        for start in range(0, len(store), CHUNK):
            pictures = list(islice(decoded, CHUNK))
            panels = [
                _panel(store.track(name, start, start + len(pictures)), pictures)
                for name in signals
            ]
            for i, picture in enumerate(pictures):
                writer.write(np.hstack([picture, *(panel[i] for panel in panels)]))
            report.advance("preview", len(pictures))
    report.finish("preview")


def _shrunk(store: ClipStore, height: int, width: int) -> Iterator[Picture]:
    shrink = VideoReformatter()
    for frame in stored_frames(store.folder / "frames.mp4"):
        small = shrink.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="FAST_BILINEAR"
        )
        yield cast(Picture, small.to_ndarray())


def _panel(track: Track, pictures: list[Picture]) -> list[Picture]:
    height, width = pictures[0].shape[:2]
    drawn = track.draw(height, width)
    if not track.transparent:
        return list(drawn)
    return [
        cast(Picture, cv2.max(drawing, cv2.convertScaleAbs(picture, alpha=UNDERLAY)))
        for drawing, picture in zip(drawn, pictures, strict=True)
    ]
