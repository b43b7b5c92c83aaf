"""Where a rendering goes: the file, its comparison, and the folder of its unfinished work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from v2v.defaults import CODEC, CRF
from v2v.errors import NotWritable, UnknownName, UsageError
from v2v.files import discard, partial_of
from v2v.video.write import CODECS

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
PLAN = "plan.json"  # of an incomplete render: everything that determines its bytes


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
    codec: str = CODEC
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
