"""The positions of all panels and their labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from v2v.errors import UsageError
from v2v.evaluation.compare.view import Box
from v2v.images import Picture

GAP = 4  # pixels between panels
SMALL = 120  # pixels: panels with a shorter side are enlarged so that labels stay legible
SCREEN = (3840, 2160)  # maximum size of the result if no size is given
DARK, LIGHT = (24, 24, 24), (235, 235, 235)


@dataclass(frozen=True)
class Layout:
    """The positions of all panels. Widths and heights are even, as video codecs require."""

    labels: tuple[str, ...]  # of the clips
    width: int  # of a panel
    height: int
    gain: float | None = None  # of differences
    region: Box | None = None  # enlarged, in fractions

    @property
    def columns(self) -> int:
        count = len(self.labels)
        return math.ceil(count / math.ceil(count / 4))

    @property
    def font(self) -> int:
        return min(max(min(self.height // 16, self.width // 13), 11), 40)

    @property
    def strip(self) -> int:
        """Height of a label in pixels."""
        return _even(self.font * 1.6)

    @property
    def zoomed(self) -> tuple[int, int]:
        """(width, height) of a panel with the enlarged region: as large as fits into a panel."""
        assert self.region is not None
        _, _, w, h = self.region
        factor = min(1 / w, 1 / h)
        return _even(w * self.width * factor), _even(h * self.height * factor)

    @cached_property
    def blocks(self) -> list[tuple[str, int]]:
        """(name, panel height) of each block, top to bottom."""
        found = [("clip", self.height)]
        if self.gain is not None:
            found.append(("difference", self.height))
        if self.region is not None:
            found.append(("zoom", self.zoomed[1]))
        return found

    @property
    def rows(self) -> int:
        return math.ceil(len(self.labels) / self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the result."""
        lines = [height for _, height in self.blocks for _ in range(self.rows)]
        return (
            self.columns * (self.width + GAP) - GAP,
            sum(self.strip + height + GAP for height in lines) - GAP,
        )

    def place(self, block: str, index: int) -> tuple[int, int, int, int]:
        """x, y, width, height of a panel without its label."""
        row, column = divmod(index, self.columns)
        y = 0
        for name, height in self.blocks:
            if name == block:
                width = self.zoomed[0] if name == "zoom" else self.width
                x = column * (self.width + GAP) + (self.width - width) // 4 * 2
                return x, y + row * (self.strip + height + GAP) + self.strip, width, height
            y += self.rows * (self.strip + height + GAP)
        raise KeyError(block)

    def text(self, block: str, index: int) -> str:
        label = self.labels[index]
        if block == "difference":
            return f"|{label} − {self.labels[0]}| × {self.gain:g}" if index else ""
        if block == "zoom":
            assert self.region is not None
            return f"{label}, × {min(1 / self.region[2], 1 / self.region[3]):.3g}"
        return label

    def board(self) -> Picture:
        """Render the canvas with labels and empty panels."""
        image = Image.new("RGB", self.size, DARK)
        draw = ImageDraw.Draw(image)
        font = label_font(self.font)
        for block, _ in self.blocks:
            for index in range(len(self.labels)):
                x, y, width, _ = self.place(block, index)
                text = shortened(self.text(block, index), font, self.width - 8)
                middle = (x + width / 2, y - self.strip / 2)
                draw.text(middle, text, LIGHT, font, anchor="mm")
        return np.asarray(image)


def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, bundled with matplotlib: covers Latin, Greek, Cyrillic and symbols."""
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Elide the middle of a text that is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if font.getlength(short) <= width:
            return short
    return "…"


def _even(value: float) -> int:
    return max(round(value / 2) * 2, 2)


def panel_height(given: int | None, layout: Layout, size: tuple[int, int]) -> Layout:
    """Set the panel height: the given one, or the first clip's, limited to legible sizes."""
    shape = size[0] / size[1]

    def of_height(height: float) -> Layout:
        return replace(layout, width=_even(_even(height) * shape), height=_even(height))

    if given is not None:
        if not 16 <= given <= 4096:
            raise UsageError(f"--size {given} is out of range", hint="give 16 to 4096 pixels")
        found = of_height(given)
    else:
        found = of_height(size[1] * math.ceil(SMALL / min(size)))
        while found.size[0] > SCREEN[0] or found.size[1] > SCREEN[1]:
            fit = min(SCREEN[0] / found.size[0], SCREEN[1] / found.size[1])
            found = of_height(min(found.height * fit, found.height - 2))
    if max(found.size) > 8192:
        raise UsageError(
            f"the result would be {found.size[0]}x{found.size[1]}; at most 8192 are supported",
            hint="give a smaller --size (height of one panel)",
        )
    return found
