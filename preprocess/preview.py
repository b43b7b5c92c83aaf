"""Writes preview.mp4: each frame beside its signals, for visual inspection."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import cast

import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from v2v.data.store import ClipStore
from v2v.homography import carry, corners_of
from v2v.prefetch import prefetch
from v2v.progress import Reporter
from v2v.signals import Track
from v2v.signals.traits import CameraMotion
from v2v.video.stored import stored_frames
from v2v.video.write import VideoWriter

Picture = NDArray[np.uint8]
CHUNK = 32  # frames drawn at a time
FRAME_SCALE = 0.7  # scale of a frame in the camera panel, which leaves a margin around it
TRACKED, LOST = (90, 220, 255), (255, 90, 60)
UNDERLAY = 0.35  # brightness of the frame under points and labels, to check their alignment


def write_preview(store: ClipStore, side: int, report: Reporter) -> None:
    """Write `preview.mp4` with audio into the store; each panel has an area of `side` squared."""
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
        decoded = prefetch(_shrunk(store, height, width), CHUNK)
        mosaic = _Mosaic(width, height)
        for start in range(0, len(store), CHUNK):
            pictures = list(islice(decoded, CHUNK))
            panels = []
            for name in signals:
                track = store.track(name, start, start + len(pictures))
                if isinstance(track, CameraMotion):
                    panels.append(mosaic.panel(track, pictures))
                else:
                    panels.append(_panel(track, pictures))
            for i, picture in enumerate(pictures):
                writer.write(np.hstack([picture, *(panel[i] for panel in panels)]))
            report.advance("preview", len(pictures))
    report.finish("preview")


class _Mosaic:
    """A mosaic of frames aligned by the camera signal.

    If the signal is correct, only people move in it.
    """

    def __init__(self, width: int, height: int) -> None:
        self.size = width, height
        self.canvas = np.zeros((height, width, 3), np.uint8)
        self.reference = -1

    def panel(self, track: CameraMotion, pictures: list[Picture]) -> list[Picture]:
        width, height = self.size
        track = track.scaled(width, height)
        centre = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1.0]])
        shrunk = centre @ np.diag([FRAME_SCALE, FRAME_SCALE, 1]) @ np.linalg.inv(centre)
        panels = []
        for picture, matrix, reference, known in zip(
            pictures, track.homography, track.reference, track.present(), strict=True
        ):
            if reference != self.reference:  # a new background
                self.canvas[:], self.reference = 0, int(reference)
            back = shrunk @ np.linalg.inv(matrix)
            if known:
                cv2.warpPerspective(
                    picture, back, self.size, dst=self.canvas, flags=cv2.INTER_LINEAR,
                    borderMode=cv2.BORDER_TRANSPARENT,
                )  # fmt: skip
            shown = self.canvas.copy()
            outline = np.round(carry(back, corners_of(width, height))).astype(np.int32)
            cv2.polylines(shown, [outline], True, TRACKED if known else LOST, 1, cv2.LINE_AA)
            panels.append(shown)
        return panels


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
