"""Segmentation: a mask of the tracked person, class maps, or label maps given by the user."""

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
from v2v.errors import LabelsMismatch, NothingFound, UsageError, V2VError
from v2v.images import LabelImage, read_labels
from v2v.preprocess.detectors import Frame, PersonMaskDetector, detectors
from v2v.preprocess.extractor import ClipContext, Finished, MapExtractor, Record
from v2v.preprocess.pose import BodyTracker
from v2v.signals.segmentation import (
    CITYSCAPES,
    CITYSCAPES_TRAIN_IDS,
    VOC,
    VOID,
    distinct_colours,
)
from v2v.video.probe import hash_files, image_files
from v2v.weights import find_weights, load_state, torchvision_models

PERSON = ("background", "person")
LICENSE_PLATE = 34  # Cityscapes' id -1, stored as 255 in label images


class Segmenter(Protocol):
    """A segmentation backend."""

    version: str
    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]]

    def begin(self, carry: Record | None) -> None: ...
    def label(self, index: int, frame: Frame, cut: bool) -> Record: ...
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

    def step(self, index: int, frame: Frame, previous: Frame | None, cut: bool) -> Record:
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
                hint="give your own label maps with --labels DIR, or use another backend:"
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
    """The body network's mask of the person that pose tracks too (arXiv 2006.10204)."""

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

    def label(self, index: int, frame: Frame, cut: bool) -> Record:
        found = self.tracker.find(frame, cut)
        mask = None if found is None else found.mask
        if mask is None:
            labels = np.zeros(frame.shape[:2], np.uint8)
        else:
            labels = (mask > self.threshold).astype(np.uint8)
        return {"segmentation.mkv": labels, "state": self.tracker.state}


class Selfie:
    """Masks all people near the camera; for head-and-shoulders footage without visible bodies."""

    version = "selfie 0.10.21, 1"
    classes = PERSON
    palette = FollowedPerson.palette

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        self.threshold = settings.segmentation.threshold
        self.network: PersonMaskDetector | None = None

    def begin(self, carry: Record | None) -> None:
        self.network = detectors().person_mask()

    def end(self) -> None:
        if self.network is not None:
            self.network.close()
            self.network = None

    def label(self, index: int, frame: Frame, cut: bool) -> Record:
        # The network's input is 256x256, so larger images only cost time.
        height, width = frame.shape[:2]
        factor = min(512 / max(height, width), 1.0)
        small = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        assert self.network is not None
        mask = cv2.resize(
            self.network.find(np.asarray(small, np.uint8)),
            (width, height),
            interpolation=cv2.INTER_LINEAR,
        )
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
    def label(self, index: int, frame: Frame, cut: bool) -> Record:
        height, width = frame.shape[:2]
        image = torch.from_numpy(frame).to(self.device).permute(2, 0, 1)[None].float() / 255
        factor = 520 / min(height, width)  # the training size
        image = torch.nn.functional.interpolate(
            image, scale_factor=factor, mode="bilinear", antialias=factor < 1
        )
        mean = torch.tensor([0.485, 0.456, 0.406], device=self.device)[:, None, None]
        deviation = torch.tensor([0.229, 0.224, 0.225], device=self.device)[:, None, None]
        scores = self.model((image - mean) / deviation)["out"]
        scores = torch.nn.functional.interpolate(scores, (height, width), mode="bilinear")
        return {"segmentation.mkv": scores[0].argmax(0).to(torch.uint8).cpu().numpy()}


class LabelImages:
    """Label maps, instance maps or colour-coded maps from a folder, one per source frame."""

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        chosen = settings.segmentation
        if chosen.labels is None:
            raise UsageError(
                "segmentation.backend=labels needs label maps", hint="give them with --labels DIR"
            )
        if not chosen.labels.is_dir():
            raise LabelsMismatch(
                f"no such folder of label maps: {chosen.labels}",
                hint="give an existing folder with one PNG per frame after --labels",
            )
        self.clip = clip
        self.files = image_files(chosen.labels)
        if len(self.files) != clip.source_frames:
            raise LabelsMismatch(
                f"{chosen.labels} contains {len(self.files)} label maps, but {clip.name}"
                f" has {clip.source_frames} frames",
                hint="give one map (PNG) per frame of the footage, named in frame order",
            )
        if clip.sources is None:
            raise LabelsMismatch(
                f"the store does not record which frames of {clip.name} it contains",
                hint="give the footage instead of the store, together with --labels",
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
                f"{len(self.classes)} classes are too many", hint=f"give at most {VOID}"
            )
        self.cityscapes = chosen.classes == "cityscapes"
        self.void = chosen.void or ()
        self.numbering = chosen.numbering
        if self.numbering == "auto":
            self.numbering = self._infer_numbering()
        self._check_numbering()
        # Distinguishes the parts that earlier versions made with another numbering.
        self.version = "images, 1" + ("" if self.numbering == "ids" else f", {self.numbering}")

    def begin(self, carry: Record | None) -> None:
        pass

    def end(self) -> None:
        pass

    def label(self, index: int, frame: Frame, cut: bool) -> Record:
        path = self.paired[int(self.sources[index])]
        labels, instances = self._read(path)
        record = {"segmentation.mkv": self._crop_and_resize(labels, path)}
        if instances is not None:
            record["instances.mkv"] = self._crop_and_resize(instances, path)
        return record

    # ------------------------------------------------------------ numbering

    def _infer_numbering(self) -> Literal["ids", "trainids", "mask"]:
        """Infer the numbering from the values in all files.

        Possible only with Cityscapes' classes (the default) or two given classes; otherwise "ids".
        Most Cityscapes ids are above 18, so the first file usually decides.
        """
        self._read_image(self.paired[0])  # raises early for faults that all files share
        if self.void or not (self.cityscapes or len(self.classes) == 2):
            return "ids"
        seen = np.zeros(256, np.bool_)
        for path in self.paired:
            numbers = self._read_image(path).grey
            if numbers is None or numbers.min() < 0 or numbers.max() > 255:
                return "ids"
            seen |= np.bincount(numbers.ravel(), minlength=256) > 0
            if seen[len(CITYSCAPES_TRAIN_IDS) : VOID].any():
                return "ids"
        found = np.flatnonzero(seen).tolist()
        if found == [0, 255]:
            self.warnings.append(
                "the label maps contain only 0 and 255: read as a mask, 255 as"
                f" {PERSON[1] if self.cityscapes else self.classes[1]}"
                " (segmentation.numbering=ids reads them as ids)"
            )
            return "mask"
        if self.cityscapes and seen[VOID]:
            self.warnings.append(
                "the label maps contain only 0 to 18 and 255: read as Cityscapes train ids, 255 as"
                " void (segmentation.numbering=ids reads them as ids)"
            )
            return "trainids"
        if self.cityscapes and found != [0]:
            self.warnings.append(
                f"the label maps contain no value above {found[-1]}: read as Cityscapes ids"
                " (segmentation.numbering=trainids reads them as train ids)"
            )
        return "ids"

    def _check_numbering(self) -> None:
        if self.numbering == "trainids" and not self.cityscapes:
            raise UsageError(
                "segmentation.numbering=trainids needs Cityscapes' classes",
                hint="omit segmentation.classes, or use segmentation.numbering=ids",
            )
        if self.numbering == "mask":
            if self.cityscapes:
                self.classes, self.palette = PERSON, list(FollowedPerson.palette)
            elif len(self.classes) != 2:
                raise UsageError(
                    f"segmentation.numbering=mask needs two classes, but {len(self.classes)} are"
                    " given",
                    hint="give two: -s segmentation.classes=[background,person]",
                )

    def _read_image(self, path: Path) -> LabelImage:
        try:
            found = read_labels(path)
        except V2VError as error:
            raise LabelsMismatch(error.message, hint=error.hint) from error
        if found.lossy:
            count = len(np.unique(found.values.reshape(-1, *found.values.shape[2:]), axis=0))
            raise LabelsMismatch(
                f"{path} is compressed with loss, which changes label ids: {count} different"
                " values were found",
                hint="export the label maps again as PNG; the original ids cannot be recovered",
            )
        return found

    def _read(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
        found = self._read_image(path)
        values = self._ids(found)
        instances = None
        if values is None:
            labels = self._from_colours(found, path)
        elif self.numbering == "trainids":
            labels = self._map_values(
                values, _TRAIN_IDS, path, "train id; the train ids are 0 to 18 and 255"
            )
        elif self.numbering == "mask":
            labels = self._map_values(
                values, _MASK, path, "mask value; the mask values are 0 and 255"
            )
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
                f"{path} has the label id {int(wrong[0])}, but there are {len(self.classes)}"
                f" classes (0 to {len(self.classes) - 1})",
                hint="give your classes with -s segmentation.classes=[sky,road,...], or ids to"
                " ignore with -s segmentation.void=[255]",
            )
        return labels.astype(np.uint8), instances

    def _ids(self, found: LabelImage) -> NDArray[np.int64] | None:
        """[H, W] ids of a map; None for a colour-coded map.

        Equal channels contain ids. If some are unknown ids, they are colours: some classes are
        grey.
        """
        numbers = found.grey
        if found.values.ndim == 2 or found.deep or numbers is None or self.numbering != "ids":
            return numbers
        known = (numbers < len(self.classes)) | (numbers == VOID) | np.isin(numbers, self.void)
        return numbers if known.all() else None

    @staticmethod
    def _map_values(
        values: NDArray[np.int64], table: NDArray[np.int64], path: Path, kind: str
    ) -> NDArray[np.int64]:
        """Map values to classes by `table` [65536], which has -1 for invalid values."""
        inside = (values >= 0) & (values < len(table))
        labels = np.where(inside, table[np.where(inside, values, 0)], -1)
        if (labels < 0).any():
            wrong = int(values[labels < 0][0])
            raise LabelsMismatch(
                f"{path} has the value {wrong}, which is not a {kind}",
                hint="set the numbering of the label maps: -s segmentation.numbering=ids, trainids"
                " or mask",
            )
        return labels

    @staticmethod
    def _as_instances(values: NDArray[np.int64], path: Path) -> NDArray[np.uint16]:
        if values.min() < 0 or values.max() > 65535:
            wrong = int(values.min() if values.min() < 0 else values.max())
            raise LabelsMismatch(
                f"{path} has the value {wrong}; label and instance ids must be 0 to 65535",
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
            ids[codes == (r << 16) + (g << 8) + b] = i  # of equal colours the first wins
        if (ids < 0).any():
            y, x = np.argwhere(ids < 0)[0]
            raise LabelsMismatch(
                f"{path} is a colour image, and its colour {tuple(int(v) for v in rgb[y, x])} at"
                f" {x}, {y} is not a class colour",
                hint="give grey or palette PNGs of label ids, or use the Cityscapes colours",
            )
        return ids

    def _crop_and_resize(self, ids: NDArray[Any], path: Path) -> NDArray[Any]:
        """Crop and resize a map like the frames."""
        width, height = self.clip.upright
        found_height, found_width = ids.shape
        if abs(found_width * height - found_height * width) > 0.01 * found_height * width:
            raise LabelsMismatch(
                f"{path} is {found_width}x{found_height}, but the footage is {width}x{height}",
                hint="label maps must have the same aspect ratio as the frames",
            )
        x, y, w, h = self.clip.geometry.box
        # Sample the file at the stored pixels' centres, to avoid resizing twice.
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
    """The label map of each image, and a warning if their names contradict the pairing.

    Images and maps are paired by the numbers in their names if both have the same numbers,
    otherwise by order. Numbers that all images or all maps share, as in leftImg8bit, are ignored.
    """
    images, labels = _counters(names), _counters([file.name for file in files])
    if images is None or labels is None or len(images[0]) != len(labels[0]):
        return files, None
    by_number = dict(zip(labels, files, strict=True))
    if len(by_number) == len(files) and by_number.keys() == set(images):
        return [by_number[number] for number in images], None
    return files, (
        f"the numbers in the file names of images and label maps differ: paired by order,"
        f" {names[0]} with {files[0].name} to {names[-1]} with {files[-1].name}"
    )


def _counters(names: Sequence[str]) -> list[tuple[int, ...]] | None:
    """The numbers in each name that differ between names; None if there are none."""
    numbers = [tuple(int(n) for n in re.findall(r"\d+", Path(name).stem)) for name in names]
    if len({len(found) for found in numbers}) != 1:
        return None
    counting = [i for i, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
    return [tuple(found[i] for i in counting) for found in numbers] if counting else None
