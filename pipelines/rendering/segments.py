"""A rendering written in segments, so that a stopped one resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from v2v import __version__
from v2v.pipelines.rendering.encoding import Encoding
from v2v.pipelines.rendering.frames import CHUNK, RENDERER_VERSION, Picture, digest_of
from v2v.pipelines.rendering.output import CONTAINERS, PLAN, Output, output_size

if TYPE_CHECKING:
    from v2v.pipelines.rendering.rendering import Rendering
from v2v.errors import NotWritable, UsageError, writing
from v2v.files import LOCK, FolderLock, Seal, remove
from v2v.pipelines.provenance import Provenance
from v2v.prefetch import prefetch
from v2v.progress import Reporter
from v2v.runtime import lower_thread_priority
from v2v.types import GeneratorState
from v2v.video.write import CODECS, concatenate


class SegmentedVideo:
    """One call of `Rendering.save`."""

    SEGMENT = 96  # frames per segment: two groups of pictures of the codec; the most a kill loses

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
        styled = None if picture is None else digest_of(picture.cpu().numpy().tobytes())
        references = trained.references_sha256
        text = json.dumps(
            {
                "tool": __version__, "making": RENDERER_VERSION, "model": trained.sha256,
                "device": trained.device.type, "bf16": trained.bf16,
                "pipeline": conditioning.pipeline, "settings": conditioning.settings,
                "source": conditioning.source_sha256, "frames": conditioning.count,
                "rate": str(conditioning.rate),
                "look": [appearance.clip, styled, sorted(appearance.choices.items())],
                "size": [self.width, self.height], "codec": self.output.codec,
                "crf": self.output.crf,
            }
            | ({"references": references} if references else {}),
            default=str, sort_keys=True,
        )  # fmt: skip
        return dict(json.loads(text))

    @property
    def digest(self) -> str:
        return digest_of(json.dumps(self.identity, sort_keys=True).encode())

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
        identity = self.identity | {"compare": self.output.compare, "segment": self.SEGMENT}
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
        return -(-len(self.rendering) // self.SEGMENT)

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
        first = min(done * self.SEGMENT, count)
        report.start("render", count, first)
        if first < count:
            state = GeneratorState(**load_file(self._state(done - 1))) if done else None
            pictures: Iterator[Picture | None] = iter(())
            if self.output.compare and conditioning.pictures is not None:
                pictures = prefetch(
                    conditioning.pictures(first), CHUNK, prepare=lower_thread_priority
                )
            with Encoding(self) as encoding:
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
