"""The rendering core of all pipelines: from signals to frames, and from frames to a video file.

    prefetched               rendered               encoded asynchronously
    tracks -> conditions ->  generator, rollout ->  panels -> codec -> segments -> out.mp4
    (a thread)                                      (a thread)

Frames stream: memory does not grow with the length of the video. A finished segment stays on disk
with the generator state after it, sealed by their hashes. A killed render resumes from there and
produces the same frames as an uninterrupted one. The video appears under its name when complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from v2v.errors import NotAVideo, UsageError
from v2v.files import discard, partial_of, replacing_file
from v2v.models.rollout import rollout
from v2v.pipelines.model import Appearance, LoadedModel
from v2v.pipelines.provenance import read_provenance
from v2v.pipelines.rendering.encoding import resized
from v2v.pipelines.rendering.frames import (
    CHUNK,
    ConditioningSource,
    Picture,
    RenderedFrame,
    RenderResult,
    row,
)
from v2v.pipelines.rendering.output import Output, output_size
from v2v.pipelines.rendering.segments import SegmentedVideo
from v2v.pixels import to_picture
from v2v.prefetch import prefetch
from v2v.progress import Reporter, Silent, with_progress
from v2v.runtime import lower_thread_priority
from v2v.signals import Track
from v2v.types import Condition, GeneratorState


class Rendering:
    """A rendering: frames are computed one by one, on demand.

    >>> frames = MotionTransfer.from_pretrained("runs/b")("dance.mp4")
    >>> len(frames), frames.rate
    (288, Fraction(24, 1))
    >>> for frame in frames: ...                        # RGB uint8 [height, width, 3]
    >>> frames.save("out.mp4", compare=True)
    """

    def __init__(
        self,
        trained: LoadedModel,
        conditioning: ConditioningSource,
        appearance: Appearance | None = None,
    ) -> None:
        self.trained = trained
        self.conditioning = conditioning
        self.appearance = appearance or Appearance()
        self.height, self.width = trained.size

    def __repr__(self) -> str:
        return (
            f"Rendering({self.conditioning.pipeline}, {len(self)} frames of"
            f" {self.width}x{self.height}"
            f" at {float(self.rate):.4g} fps, {self.conditioning.source} ->"
            f" {self.trained.name})"
        )

    def __len__(self) -> int:
        return self.conditioning.count

    @property
    def rate(self) -> Fraction:
        return self.conditioning.rate

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the result for the user, e.g. on motion outside the training data."""
        return self.conditioning.notes

    def __iter__(self) -> Iterator[Picture]:
        for step in self.steps():
            yield step.picture()

    # ------------------------------------------------------------ frames

    def steps(self, first: int = 0, state: GeneratorState | None = None) -> Iterator[RenderedFrame]:
        """Render the frames from `first` on, given the state before it."""
        if first == 0 and state is None and self.conditioning.before is not None:
            state = self.conditioning.before()
        device, generator = self.trained.device, self.trained.model.generator
        signals: deque[Track] = deque()

        def conditions() -> Iterator[Condition]:
            for tracks, condition in prefetch(
                self._chunks(first), 2, prepare=lower_thread_priority
            ):
                for i in range(len(tracks[0])):
                    signals.append(tracks[0][i : i + 1])
                    yield condition.map(row(i)).to(device)

        def rendered() -> Iterator[tuple[Any, GeneratorState]]:
            # The contexts must not span the yield: they would leak into the caller.
            outputs = rollout(generator, conditions(), None if state is None else state.to(device))
            while True:
                with (
                    torch.inference_mode(),
                    torch.autocast(device.type, torch.bfloat16, enabled=self.trained.bf16),
                ):
                    found = next(outputs, None)
                if found is None:
                    return
                yield found

        for output, after in rendered():
            frame = output.frame[0].float().clamp(-1, 1).cpu()
            yield RenderedFrame(frame, after, signals.popleft())

    def _chunks(self, first: int) -> Iterator[tuple[Sequence[Track], Condition]]:
        chooser = self.trained.chooser(self.appearance)
        if chooser is not None:  # the choice of references depends on all previous frames
            for start in range(0, first, CHUNK):
                tracks = self.conditioning.tracks(start, min(start + CHUNK, first))
                chooser(self.trained.reference_track(tracks))
        for start in range(first, len(self), CHUNK):
            stop = min(start + CHUNK, len(self))
            tracks = self.conditioning.tracks(start, stop)
            behind = (
                None if self.conditioning.behind is None else self.conditioning.behind(start, stop)
            )
            yield tracks, self.trained.conditions(tracks, self.appearance, chooser, behind)

    # ------------------------------------------------------------ a video

    @with_progress
    def save(
        self, path: str | Path | Output, *, report: Reporter | None = None, **options: Any
    ) -> RenderResult:
        """Render to a video with the source's sound and rate, marked as synthetic.

        After a kill, a call with the same arguments resumes.

        Args:
            path: the path of the video, or a complete `Output`.
            options: fields of `Output`, if `path` is a path.

        Raises `UsageError`, `NotWritable`, `DiskFull`, and what reading the source raises.
        """
        output = path if isinstance(path, Output) else Output(Path(path), **options)
        output.check()
        SegmentedVideo(output, self).render(report or Silent())
        return self.outcome(output)

    def outcome(self, output: Output) -> RenderResult:
        """The result of `save` for an existing video."""
        width, height = output_size(output.size, self.height, self.width)
        comparison = output.comparison if output.compare else None
        return RenderResult(
            output.path, comparison, len(self), self.rate, width, height, self.notes
        )

    def is_saved(self, output: Output) -> bool:
        """Whether the files already exist and hold exactly the frames of this rendering."""
        digest = SegmentedVideo(output, self).digest
        for file in output.files:
            try:
                mark = read_provenance(file) if file.exists() else None
            except NotAVideo:
                mark = None
            if mark is None or mark.render != digest:
                return False
        return True

    def preview(self, path: str | Path, *, frames: int = 8, overwrite: bool = False) -> Path:
        """Write a picture of some evenly spaced frames without rendering any.

        The top row shows the driving frames, the bottom row the signals that condition the model,
        on its background plate if it has one.
        """
        path = Path(path)
        discard(partial_of(path))
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists already", hint="replace it with --overwrite")
        indices = np.unique(np.linspace(0, len(self) - 1, frames).astype(int))
        background_plate = self.trained.model.background_plates.get(self.appearance.clip)
        background = (
            None if background_plate is None else to_picture(background_plate[:3].float().cpu())
        )
        columns = []
        for index in indices:
            track = self.conditioning.tracks(int(index), int(index) + 1)[0]
            drawn = track.draw(self.height, self.width)[0]
            behind = background
            if self.conditioning.behind is not None:
                behind = np.ascontiguousarray(
                    self.conditioning.behind(index, index + 1)[0, ..., :3]
                )
            if behind is not None and track.transparent:
                drawn = np.asarray(cv2.max(drawn, cv2.convertScaleAbs(behind, alpha=0.5)), np.uint8)
            rows = [drawn]
            if self.conditioning.pictures is not None:
                width, height = self.width, self.height
                picture = next(self.conditioning.pictures(int(index)))
                factor = min(width / picture.shape[1], height / picture.shape[0])
                inner = (
                    max(round(picture.shape[1] * factor), 1),
                    max(round(picture.shape[0] * factor), 1),
                )
                x, y = (width - inner[0]) // 2, (height - inner[1]) // 2
                above = np.zeros_like(drawn)
                above[y : y + inner[1], x : x + inner[0]] = resized(picture, *inner)
                rows.insert(0, above)
            columns.append(np.concatenate(rows))
        with replacing_file(path) as partial:
            Image.fromarray(np.concatenate(columns, axis=1)).save(partial, format="PNG")
        return path
