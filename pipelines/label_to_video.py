"""Label maps to video: street scenes from semantic label maps (arXiv 1808.06601, section 4).

>>> street = LabelToVideo.from_pretrained("runs/street")
>>> frames = street("data/berlin", replace={"vegetation": "building"})
>>> frames.save("out.mp4")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.data.store import CLIP_FILE, ClipStore, frames_to_tensor
from v2v.data.transforms import Placement
from v2v.errors import LabelsMismatch, MediaError, MediaNotFound, UnknownName, UsageError
from v2v.images import float_white, read_picture
from v2v.pipelines.model import Appearance, LoadedModel
from v2v.pipelines.rendering.frames import ConditioningSource
from v2v.pipelines.rendering.rendering import Rendering
from v2v.pipelines.source import Source, open_source
from v2v.progress import Reporter, Silent, with_progress
from v2v.signals import Track
from v2v.signals.segmentation import CITYSCAPES, VOID, LabelTrack

SIGNAL = "segmentation"
MAX_UNSEEN = 0.005  # fraction of pixels allowed to be of classes absent from training
CHUNK = 32  # label maps processed together


@dataclass(frozen=True)
class LabelToVideo:
    """Renders label maps with a model trained on `segmentation`."""

    trained: LoadedModel

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str = "auto") -> LabelToVideo:
        """Raises `CheckpointInvalid`, and `UsageError` for a model of another signal."""
        trained = LoadedModel.open(path, device=device)
        trained.expect(SIGNAL, "label-to-video")
        return cls(trained)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in order of their ids."""
        return tuple(self.trained.model.record.signals[0].spec["classes"])

    @with_progress
    def __call__(
        self,
        labels: str | Path | ClipStore,
        *,
        start: float | None = None,
        end: float | None = None,
        fps: float | str | None = None,
        replace: Mapping[str, str] | None = None,
        style: str | Sequence[str] = (),
        report: Reporter | None = None,
    ) -> Rendering:
        """Render the street scene that the label maps describe.

        Args:
            labels: a clip store, or a folder of label maps (PNG), one per frame.
            start, end: the range to render, in seconds.
            fps: frame rate of a folder of maps; by default that of the training clip.
            replace: class -> the class rendered in its place.
            style: the appearance, if the model supports several: the name of a training clip, a
                picture, or `CLASS=NUMBER` for a cluster.

        Raises `UnknownName` for a class, `LabelsMismatch` for maps that do not fit the model.
        """
        report = report or Silent()
        style = [style] if isinstance(style, str) else style
        if fps is not None and not is_folder_of_maps(labels):
            raise UsageError(
                f"--fps is only for a folder of maps; {labels} has its own frame rate",
                hint="omit --fps",
            )
        appearance = self._appearance(style)
        source = self._open(labels, start, end, fps, appearance, report)
        table = self._table(replace or {})
        notes = self._unseen(source, table, report)
        notes += source.store.record.signals[SIGNAL].warnings
        placement = Placement.plain(source.size, self.trained.size)
        if (kept := _kept(source.size, self.trained.size)) < 0.98:
            notes.append(
                f"{1 - kept:.0%} of the maps is cropped: they are {source.size[1]}x"
                f"{source.size[0]}, the model renders {self.trained.size[1]}x{self.trained.size[0]}"
            )

        def tracks(first: int, stop: int) -> Sequence[Track]:
            maps = source.store.track(SIGNAL, source.start + first, source.start + stop)
            return [placement.track(replaced(cast(LabelTrack, maps), table))]

        conditioning = ConditioningSource(
            pipeline="label-to-video", count=len(source), rate=source.rate, tracks=tracks,
            settings={
                "start": source.start, "replace": dict(replace or {}), "style": list(style),
                "store": source.store.record.signals[SIGNAL].files,
            },
            source=source.name, source_sha256=source.sha256,
            # A folder of maps has no frames.
            pictures=None if is_folder_of_maps(labels) else source.pictures,
            sound=source.sound, notes=tuple(notes),
        )  # fmt: skip
        return Rendering(self.trained, conditioning, appearance)

    # ------------------------------------------------------------ the maps

    def _open(
        self,
        labels: str | Path | ClipStore,
        start: float | None,
        end: float | None,
        fps: float | str | None,
        appearance: Appearance,
        report: Reporter,
    ) -> Source:
        folder = None if isinstance(labels, ClipStore) else Path(labels)
        if folder is not None and not folder.exists():
            raise MediaNotFound(
                f"no such folder of label maps: {folder}",
                hint="give a folder of PNGs, one per frame, or a clip store with segmentation",
            )
        classes: Any = "cityscapes" if self.classes == tuple(CITYSCAPES) else list(self.classes)
        values = {
            "segmentation.backend": "labels", "segmentation.labels": str(labels),
            "segmentation.classes": classes, "preview.enabled": False,
            # The maps need not be larger than the model's frames.
            "frames.size": min(self.trained.size),
            "frames.fps": str(fps or "") or self.trained.model.record.clips[appearance.clip].fps,
        }  # fmt: skip
        try:
            source = open_source(
                labels, [SIGNAL], start=start, end=end, values=values, report=report
            )
        except LabelsMismatch as error:
            raise LabelsMismatch(
                error.message,
                hint=f"{self.trained.name} knows {len(self.classes)} classes:"
                f" {', '.join(self.classes[:8])}, ...; to ignore ids, use: v2v"
                f" preprocess DIR --labels DIR --signal segmentation -s segmentation.void=[255]",
            ) from error
        found = tuple(source.store.record.signals[SIGNAL].spec["classes"])
        if found != self.classes:
            raise LabelsMismatch(
                f"the maps of {source.store.folder} have {len(found)} classes"
                f" ({', '.join(found[:3])}, ...), but {self.trained.name} was trained on"
                f" {len(self.classes)} ({', '.join(self.classes[:3])}, ...)",
                hint="give maps with the classes that the model was trained on",
            )
        return source

    def _table(self, changes: Mapping[str, str]) -> NDArray[np.uint8]:
        """[256] the rendered id for each id."""
        known = {name: number for number, name in enumerate(self.classes)} | {"void": VOID}
        table = np.arange(256, dtype=np.uint8)
        for old, new in changes.items():
            for name in (old, new):
                if name not in known:
                    raise UnknownName.among(f"class of {self.trained.name}", name, known)
            table[known[old]] = known[new]
        shares = self._shares()
        for old, new in changes.items():
            if shares is not None and new != "void" and shares[known[new]] == 0:
                raise UsageError(
                    f"{self.trained.name} was not trained on {new}: it cannot replace {old}",
                    hint=f"classes in training: {', '.join(self._seen())}",
                )
        return table

    def _shares(self) -> NDArray[np.float32] | None:
        """[256] fraction of the training pixels of all clips; None if the model stores none."""
        statistics = self.trained.model.statistics
        found = [
            statistics[key]
            for number in range(len(self.trained.model.record.clips))
            if (key := f"{number}.{SIGNAL}.share") in statistics
        ]
        return np.asarray(torch.stack(found).mean(dim=0).numpy()) if found else None

    def _seen(self) -> list[str]:
        shares = self._shares()
        assert shares is not None
        return [name for number, name in enumerate(self.classes) if shares[number] > 0]

    def _unseen(self, source: Source, table: NDArray[np.uint8], report: Reporter) -> list[str]:
        """Search all maps for classes that are absent from training; returns notes on them.

        Raises `LabelsMismatch` if they exceed `MAX_UNSEEN` of the pixels.
        """
        shares = self._shares()
        if shares is None:
            return []
        counts = np.zeros(256, np.int64)
        report.start("labels", len(source))
        for start in range(source.start, source.stop, CHUNK):
            stop = min(start + CHUNK, source.stop)
            maps = cast(LabelTrack, source.store.track(SIGNAL, start, stop))
            counts += np.bincount(table[maps.labels].ravel(), minlength=256)
            report.advance("labels", stop - start)
        report.finish("labels")
        unseen = (counts > 0) & (shares == 0)
        unseen[VOID] = False
        if not unseen.any():
            return []
        fractions = counts / counts.sum()
        names = [f"{self.classes[i]} ({fractions[i]:.1%})" for i in np.flatnonzero(unseen)]
        text = f"{self.trained.name} was not trained on: {', '.join(names)} of the maps' pixels"
        worst = self.classes[int(np.argmax(np.where(unseen, fractions, 0)))]
        if fractions[unseen].sum() > MAX_UNSEEN:
            raise LabelsMismatch(
                text,
                hint=f"replace the class, for example --replace '{worst}={self._seen()[0]}';"
                f" classes in training: {', '.join(self._seen())}",
            )
        return [f"{text}; the result is a guess there"]

    # ------------------------------------------------------------ the appearance

    def _appearance(self, style: Sequence[str]) -> Appearance:
        trained, by_picture = self.trained, self.trained.takes_pictures
        clips = [clip.name for clip in trained.model.record.clips]
        clip, picture, choices = 0, None, {}
        for item in style:
            name, separator, number = item.partition("=")
            if item in clips:
                clip = clips.index(item)
            elif separator and name in self.classes:
                choices[self.classes.index(name)] = self._cluster(name, number)
            elif Path(item).is_file():
                if not by_picture:
                    raise UsageError(
                        f"{trained.name} does not take its style from a picture",
                        hint=self._styles(clips, by_picture),
                    )
                if picture is not None:
                    raise UsageError("two style pictures are given", hint="give one")
                picture = _picture(Path(item), trained.size)
            else:
                raise UsageError(
                    f"{item} is not a style of {trained.name}, and not a picture",
                    hint=self._styles(clips, by_picture),
                )
        return trained.appearance(clip, picture=picture, choices=choices)

    def _cluster(self, name: str, number: str) -> int:
        found = self.trained.choices.get(self.classes.index(name))
        if found is None:
            known = [self.classes[i] for i in self.trained.choices if i < len(self.classes)]
            raise UsageError(
                f"{self.trained.name} has no clusters of {name}",
                hint=f"it has clusters of: {', '.join(known) or 'no class'} (only pix2pixHD models"
                " have clusters)",
            )
        if not (number.isascii() and number.isdigit()) or int(number) >= found:
            raise UsageError(
                f"--style {name}={number}: there is no such cluster",
                hint=f"{name} has clusters 0 to {found - 1}",
            )
        return int(number)

    def _styles(self, clips: list[str], by_picture: bool) -> str:
        options = [f"a training clip ({', '.join(clips)})"] if len(clips) > 1 else []
        if by_picture:
            options.append("a picture")
        if self.trained.choices:
            options.append("CLASS=NUMBER, such as car=3")
        return f"it accepts: {'; '.join(options)}" if options else "it has only one style"


def is_folder_of_maps(labels: str | Path | ClipStore) -> bool:
    return not isinstance(labels, ClipStore) and not (Path(labels) / CLIP_FILE).is_file()


def replaced(track: LabelTrack, table: NDArray[np.uint8]) -> LabelTrack:
    """Map the label ids through `table` [256]; replaced pixels lose their instances."""
    labels = table[track.labels]
    if track.instances is None:
        return replace(track, labels=labels)
    instances = np.where(labels == track.labels, track.instances, labels).astype(np.uint16)
    return replace(track, labels=labels, instances=instances)


def _kept(source: tuple[int, int], size: tuple[int, int]) -> float:
    """Fraction of a frame that remains after cropping to another aspect ratio."""
    shape, wanted = source[1] / source[0], size[1] / size[0]
    return min(shape / wanted, wanted / shape)


def _picture(path: Path, size: tuple[int, int]) -> Tensor:
    """Read a picture and crop its middle: [3, H, W] in [-1, 1]."""
    try:
        rgb: NDArray[np.uint8] = read_picture(path, white=float_white([path]))
    except MediaError as error:
        raise UsageError(error.message, hint=error.hint) from error
    if min(rgb.shape[:2]) < 16:
        raise UsageError(
            f"{path} is too small for a style picture", hint="use at least 16 pixels per side"
        )
    source = (rgb.shape[0], rgb.shape[1])
    if min(source[0] / size[0], source[1] / size[1]) < 1:  # enlarge before cropping
        factor = max(size[0] / source[0], size[1] / source[1])
        rgb = np.asarray(cv2.resize(rgb, None, fx=factor, fy=factor), np.uint8)
        source = (rgb.shape[0], rgb.shape[1])
    cropped = Placement.plain(source, size).picture(rgb)
    return frames_to_tensor(np.array(cropped[None]), *size)[0]
