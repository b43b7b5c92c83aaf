"""Encodes rendered frames in a thread of its own."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import cv2
import numpy as np
from safetensors.torch import save_file

from v2v.pipelines.rendering.frames import Picture, RenderedFrame

if TYPE_CHECKING:
    from v2v.pipelines.rendering.segments import SegmentedVideo
from v2v.errors import writing
from v2v.files import remove
from v2v.runtime import lower_thread_priority
from v2v.types import GeneratorState
from v2v.video.write import VideoWriter

MAX_LAG = 6  # frames by which encoding may lag behind


class Encoding:
    """Encodes frames in a separate thread, segment by segment, a few frames behind."""

    def __init__(self, video: SegmentedVideo) -> None:
        self.video = video
        # Low priority keeps encoding on cores that the network leaves idle: if one of the
        # network's threads is delayed, all of them wait.
        self.pool = ThreadPoolExecutor(
            1, thread_name_prefix="encode", initializer=lower_thread_priority
        )
        self.pending: deque[Future[None]] = deque()
        self.writers: list[VideoWriter] = []
        self.failed = False

    def __enter__(self) -> Encoding:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while kind is None and self.pending:
                self.pending.popleft().result()
        finally:
            self.pool.shutdown(cancel_futures=True)
            for writer in self.writers:
                writer.__exit__(BaseException)  # discard incomplete segments

    def add(self, index: int, step: RenderedFrame, picture: Picture | None) -> None:
        """Queue a frame; waits if encoding lags behind, and raises its errors."""
        self.pending.append(self.pool.submit(self._write, index, step, picture))
        if len(self.pending) > MAX_LAG:
            self.pending.popleft().result()

    def _write(self, index: int, step: RenderedFrame, picture: Picture | None) -> None:
        if self.failed:  # queued frames must not follow the missing one
            return
        try:
            self._encode(index, step, picture)
        except BaseException:
            self.failed = True
            raise

    def _encode(self, index: int, step: RenderedFrame, picture: Picture | None) -> None:
        video = self.video
        number, place = divmod(index, video.SEGMENT)
        rows = [resized(step.picture(), video.width, video.height)]
        if video.output.compare:
            rows.append(panels(picture, step, rows[0]))
        if place == 0:
            for row, kind in zip(rows, ("", "-compare"), strict=False):
                self.writers.append(
                    VideoWriter(
                        video._segment(number, kind),
                        width=row.shape[1],
                        height=row.shape[0],
                        rate=video.rendering.rate,
                        crf=video.output.crf,
                        codec=video.output.codec,
                        # The comparison is three times as wide and only for viewing.
                        preset="ultrafast" if kind else "veryfast",
                    )
                )
        for writer, row in zip(self.writers, rows, strict=True):
            writer.write(row)
        if place == video.SEGMENT - 1 or index == len(video.rendering) - 1:
            for writer in self.writers:
                writer.close()
            self.writers = []
            self._keep(step.state, number)

    def _keep(self, state: GeneratorState, number: int) -> None:
        """Seal a segment with the state after it; keep the newest state and one spare."""
        video, path = self.video, self.video._state(number)
        tensors = {name: t.cpu().contiguous() for name, t in vars(state).items()}
        with writing(path):
            save_file(tensors, path)
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            video._seal(number).write([*video._segments_of(number), path])
            if number > 1:
                remove(video._state(number - 2))


def resized(picture: Picture, width: int, height: int) -> Picture:
    if picture.shape[:2] == (height, width):
        return picture
    kind = cv2.INTER_AREA if picture.shape[0] > height else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(picture, (width, height), interpolation=kind), np.uint8)


def panels(picture: Picture | None, step: RenderedFrame, output: Picture) -> Picture:
    """input | signals | output, all at the output's height."""
    height, width = output.shape[:2]
    panels = [step.signal.draw(height, width)[0], output]
    if picture is not None:
        width = max(round(picture.shape[1] * height / picture.shape[0] / 2) * 2, 2)
        panels.insert(0, resized(picture, width, height))
    return np.concatenate(panels, axis=1)
