"""Segmentation from video: the person followed, class maps, or label maps that you bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from preprocess import _mediapipe as mp
from preprocess.extractor import ClipContext, Finished, MapExtractor, Record
from preprocess.pose import BodyTracker
from v2v.config import PreprocessSettings
from v2v.data.probe import hash_files, image_files
from v2v.errors import LabelsMismatch, NothingFound, UsageError
from v2v.signals.segmentation import CITYSCAPES, VOC, VOID, distinct_colours
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

    version = "images, 1"

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
        if chosen.classes == "cityscapes":
            self.classes, self.palette = tuple(CITYSCAPES), list(CITYSCAPES.values())
        else:
            self.classes = VOC if chosen.classes == "voc" else tuple(chosen.classes)
            self.palette = distinct_colours(len(self.classes))
        self.cityscapes = chosen.classes == "cityscapes"
        self.void = chosen.void or ()

    def begin(self, carry: Record | None) -> None:
        pass

    def end(self) -> None:
        pass

    def label(self, index: int, frame: mp.Frame, cut: bool) -> Record:
        path = self.files[int(self.sources[index])]
        labels, instances = self._read(path)
        record = {"segmentation.mkv": self._fit(labels, path)}
        if instances is not None:
            record["instances.mkv"] = self._fit(instances, path)
        return record

    def _read(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
        try:
            with Image.open(path) as image:
                mode = image.mode
                values = np.asarray(
                    image if mode in ("L", "P", "I", "I;16", "1") else image.convert("RGB")
                )
        except OSError as error:
            raise LabelsMismatch(f"{path} is not an image that can be read", hint=None) from error
        instances = None
        if values.ndim == 3:
            labels = self._from_colours(values, path)
        elif values.max(initial=0) >= 1000:  # Cityscapes instance maps: class * 1000 + number
            instances = values.astype(np.uint16)
            labels = np.where(values >= 1000, values // 1000, values)
        else:
            labels = values.astype(np.int64)
            instances = values.astype(np.uint16) if mode.startswith("I") else None
        if self.cityscapes and VOID not in self.void:
            labels = np.where(labels == 255, LICENSE_PLATE, labels)
        labels = np.where(np.isin(labels, self.void), VOID, labels)
        wrong = labels[(labels >= len(self.classes)) & (labels != VOID)]
        if len(wrong):
            raise LabelsMismatch(
                f"{path} has the label id {int(wrong[0])}; {len(self.classes)} classes are known"
                f" (0 to {len(self.classes) - 1})",
                hint="name your classes with -s segmentation.classes=[sky,road,...], or mark ids"
                " to ignore with -s segmentation.void=[255]",
            )
        return labels.astype(np.uint8), instances

    def _from_colours(self, rgb: NDArray[np.uint8], path: Path) -> NDArray[np.int64]:
        codes = (rgb.astype(np.int64) @ np.array([65536, 256, 1])).astype(np.int64)
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
