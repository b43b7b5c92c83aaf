"""Segmentation from video: the person followed, class maps, or label maps that you bring."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from v2v.config import PreprocessSettings
from v2v.data.probe import hash_files, image_files
from v2v.errors import LabelsMismatch, NothingFound, UsageError, V2VError
from v2v.images import LabelImage, read_labels
from v2v.preprocess import _mediapipe as mp
from v2v.preprocess.extractor import ClipContext, Finished, MapExtractor, Record
from v2v.preprocess.pose import BodyTracker
from v2v.signals.segmentation import (
    CITYSCAPES,
    CITYSCAPES_TRAIN_IDS,
    VOC,
    VOID,
    distinct_colours,
)
from v2v.weights import find_weights, load_state, torchvision_models

PERSON = ("background", "person")
LICENSE_PLATE = 34  # Cityscapes' id -1, which its label images store as 255


class Segmenter(Protocol):
    """One way to label frames."""

    version: str
    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]]

    def begin(self, carry: Record | None) -> None: ...
    def label(self, index: int, frame: mp.Frame, cut: bool) -> Record: ...
    def end(self) -> None: ...


class Extractor(MapExtractor):
    signal: ClassVar[str] = "segmentation"

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        super().__init__(settings, clip)
        self.backend = settings.segmentation.backend
        makers: dict[str, Any] = {
            "person": FollowedPerson, "selfie": Selfie, "labels": LabelImages,
            "deeplab": ClassMaps, "lraspp": ClassMaps,
        }  # fmt: skip
        self.segmenter: Segmenter = makers[self.backend](settings, clip)
        self.version = self.segmenter.version

    def inputs(self) -> dict[str, Any]:
        if isinstance(self.segmenter, LabelImages):
            return {"labels_sha256": hash_files(self.segmenter.files)}
        return {}

    def begin(self, carry: Record | None) -> None:
        self.segmenter.begin(carry)

    def end(self) -> None:
        self.segmenter.end()

    def step(self, index: int, frame: mp.Frame, previous: mp.Frame | None, cut: bool) -> Record:
        record = dict(self.segmenter.label(index, frame, cut or index == 0))
        labels = record["segmentation.mkv"]
        counts = np.bincount(labels.reshape(-1), minlength=256)
        return {**record, "pixels": counts.astype(np.uint32)}

    def finish(self, parts: list[Path], folder: Path, shots: list[tuple[int, int]]) -> Finished:
        pixels = self.load_arrays(parts)["pixels"]  # [T, 256]
        classes = self.segmenter.classes
        people = self.backend in ("person", "selfie")
        found = (
            pixels[:, 1] > 0.001 * pixels.sum(axis=1) if people else pixels[:, :VOID].any(axis=1)
        )
        if not found.any():
            raise NothingFound(
                f"no {'person' if people else 'known class'} found in any of the"
                f" {len(found)} frames of {self.clip.name}",
                hint="bring label maps of your own with --labels DIR, or use another backend:"
                " -s segmentation.backend=selfie",
            )
        files = self.join(parts, folder)
        shape = f"labels [{self.clip.count}, {self.clip.height}, {self.clip.width}]"
        present = {
            classes[i]: round(float(share), 4)
            for i, share in enumerate(pixels.sum(axis=0)[: len(classes)] / pixels.sum())
            if share > 0
        }
        return Finished(
            files=files,
            spec={
                "shape": f"{shape} of {len(classes)} classes",
                "classes": list(classes),
                "palette": [list(c) for c in self.segmenter.palette],
                "void": VOID,
                "instances": "instances.mkv" in files,
            },
            coverage=float(found.mean()),
            measured={"share": present},
            warnings=tuple(getattr(self.segmenter, "warnings", ())),
        )


class FollowedPerson:
    """The mask of the body network on the person that pose follows too (arXiv 2006.10204)."""

    version = "blazepose-full 0.10.21, 1"
    classes = PERSON
    palette = [(0, 0, 0), (255, 255, 255)]

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        self.threshold = settings.segmentation.threshold
        self.tracker = BodyTracker(settings, clip, mask=True)

    def begin(self, carry: Record | None) -> None:
        self.tracker.begin(None if carry is None else carry["state"])

    def end(self) -> None:
        self.tracker.end()

    def label(self, index: int, frame: mp.Frame, cut: bool) -> Record:
        found = self.tracker.find(frame, cut)
        mask = None if found is None else found[0].segmentation_mask
        if mask is None:
            labels = np.zeros(frame.shape[:2], np.uint8)
        else:
            labels = (mask > self.threshold).astype(np.uint8)
        return {"segmentation.mkv": labels, "state": self.tracker.state}


class Selfie:
    """All people near the camera; for heads and shoulders, where no body is to be seen."""

    version = "selfie 0.10.21, 1"
    classes = PERSON
    palette = FollowedPerson.palette

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        self.threshold = settings.segmentation.threshold
        self.network: Any = None

    def begin(self, carry: Record | None) -> None:
        package = mp.mediapipe()
        self.network = package.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)

    def end(self) -> None:
        if self.network is not None:
            self.network.close()
            self.network = None

    def label(self, index: int, frame: mp.Frame, cut: bool) -> Record:
        # The network looks at 256x256; handing it more only costs time.
        height, width = frame.shape[:2]
        factor = min(512 / max(height, width), 1.0)
        small = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        mask = self.network.process(small).segmentation_mask
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
        return {"segmentation.mkv": (mask > self.threshold).astype(np.uint8)}


class ClassMaps:
    """Pascal VOC classes by DeepLab v3 (arXiv 1706.05587) or LR-ASPP (arXiv 1905.02244)."""

    classes = VOC
    palette = distinct_colours(len(VOC))

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        name = settings.segmentation.backend
        path = find_weights(name)
        build = {"deeplab": "deeplabv3_resnet50", "lraspp": "lraspp_mobilenet_v3_large"}[name]
        options = {"aux_loss": True} if name == "deeplab" else {}
        network = getattr(torchvision_models().segmentation, build)
        self.model = network(weights=None, weights_backbone=None, num_classes=len(VOC), **options)
        load_state(self.model, path)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.eval().to(self.device)
        self.version = f"torchvision {path.name}, 1"

    def begin(self, carry: Record | None) -> None:
        pass

    def end(self) -> None:
        pass

    @torch.inference_mode()
    def label(self, index: int, frame: mp.Frame, cut: bool) -> Record:
        height, width = frame.shape[:2]
        image = torch.from_numpy(frame).to(self.device).permute(2, 0, 1)[None].float() / 255
        factor = 520 / min(height, width)  # the size it was trained at
        image = torch.nn.functional.interpolate(
            image, scale_factor=factor, mode="bilinear", antialias=factor < 1
        )
        mean = torch.tensor([0.485, 0.456, 0.406], device=self.device)[:, None, None]
        deviation = torch.tensor([0.229, 0.224, 0.225], device=self.device)[:, None, None]
        scores = self.model((image - mean) / deviation)["out"]
        scores = torch.nn.functional.interpolate(scores, (height, width), mode="bilinear")
        return {"segmentation.mkv": scores[0].argmax(0).to(torch.uint8).cpu().numpy()}


class LabelImages:
    """Label maps, instance maps or colour-coded maps from a folder, one a source frame."""

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        chosen = settings.segmentation
        if chosen.labels is None:
            raise UsageError(
                "segmentation.backend=labels needs label maps", hint="give them with --labels DIR"
            )
        if not chosen.labels.is_dir():
            raise LabelsMismatch(f"no such folder of label maps: {chosen.labels}", hint=None)
        self.clip = clip
        self.files = image_files(chosen.labels)
        if len(self.files) != clip.source_frames:
            raise LabelsMismatch(
                f"{chosen.labels} holds {len(self.files)} label maps, {clip.name}"
                f" has {clip.source_frames} frames",
                hint="one map (PNG) a frame of the footage, named in the frames' order",
            )
        if clip.sources is None:
            raise LabelsMismatch(
                f"which frames of {clip.name} the store was made from is not known any more",
                hint="give the footage itself together with --labels, not the store",
            )
        self.sources = clip.sources
        self.paired, unequal = pair_names(clip.names, self.files)
        self.warnings = [unequal] if unequal else []
        if chosen.classes == "cityscapes":
            self.classes, self.palette = tuple(CITYSCAPES), list(CITYSCAPES.values())
        else:
            self.classes = VOC if chosen.classes == "voc" else tuple(chosen.classes)
            self.palette = distinct_colours(len(self.classes))
        if len(self.classes) > VOID:
            raise UsageError(
                f"{len(self.classes)} classes are too many", hint=f"{VOID} are the most"
            )
        self.cityscapes = chosen.classes == "cityscapes"
        self.void = chosen.void or ()
        self.numbering = chosen.numbering
        if self.numbering == "auto":
            self.numbering = self._recognised()
        self._check_numbering()
        # Parts that an earlier version made with another reading are not taken up.
        self.version = "images, 1" + ("" if self.numbering == "ids" else f", {self.numbering}")

    def begin(self, carry: Record | None) -> None:
        pass

    def end(self) -> None:
        pass

    def label(self, index: int, frame: mp.Frame, cut: bool) -> Record:
        path = self.paired[int(self.sources[index])]
        labels, instances = self._read(path)
        record = {"segmentation.mkv": self._fit(labels, path)}
        if instances is not None:
            record["instances.mkv"] = self._fit(instances, path)
        return record

    # ------------------------------------------------------------ the numbers

    def _recognised(self) -> Literal["ids", "trainids", "mask"]:
        """What the numbers in the files stand for, from the numbers of all of them.

        Only where it can be told apart: with Cityscapes' classes (the default) or two named ones.
        Most Cityscapes ids are above 18, so ids show in the first file.
        """
        self._numbers(self.paired[0])  # what is wrong with all of them shows here
        if self.void or not (self.cityscapes or len(self.classes) == 2):
            return "ids"
        seen = np.zeros(256, np.bool_)
        for path in self.paired:
            numbers = self._numbers(path).grey
            if numbers is None or numbers.min() < 0 or numbers.max() > 255:
                return "ids"
            seen |= np.bincount(numbers.ravel(), minlength=256) > 0
            if seen[len(CITYSCAPES_TRAIN_IDS) : VOID].any():
                return "ids"
        found = np.flatnonzero(seen).tolist()
        if found == [0, 255]:
            self.warnings.append(
                "the label maps hold 0 and 255 only: read as a mask, 255 as"
                f" {PERSON[1] if self.cityscapes else self.classes[1]}"
                " (segmentation.numbering=ids reads them as ids)"
            )
            return "mask"
        if self.cityscapes and seen[VOID]:
            self.warnings.append(
                "the label maps hold 0 to 18 and 255 only: read as Cityscapes train ids, 255 as"
                " void (segmentation.numbering=ids reads them as ids)"
            )
            return "trainids"
        if self.cityscapes and found != [0]:
            self.warnings.append(
                f"the label maps hold nothing above {found[-1]}: read as Cityscapes ids"
                " (segmentation.numbering=trainids reads them as train ids)"
            )
        return "ids"

    def _check_numbering(self) -> None:
        if self.numbering == "trainids" and not self.cityscapes:
            raise UsageError(
                "segmentation.numbering=trainids needs Cityscapes' classes",
                hint="leave segmentation.classes out, or use segmentation.numbering=ids",
            )
        if self.numbering == "mask":
            if self.cityscapes:
                self.classes, self.palette = PERSON, list(FollowedPerson.palette)
            elif len(self.classes) != 2:
                raise UsageError(
                    f"segmentation.numbering=mask has two classes, {len(self.classes)} are named",
                    hint="name the two: -s segmentation.classes=[background,person]",
                )

    def _numbers(self, path: Path) -> LabelImage:
        try:
            found = read_labels(path)
        except V2VError as error:
            raise LabelsMismatch(error.message, hint=error.hint) from error
        if found.lossy:
            count = len(np.unique(found.values.reshape(-1, *found.values.shape[2:]), axis=0))
            raise LabelsMismatch(
                f"{path} is compressed with loss, which changes label ids: {count} different"
                " values were found",
                hint="export the label maps again as PNG; what JPEG has changed cannot be undone",
            )
        return found

    def _read(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
        found = self._numbers(path)
        values = self._ids(found)
        instances = None
        if values is None:
            labels = self._from_colours(found, path)
        elif self.numbering == "trainids":
            labels = self._translated(values, _TRAIN_IDS, path, "train id; 0 to 18 and 255")
        elif self.numbering == "mask":
            labels = self._translated(values, _MASK, path, "value of a mask; 0 and 255")
        elif values.max() >= 1000:  # Cityscapes instance maps: class * 1000 + number
            instances = self._as_instances(values, path)
            labels = np.where(values >= 1000, values // 1000, values)
        else:
            labels = values
            instances = self._as_instances(values, path) if found.deep else None
        if self.cityscapes and self.numbering == "ids" and VOID not in self.void:
            labels = np.where(labels == 255, LICENSE_PLATE, labels)
        labels = np.where(np.isin(labels, self.void), VOID, labels)
        wrong = labels[((labels >= len(self.classes)) & (labels != VOID)) | (labels < 0)]
        if len(wrong):
            raise LabelsMismatch(
                f"{path} has the label id {int(wrong[0])}; {len(self.classes)} classes are known"
                f" (0 to {len(self.classes) - 1})",
                hint="name your classes with -s segmentation.classes=[sky,road,...], or mark ids"
                " to ignore with -s segmentation.void=[255]",
            )
        return labels.astype(np.uint8), instances

    def _ids(self, found: LabelImage) -> NDArray[np.int64] | None:
        """[H, W] the ids of a map; None for a colour-coded one.

        Equal channels hold ids, unless they are no ids that are known: then they may be colours,
        since some classes are grey.
        """
        numbers = found.grey
        if found.values.ndim == 2 or found.deep or numbers is None or self.numbering != "ids":
            return numbers
        known = (numbers < len(self.classes)) | (numbers == VOID) | np.isin(numbers, self.void)
        return numbers if known.all() else None

    @staticmethod
    def _translated(
        values: NDArray[np.int64], table: NDArray[np.int64], path: Path, what: str
    ) -> NDArray[np.int64]:
        """The classes that `table` [65536] has for the values, -1 for those it does not know."""
        inside = (values >= 0) & (values < len(table))
        labels = np.where(inside, table[np.where(inside, values, 0)], -1)
        if (labels < 0).any():
            wrong = int(values[labels < 0][0])
            raise LabelsMismatch(
                f"{path} has the value {wrong}, which is no {what} are known",
                hint="say what the label maps hold with -s segmentation.numbering=ids, trainids or"
                " mask",
            )
        return labels

    @staticmethod
    def _as_instances(values: NDArray[np.int64], path: Path) -> NDArray[np.uint16]:
        if values.min() < 0 or values.max() > 65535:
            wrong = int(values.min() if values.min() < 0 else values.max())
            raise LabelsMismatch(
                f"{path} has the value {wrong}; label and instance ids are 0 to 65535",
                hint="save instance maps as 16-bit PNG, class * 1000 + number",
            )
        return values.astype(np.uint16)

    def _from_colours(self, found: LabelImage, path: Path) -> NDArray[np.int64]:
        rgb = found.values
        if rgb.ndim == 2:
            rgb = np.repeat(rgb[..., None], 3, axis=2)
        if found.deep:
            rgb = (rgb + 128) // 257
        codes = rgb @ np.array([65536, 256, 1])
        ids = np.full(codes.shape, -1, np.int64)
        for i, (r, g, b) in reversed(list(enumerate(self.palette))):
            ids[codes == (r << 16) + (g << 8) + b] = i  # of two alike the first wins
        if (ids < 0).any():
            y, x = np.argwhere(ids < 0)[0]
            raise LabelsMismatch(
                f"{path} is a colour picture whose colour {tuple(int(v) for v in rgb[y, x])} at"
                f" {x}, {y} is no class",
                hint="give grey or palette PNGs of label ids, or the Cityscapes colours",
            )
        return ids

    def _fit(self, ids: NDArray[Any], path: Path) -> NDArray[Any]:
        """The same crop and size as the frames'."""
        width, height = self.clip.upright
        found_height, found_width = ids.shape
        if abs(found_width * height - found_height * width) > 0.01 * found_height * width:
            raise LabelsMismatch(
                f"{path} is {found_width}x{found_height}, the footage {width}x{height}",
                hint="label maps must show the same picture as the frames",
            )
        x, y, w, h = self.clip.geometry.box
        # Sample at the stored pixels' centres straight from the file: nothing is resized twice.
        columns = (x + (np.arange(self.clip.width) + 0.5) * w / self.clip.width) / width
        rows = (y + (np.arange(self.clip.height) + 0.5) * h / self.clip.height) / height
        fitted: NDArray[Any] = ids[
            np.minimum((rows * found_height).astype(int), found_height - 1)[:, None],
            np.minimum((columns * found_width).astype(int), found_width - 1)[None, :],
        ]
        return fitted


def _table(entries: dict[int, int]) -> NDArray[np.int64]:
    table = np.full(65536, -1, np.int64)
    table[list(entries)] = list(entries.values())
    return table


_TRAIN_IDS = _table(dict(enumerate(CITYSCAPES_TRAIN_IDS)) | {255: VOID})
_MASK = _table({0: 0, 1: 1, 255: 1, 65535: 1})


def pair_names(names: Sequence[str], files: list[Path]) -> tuple[list[Path], str | None]:
    """The label map of each image, and a warning where their names contradict the pairing.

    They are paired by the numbers in their names where the same numbers are in both, otherwise by
    their order. Numbers that all names of one kind share, as in leftImg8bit, do not count.
    """
    images, labels = _counters(names), _counters([file.name for file in files])
    if images is None or labels is None or len(images[0]) != len(labels[0]):
        return files, None
    by_number = dict(zip(labels, files, strict=True))
    if len(by_number) == len(files) and by_number.keys() == set(images):
        return [by_number[number] for number in images], None
    return files, (
        f"the numbers in the names of images and label maps differ: paired by order,"
        f" {names[0]} with {files[0].name} to {names[-1]} with {files[-1].name}"
    )


def _counters(names: Sequence[str]) -> list[tuple[int, ...]] | None:
    """The numbers in each name that are not the same in all; None where there are none."""
    numbers = [tuple(int(n) for n in re.findall(r"\d+", Path(name).stem)) for name in names]
    if len({len(found) for found in numbers}) != 1:
        return None
    counting = [i for i, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
    return [tuple(found[i] for i in counting) for found in numbers] if counting else None
