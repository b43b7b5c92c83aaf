"""Segmentation: a class id for every pixel, and instance ids if available.

Label maps are uint8 ids everywhere; only a model's input is one-hot, with a last channel for the
boundaries between instances (pix2pixHD, arXiv 1711.11585, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.signals.traits import LabelMaps, LabelSignal
from v2v.video.stored import check_stored, read_range

if TYPE_CHECKING:
    import torch

VOID = 255  # no class: not drawn, no channel

CITYSCAPES: dict[str, tuple[int, int, int]] = {  # name: colour of the data set, in order of the ids
    "unlabeled": (0, 0, 0), "ego vehicle": (0, 0, 0), "rectification border": (0, 0, 0),
    "out of roi": (0, 0, 0), "static": (0, 0, 0), "dynamic": (111, 74, 0), "ground": (81, 0, 81),
    "road": (128, 64, 128), "sidewalk": (244, 35, 232), "parking": (250, 170, 160),
    "rail track": (230, 150, 140), "building": (70, 70, 70), "wall": (102, 102, 156),
    "fence": (190, 153, 153), "guard rail": (180, 165, 180), "bridge": (150, 100, 100),
    "tunnel": (150, 120, 90), "pole": (153, 153, 153), "polegroup": (153, 153, 153),
    "traffic light": (250, 170, 30), "traffic sign": (220, 220, 0), "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152), "sky": (70, 130, 180), "person": (220, 20, 60),
    "rider": (255, 0, 0), "car": (0, 0, 142), "truck": (0, 0, 70), "bus": (0, 60, 100),
    "caravan": (0, 0, 90), "trailer": (0, 0, 110), "train": (0, 80, 100),
    "motorcycle": (0, 0, 230), "bicycle": (119, 11, 32), "license plate": (0, 0, 142),
}  # fmt: skip
_MOVING = set(list(CITYSCAPES)[24:34])  # from person to bicycle
# The ids of Cityscapes' train ids 0 to 18; train id 255 is void.
CITYSCAPES_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """Clearly different colours; the first is black, for the background."""
    steps = [(i * 0.618034) % 1.0 for i in range(count)]  # the golden angle never repeats a hue
    hsv = np.array([[[h * 180, 200, 110 + 36 * (i % 5)] for i, h in enumerate(steps)]], np.uint8)
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    rgb[0] = 0
    return [(int(r), int(g), int(b)) for r, g, b in rgb]


@dataclass(frozen=True)
class LabelTrack(LabelMaps):
    """T frames of label maps: `labels` uint8 [T, height, width], `VOID` for no class."""

    labels: NDArray[np.uint8]
    classes: tuple[str, ...]
    palette: NDArray[np.uint8] = field(repr=False)  # [classes, 3]
    instances: NDArray[np.uint16] | None = None  # [T, height, width]
    per_frame: ClassVar[tuple[str, ...]] = ("labels", "instances")

    def __post_init__(self) -> None:
        assert self.labels.dtype == np.uint8 and self.labels.ndim == 3, self.labels.dtype
        assert len(self.palette) == len(self.classes)

    def __repr__(self) -> str:
        kind = "labels and instances" if self.instances is not None else "labels"
        return f"LabelTrack({kind} {list(self.labels.shape)}, classes={len(self.classes)})"

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.labels.shape[2]

    @property
    def height(self) -> int:  # type: ignore[override]
        return self.labels.shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice) -> Self:
        instances = None if self.instances is None else self.instances[index]
        return replace(self, labels=self.labels[index], instances=instances)

    def _mapped(self, change: Any) -> Self:
        instances = None if self.instances is None else change(self.instances)
        return replace(self, labels=change(self.labels), instances=instances)

    def scaled(self, width: int, height: int) -> Self:
        if (width, height) == (self.width, self.height):
            return self

        def resize(maps: NDArray[Any]) -> NDArray[Any]:
            out = np.empty((len(maps), height, width), maps.dtype)
            for source, target in zip(maps, out, strict=True):
                cv2.resize(
                    source, (width, height), dst=target, interpolation=cv2.INTER_NEAREST_EXACT
                )
            return out

        return self._mapped(resize)

    def cropped(self, x: int, y: int, width: int, height: int) -> Self:
        return self._mapped(lambda maps: maps[:, y : y + height, x : x + width])

    def flipped(self) -> Self:
        return self._mapped(lambda maps: np.ascontiguousarray(maps[:, :, ::-1]))

    def subsampled(self, factor: int) -> Self:
        rows, columns = self.height // factor * factor, self.width // factor * factor
        middle = factor // 2
        return self._mapped(
            lambda maps: np.ascontiguousarray(maps[:, middle:rows:factor, middle:columns:factor])
        )

    def boundaries(self) -> NDArray[np.bool_]:
        """[T, H, W] true on both sides of every border between instances (or classes)."""
        ids = self.labels if self.instances is None else self.instances
        edge = np.zeros(ids.shape, np.bool_)
        down = ids[:, 1:] != ids[:, :-1]
        right = ids[:, :, 1:] != ids[:, :, :-1]
        edge[:, 1:] |= down
        edge[:, :-1] |= down
        edge[:, :, 1:] |= right
        edge[:, :, :-1] |= right
        return edge

    def draw(self, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
        track = self.scaled(width or self.width, height or self.height)
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.palette)] = self.palette
        pictures: NDArray[np.uint8] = table[track.labels]
        if self.instances is not None:
            pictures[track.boundaries()] = 255
        return pictures

    def one_hot(self) -> torch.Tensor:
        """float32 [T, classes, H, W]; void pixels are zero in every channel."""
        return self._one_hot(len(self.classes))

    def _one_hot(self, channels: int) -> torch.Tensor:
        """One-hot classes in the first of `channels` channels; the rest is uninitialised."""
        import torch

        out = np.empty((len(self), channels, self.height, self.width), np.float32)
        for number in range(len(self.classes)):
            np.equal(
                self.labels, number, out=out[:, number]
            )  # writes floats directly, without a copy
        return torch.from_numpy(out)

    def tensor(self, height: int | None = None, width: int | None = None) -> torch.Tensor:
        """One-hot classes and a channel of boundaries, float32 [T, classes + 1, height, width]."""
        import torch

        track = self.scaled(width or self.width, height or self.height)
        planes = track._one_hot(len(self.classes) + 1)
        planes[:, -1] = torch.from_numpy(track.boundaries())
        return planes


class Segmentation(LabelSignal):
    name: ClassVar[str] = "segmentation"
    files: ClassVar[tuple[str, ...]] = ("segmentation.mkv", "instances.mkv")

    def check_spec(self, spec: dict[str, Any]) -> None:
        classes, palette = spec.get("classes"), spec.get("palette")
        if not (
            isinstance(classes, list | tuple)
            and 0 < len(classes) <= VOID
            and all(isinstance(name, str) for name in classes)
        ):
            raise ValueError(f"segmentation needs classes: a list of 1 to {VOID} names")
        if not (
            isinstance(palette, list | tuple)
            and len(palette) == len(classes)
            and all(isinstance(c, list | tuple) and len(c) == 3 for c in palette)
            and all(type(value) is int and 0 <= value < 256 for c in palette for value in c)
        ):
            raise ValueError("segmentation needs a palette: one colour of 3 bytes per class")
        if not isinstance(spec.get("instances"), bool):
            raise ValueError("segmentation needs instances: true or false")

    def check_files(
        self, folder: Path, spec: dict[str, Any], *, frames: int, width: int, height: int
    ) -> None:
        for name in self.files[: 1 + spec["instances"]]:
            check_stored(folder / name, width=width, height=height, frames=frames)

    def read(
        self, folder: Path, spec: dict[str, Any], start: int, stop: int, *, width: int, height: int
    ) -> LabelTrack:
        instances = None
        if spec["instances"]:
            path = folder / "instances.mkv"
            instances = read_range(path, start, stop, pixel_format="gray16le")
        return LabelTrack(
            labels=read_range(folder / "segmentation.mkv", start, stop, pixel_format="gray"),
            classes=tuple(spec["classes"]),
            palette=np.asarray(spec["palette"], np.uint8),
            instances=instances,
        )

    def channels(self, spec: dict[str, Any]) -> int:
        return len(spec["classes"]) + 1

    def has_instances(self, spec: dict[str, Any]) -> bool:
        return bool(spec["instances"])

    def person(self, spec: dict[str, Any]) -> int | None:
        classes = list(spec.get("classes", []))
        return classes.index("person") if "person" in classes else None

    def foreground(self, spec: dict[str, Any]) -> NDArray[np.bool_]:
        """[256] true for everything that moves in a street scene, elsewhere for the person."""
        classes = tuple(spec["classes"])
        names = _MOVING if classes == tuple(CITYSCAPES) else {"person"}
        table = np.zeros(256, np.bool_)
        table[[i for i, name in enumerate(classes) if name in names]] = True
        return table


SIGNAL = Segmentation()
