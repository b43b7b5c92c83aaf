"""The rendering core of all pipelines: from signals to frames, and from frames to a video file.

    prefetched               rendered               encoded asynchronously
    tracks -> conditions ->  generator, rollout ->  panels -> codec -> segments -> out.mp4
    (a thread)                                      (a thread)

Frames stream: memory does not grow with the length of the video. A finished segment stays on disk
with the generator state after it, sealed by their hashes. A killed render resumes from there and
produces the same frames as an uninterrupted one. The video appears under its name when complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from v2v import __version__
from v2v.data.video import CODECS, Sound, VideoWriter, concatenate
from v2v.errors import NotAVideo, NotWritable, UnknownName, UsageError, writing
from v2v.files import LOCK, FolderLock, Seal, discard, partial_of, remove, replacing_file
from v2v.models.rollout import rollout
from v2v.pipelines.model import Appearance, LoadedModel
from v2v.pipelines.provenance import Provenance, read_provenance
from v2v.prefetch import prefetch
from v2v.progress import Reporter, Silent
from v2v.runtime import lower_thread_priority
from v2v.signals import Track
from v2v.types import Condition, GeneratorState

Picture = NDArray[np.uint8]  # RGB [H, W, 3]

CHUNK = 4  # frames whose conditions are computed together
SEGMENT = 96  # frames per segment: two groups of pictures of the codec; the most a kill loses
RENDERER_VERSION = (
    3  # increment when the same weights produce different frames: invalidates old files
)
MAX_LAG = 6  # frames by which encoding may lag behind
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
CRF = 18.0
PLAN = "plan.json"  # of an incomplete render: everything that determines its bytes


@dataclass(frozen=True)
class ConditioningSource:
    """The model's signals for every frame of a rendering, and their provenance."""

    pipeline: str  # its name, to display
    count: int  # frames
    rate: Fraction  # frames per second
    tracks: Callable[[int, int], Sequence[Track]]  # frames i to k -> signals, in model pixels
    settings: dict[str, Any]  # everything else that determines the frames
    source: str  # file name of the driving video
    source_sha256: str
    pictures: Callable[[int], Iterator[Picture]] | None = None  # driving frames, from i on
    sound: Sound | None = None
    before: Callable[[], GeneratorState] | None = None  # initial state; None: the empty state
    notes: tuple[str, ...] = ()  # notes for the user
    # Frames i to k -> uint8 [n, H, W, 4] the background of each: RGB and a valid mask (255 =
    # known); None: a background camera, the model's background plate.
    behind: Callable[[int, int], NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class Output:
    """The path and the encoding of a video.

    Attributes:
        path: the suffix selects the container.
        compare: also write `NAME-compare`: input, signals and output side by side.
        size: of the written frames: the shorter side, or (width, height); None: the model's.
            The model renders at its own size; frames are resized to this one.
        codec: of `CODECS`: h264 plays everywhere, hevc and vp9 are smaller, ffv1 is lossless.
        crf: quality, lower is better; ffv1 has none.
        overwrite: replace existing files.
    """

    path: Path
    compare: bool = False
    size: int | tuple[int, int] | None = None
    codec: str = "h264"
    crf: float = CRF
    overwrite: bool = False

    @property
    def comparison(self) -> Path:
        return self.path.with_name(f"{self.path.stem}-compare{self.path.suffix}")

    @property
    def files(self) -> list[Path]:
        return [self.path, *([self.comparison] if self.compare else [])]

    @property
    def work(self) -> Path:
        """The work folder of an incomplete render."""
        return self.path.with_name(f".{self.path.name}.render")

    def check(self) -> None:
        """Validate before any long computation. Raises `UsageError`, `NotWritable`."""
        if self.codec not in CODECS:
            raise UnknownName.among("codec", self.codec, CODECS)
        chosen = CODECS[self.codec]
        if self.path.suffix.lower() not in chosen.suffixes:
            raise UsageError(
                f"{self.codec} video cannot be stored in {self.path.name}",
                hint=f"use a file name that ends in {' or '.join(chosen.suffixes)}",
            )
        if chosen.crf and not chosen.crf[0] <= self.crf <= chosen.crf[1]:
            raise UsageError(
                f"--crf {self.crf:g} is out of range",
                hint=f"{self.codec} accepts {chosen.crf[0]:g} (best) to {chosen.crf[1]:g}",
            )
        output_size(self.size, 256, 256)
        for file in self.files:
            if file.is_dir():
                raise NotWritable(f"{file} is a folder", hint="give a file name, such as out.mp4")
        if not (self.work / PLAN).exists():  # an interrupted render is checked later
            self.tidy()
            self.refuse_existing()

    def tidy(self) -> None:
        """Remove the work files of a process that was killed after its video was complete."""
        discard(self.work)
        discard(partial_of(self.path))  # partial file of `v2v compare`

    def refuse_existing(self) -> None:
        for file in self.files:
            if file.exists() and not self.overwrite:
                raise UsageError(f"{file} exists already", hint="replace it with --overwrite")


@dataclass(frozen=True)
class RenderResult:
    """The files of a finished render."""

    video: Path
    comparison: Path | None
    frames: int
    rate: Fraction
    width: int
    height: int
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        return {
            "video": str(self.video),
            "comparison": str(self.comparison) if self.comparison else None,
            "frames": self.frames, "fps": str(self.rate),
            "width": self.width, "height": self.height, "notes": list(self.notes),
        }  # fmt: skip


class Rendering:
    """A rendering: frames are computed one by one, on demand.

    >>> frames = MotionTransfer.from_model("runs/b")("dance.mp4")
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
        _Video(output, self).render(report or Silent())
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
        digest = _Video(output, self).digest
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
            None if background_plate is None else _picture(background_plate[:3].float().cpu())
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
                above[y : y + inner[1], x : x + inner[0]] = _resized(picture, *inner)
                rows.insert(0, above)
            columns.append(np.concatenate(rows))
        with replacing_file(path) as partial:
            Image.fromarray(np.concatenate(columns, axis=1)).save(partial, format="PNG")
        return path


@dataclass(frozen=True)
class RenderedFrame:
    """One rendered frame."""

    frame: Tensor  # [3, H, W] in [-1, 1]
    state: GeneratorState  # after it
    signal: Track  # this frame of the model's first signal

    def picture(self) -> Picture:
        """RGB uint8 [H, W, 3]."""
        return _picture(self.frame)


def _picture(frame: Tensor) -> Picture:
    """[3, H, W] in [-1, 1] on the CPU to RGB uint8 [H, W, 3]."""
    # OpenCV instead of torch, which would start more threads beside the rendering ones.
    planes = cv2.merge([*frame.numpy()])
    return np.asarray(cv2.convertScaleAbs(planes, alpha=127.5, beta=127.5), np.uint8)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def row(index: int) -> Callable[[Tensor], Tensor]:
    """For `Condition.map`: select one frame of the batch."""
    return lambda tensor: tensor[index : index + 1]


def output_size(size: int | tuple[int, int] | None, height: int, width: int) -> tuple[int, int]:
    """(width, height) to write, both even. Raises `UsageError`."""
    if size is None:
        return width, height
    if isinstance(size, int):
        factor = size / min(height, width)
        size = (round(width * factor / 2) * 2, round(height * factor / 2) * 2)
    if any(side % 2 for side in size) or not 16 <= min(size) <= max(size) <= 8192:
        raise UsageError(
            f"--size {size[0]}x{size[1]} is not supported", hint="use even numbers from 16 to 8192"
        )
    return size


class _Video:
    """One call of `Rendering.save`."""

    def __init__(self, output: Output, rendering: Rendering) -> None:
        self.output, self.rendering, self.work = output, rendering, output.work
        self.width, self.height = output_size(output.size, rendering.height, rendering.width)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the frames of the video as written."""
        rendering, trained = self.rendering, self.rendering.trained
        conditioning, appearance, picture = (
            rendering.conditioning,
            rendering.appearance,
            rendering.appearance.picture,
        )
        styled = None if picture is None else _digest(picture.cpu().numpy().tobytes())
        references = trained.references_sha256
        text = json.dumps(
            {
                "tool": __version__, "making": RENDERER_VERSION, "model": trained.sha256,
                "device": trained.device.type, "bf16": trained.bf16,
                "pipeline": conditioning.pipeline, "settings": conditioning.settings,
                "source": conditioning.source_sha256, "frames": conditioning.count,
                "rate": str(conditioning.rate),
                "look": [appearance.clip, styled, sorted(appearance.clusters.items())],
                "size": [self.width, self.height], "codec": self.output.codec,
                "crf": self.output.crf,
            }
            | ({"references": references} if references else {}),
            default=str, sort_keys=True,
        )  # fmt: skip
        return dict(json.loads(text))

    @property
    def digest(self) -> str:
        return _digest(json.dumps(self.identity, sort_keys=True).encode())

    def render(self, report: Reporter) -> None:
        if not len(self.rendering):
            raise UsageError("there are no frames to render", hint=None)
        busy = NotWritable(
            f"another process is rendering {self.output.path}",
            hint="wait for it to end, or choose another --output",
        )
        lock = FolderLock(self.work, busy)
        try:
            with writing(self.work):
                lock.acquire()
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            raise NotWritable(
                f"{self.output.path} cannot be written: {self.work.parent} is not a folder",
                hint="choose another --output",
            ) from error
        keep = False
        try:
            done = self._resume()
            self._segments(done, report)
            self._join()
        except BaseException:
            keep = self._seal(0).path.exists()  # a later call can resume
            raise
        finally:
            if keep:
                lock.release()
            else:
                # Remove the plan first: if a kill interrupts the clean-up, no later run resumes
                # from the remaining files.
                remove(self.work / PLAN)
                lock.remove()

    # ------------------------------------------------------------ segments on disk

    def _resume(self) -> int:
        """Number of segments of exactly this render on disk; removes everything else."""
        plan = self.work / PLAN
        identity = self.identity | {"compare": self.output.compare, "segment": SEGMENT}
        try:
            same = json.loads(plan.read_text("utf-8")) == identity
        except (OSError, ValueError, RecursionError):
            same = False
        if not same:
            self.output.refuse_existing()
        done = self._completed() if same else 0
        kept = {self.work / LOCK, *([plan] if same else [])}
        for number in range(done):
            kept |= {self._seal(number).path, self._state(number), *self._segments_of(number)}
        for entry in self.work.iterdir():
            if entry not in kept:
                remove(entry)
        if not same:
            with writing(plan):
                plan.write_text(json.dumps(identity), "utf-8")
        return done

    def _completed(self) -> int:
        """Number of leading segments to resume after.

        They are intact, and so is the state after the last one, unless it ends the video.
        """
        done = 0
        while done < self.segments and self._seal(done).holds(self._segments_of(done)):
            done += 1
        while 0 < done < self.segments and not self._seal(done - 1).holds([self._state(done - 1)]):
            done -= 1
        return done

    @property
    def segments(self) -> int:
        return -(-len(self.rendering) // SEGMENT)

    def _segments_of(self, number: int) -> list[Path]:
        kinds = ("", "-compare")[: len(self.output.files)]
        return [self._segment(number, kind) for kind in kinds]

    def _segment(self, number: int, kind: str = "") -> Path:
        return self.work / f"{number:05}{kind}.segment"

    def _state(self, number: int) -> Path:
        return self.work / f"{number:05}.safetensors"

    def _seal(self, number: int) -> Seal:
        return Seal(self.work / f"{number:05}.seal")

    # ------------------------------------------------------------ rendering

    def _segments(self, done: int, report: Reporter) -> None:
        count, conditioning = len(self.rendering), self.rendering.conditioning
        first = min(done * SEGMENT, count)
        report.start("render", count, first)
        if first < count:
            state = GeneratorState(**load_file(self._state(done - 1))) if done else None
            pictures: Iterator[Picture | None] = iter(())
            if self.output.compare and conditioning.pictures is not None:
                pictures = prefetch(
                    conditioning.pictures(first), CHUNK, prepare=lower_thread_priority
                )
            with _Encoding(self) as encoding:
                for index, step in enumerate(self.rendering.steps(first, state), start=first):
                    encoding.add(index, step, next(pictures, None))
                    report.advance("render")
        report.finish("render")

    def _join(self) -> None:
        """Concatenate the segments, then move all files to their final names together."""
        output, conditioning, trained = (
            self.output,
            self.rendering.conditioning,
            self.rendering.trained,
        )
        codec, numbers = CODECS[output.codec], range(self.segments)
        container = CONTAINERS[output.path.suffix.lower()]
        tag = codec.tag if container in ("mp4", "mov") else None
        mark = Provenance.of(
            trained,
            conditioning.pipeline,
            conditioning.source,
            conditioning.source_sha256,
            render=self.digest,
        )
        complete = {}
        for file, kind in zip(output.files, ("", "-compare"), strict=False):
            complete[file] = self.work / f"whole{kind}"
            concatenate(
                [self._segment(n, kind) for n in numbers], complete[file], container=container,
                rate=conditioning.rate, sound=conditioning.sound, tags=mark.tags(), tag=tag,
            )  # fmt: skip
        for file, made in complete.items():
            with writing(file):
                made.replace(file)


class _Encoding:
    """Encodes frames in a separate thread, segment by segment, a few frames behind."""

    def __init__(self, video: _Video) -> None:
        self.video = video
        # Low priority keeps encoding on cores that the network leaves idle: if one of the
        # network's threads is delayed, all of them wait.
        self.pool = ThreadPoolExecutor(
            1, thread_name_prefix="encode", initializer=lower_thread_priority
        )
        self.pending: deque[Future[None]] = deque()
        self.writers: list[VideoWriter] = []
        self.failed = False

    def __enter__(self) -> _Encoding:
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
        number, place = divmod(index, SEGMENT)
        rows = [_resized(step.picture(), video.width, video.height)]
        if video.output.compare:
            rows.append(_panels(picture, step, rows[0]))
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
        if place == SEGMENT - 1 or index == len(video.rendering) - 1:
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


def _resized(picture: Picture, width: int, height: int) -> Picture:
    if picture.shape[:2] == (height, width):
        return picture
    kind = cv2.INTER_AREA if picture.shape[0] > height else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(picture, (width, height), interpolation=kind), np.uint8)


def _panels(picture: Picture | None, step: RenderedFrame, output: Picture) -> Picture:
    """input | signals | output, all at the output's height."""
    height, width = output.shape[:2]
    panels = [step.signal.draw(height, width)[0], output]
    if picture is not None:
        width = max(round(picture.shape[1] * height / picture.shape[0] / 2) * 2, 2)
        panels.insert(0, _resized(picture, width, height))
    return np.concatenate(panels, axis=1)
