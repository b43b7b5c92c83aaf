"""A trained model, loaded for rendering."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.checkpoint import MODEL_FILE, REFERENCES, Model, is_artifact, load_model
from v2v.data.background import Backgrounds
from v2v.data.references.choosing import Chooser, reference_signal
from v2v.data.references.warping import as_condition, candidates
from v2v.data.store import ClipStore, file_record
from v2v.data.transforms import Placement, downscale_of
from v2v.errors import CheckpointInvalid, UnknownName, UsageError
from v2v.homography import carry_each
from v2v.pipelines.registry import spec_for
from v2v.pixels import planes
from v2v.runtime import cpu_has_bf16
from v2v.signals import Track, load_signal
from v2v.signals.traits import LabelMaps
from v2v.types import Condition

RUNS = Path("runs")


@dataclass(frozen=True)
class Appearance:
    """Everything besides the signals that determines the appearance of a frame."""

    clip: int = 0  # training clip that gives background and style
    picture: Tensor | None = None  # [3, H, W] in [-1, 1], style image
    choices: dict[int, int] = field(default_factory=dict)  # class -> number of its appearance


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with the folder it was loaded from."""

    folder: Path  # contains model.json
    model: Model
    device: torch.device
    bf16: bool

    @classmethod
    def open(
        cls, path: str | Path, *, device: str = "auto", precision: str = "auto"
    ) -> LoadedModel:
        """Open a run's name (below `runs/`), a run folder or a model folder.

        Args:
            device: auto, cpu, cuda or mps.
            precision: auto, bf16 or 32; auto selects bf16 on hardware with native bf16
                multiplication, as in training.

        Raises `CheckpointInvalid`, `UsageError`.
        """
        folder = find_model(path)
        target = torch.device(_device(device))
        model = load_model(folder, device=target)
        model.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        on_gpu = target.type == "cuda" and torch.cuda.is_bf16_supported()
        bf16_fast = on_gpu or (target.type == "cpu" and cpu_has_bf16())
        return cls(
            folder, model, target, precision == "bf16" or (precision == "auto" and bf16_fast)
        )

    def __repr__(self) -> str:
        return f"LoadedModel({self.name}, {self.model}, {self.device})"

    @property
    def name(self) -> str:
        folder = self.folder.resolve()
        return folder.parent.name if folder.name == "model" else folder.name

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the rendered frames."""
        return self.model.record.height, self.model.record.width

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights."""
        return file_record(self.folder / "generator.safetensors").sha256

    @cached_property
    def references_sha256(self) -> str | None:
        """Hash of the reference pictures and their points; None without references."""
        if not self.model.references:
            return None
        whole = hashlib.sha256()
        for path in sorted((self.folder / REFERENCES).iterdir()):
            whole.update(f"{path.name} {file_record(path).sha256}\n".encode())
        return whole.hexdigest()

    def expect(self, signal: str, what: str) -> None:
        """Check that the model renders from `signal`. Raises `UsageError`."""
        names = [use.name for use in self.model.record.signals]
        if names == [signal]:
            return
        fitting = spec_for(tuple(names))
        raise UsageError(
            f"{self.name} renders from {' and '.join(names)}, but {what} needs {signal}",
            hint=f"use: {fitting.usage} {fitting.model.flag} {self.name}"
            if fitting
            else f"train one with: v2v train --data STORE -s data.signals=[{signal}]",
        )

    def clip_number(self, name: str | None) -> int:
        """Index of a training clip by name, 0 for None. Raises `UnknownName`."""
        names = [clip.name for clip in self.model.record.clips]
        if name is None:
            return 0
        if name not in names:
            raise UnknownName.among(f"clip of {self.name}", name, names)
        return names.index(name)

    @property
    def takes_pictures(self) -> bool:
        """Whether the model takes its style from a picture."""
        return "style" in self.model.generator.reads

    def appearance(
        self, clip: int = 0, *, picture: Tensor | None = None,
        choices: dict[int, int] | None = None,
    ) -> Appearance:  # fmt: skip
        """The appearance of the frames: by default that of a training clip.

        Raises `UsageError` if the model needs a style picture and none is given or stored.
        """
        if picture is None and self.takes_pictures:
            picture = self.model.statistics.get(f"{clip}.style")
            if picture is None and "style" in self.model.generator.needs:
                raise UsageError(
                    f"{self.name} needs a style picture, but stores none",
                    hint="train it again with this version of v2v",
                )
        picture = None if picture is None else picture.to(self.device)
        return Appearance(clip, picture, choices or {})

    def placement(self, clip: int) -> Placement:
        """The mapping from the pixels of a training clip to those of the rendered frames."""
        use, record = self.model.record.clips[clip], self.model.record
        source = (use.height, use.width)
        # Training used the same rounding.
        downscale = downscale_of(source, self.size, record.zoom)
        return Placement.plain(source, self.size, downscale=downscale)

    def remembered(self, clip: int, signal: str, kind: str = "points") -> NDArray[np.float32]:
        """Training points of a signal, or their depth, in the stored pixels of the training clip.

        If the camera moved, the points are stabilised to a still camera in the middle of its views.

        Raises `CheckpointInvalid` if the model does not store them.
        """
        found = self.model.statistics.get(f"{clip}.{signal}.{kind}")
        if found is None:
            what = {"pose": "body"}.get(signal, signal)
            raise CheckpointInvalid(
                f"{self.name} does not store the {what} it was trained on",
                hint="train it again with this version of v2v",
            )
        values = np.asarray(found.numpy())
        backgrounds, frames = self.model.backgrounds.get(clip), f"{clip}.frames"
        if backgrounds is None or kind != "points" or frames not in self.model.statistics:
            return values
        return self._stabilised(values, backgrounds, self.model.statistics[frames].numpy(), clip)

    def _stabilised(
        self, points: NDArray[np.float32], backgrounds: Backgrounds, frames: NDArray[np.int64],
        clip: int,
    ) -> NDArray[np.float32]:  # fmt: skip
        """Points [T, N, ...] of training frames, as seen by a still camera."""
        to_model = self.placement(clip).matrix
        steady = np.linalg.inv(to_model) @ backgrounds.track.steady()[frames] @ to_model
        return carry_each(steady, points)

    def remembered_frames(self, clip: int, store: ClipStore) -> NDArray[np.int64] | None:
        """Frame numbers that the model stores of a training clip; None if `store` is another."""
        use, record = self.model.record.clips[clip], store.record
        if (record.source.sha256, record.frames.count) != (use.sha256, use.frames):
            return None
        frames = self.model.statistics.get(f"{clip}.frames")
        return None if frames is None else frames.numpy()

    @cached_property
    def artifacts(self) -> dict[str, Tensor]:
        """What the generator collected from its training clips; see `Generator.collect`."""
        return {key: value for key, value in self.model.statistics.items() if is_artifact(key)}

    @property
    def choices(self) -> dict[int, int]:
        """Class id -> number of appearances that can be chosen; empty for most generators."""
        return self.model.generator.choices(self.artifacts)

    def chooser(self, appearance: Appearance) -> Chooser | None:
        """The reference chooser for a new video; None: the model has no references."""
        references = self.model.references.get(appearance.clip)
        if references is None:
            return None
        return Chooser(references, self.model.record.generator["references"])

    def reference_track(self, tracks: Sequence[Track]) -> Track:
        """The track, among the model's signals, that selects and warps the references."""
        names = [use.name for use in self.model.record.signals]
        signal = reference_signal(names)
        assert signal is not None
        return tracks[names.index(signal.name)]

    def conditions(
        self, tracks: Sequence[Track], appearance: Appearance, chooser: Chooser | None = None,
        behind: NDArray[np.uint8] | None = None,
    ) -> Condition:  # fmt: skip
        """The generator's conditions [n, ...] for n frames.

        Args:
            tracks: one per signal, n frames each, in the model's pixels.
            chooser: reference chooser that has processed all previous frames; None for frames that
                are given instead of rendered.
            behind: uint8 [n, H, W, 4] background of each frame if the camera moves: RGB, and a
                valid mask (255 = known).
        """
        height, width = self.size
        # The model's spec, not that of the source's store: it has the options of training.
        drawn = [
            load_signal(use.name).tensor(track, use.spec, height, width)
            for use, track in zip(self.model.record.signals, tracks, strict=True)
        ]
        signals = torch.cat(drawn, dim=1)
        count = len(signals)
        background_plate = self.model.background_plates.get(appearance.clip)
        if background_plate is not None:
            background_plate = background_plate[None].expand(count, -1, -1, -1)
        if background_plate is not None and behind is not None:
            background_plate = torch.empty(count, 4, height, width)
            planes(behind[..., :3], background_plate[:, :3].numpy())
            background_plate[:, 3] = torch.from_numpy(behind[..., 3]).float().div_(255)
        instances, generator = None, self.model.generator
        maps = next((t for t in tracks if isinstance(t, LabelMaps)), None)
        if maps is not None and "instances" in generator.reads:
            ids = maps.labels if maps.instances is None else maps.instances
            instances = torch.from_numpy(ids.astype(np.int64))[:, None]
        style = appearance.picture
        if style is not None:
            style = style[None].expand(count, -1, -1, -1)
        references = None
        if chooser is not None:
            track = self.reference_track(tracks)
            references = torch.stack(
                [
                    as_condition(found)
                    for found in candidates(chooser.references, track, chooser(track))
                ]
            )
        condition = Condition(
            signals=signals, references=references,
            clip=torch.full((count,), appearance.clip, dtype=torch.int64),
            background_plate=background_plate,
            style=style,
            instances=instances,
            control_points=torch.cat([track.control_point_tensor() for track in tracks], dim=1),
        )  # fmt: skip
        return generator.complete(condition, self.artifacts, appearance.choices)


def find_model(path: str | Path) -> Path:
    """Find the folder with model.json for a run's name or a path. Raises `CheckpointInvalid`."""
    if not str(path):
        raise UsageError("the model's name is empty", hint="give a run's name or its folder")
    for folder in (Path(path), RUNS / path):
        for candidate in (folder, folder / "model"):
            if (candidate / MODEL_FILE).is_file():
                return candidate
    runs = sorted(found.parent.parent.name for found in RUNS.glob(f"*/model/{MODEL_FILE}"))
    hint = f"trained here: {', '.join(runs)}" if runs else "train one with: v2v train --help"
    if Path(path).exists() or (RUNS / path).exists():
        raise CheckpointInvalid(
            f"{path} contains no model: no {MODEL_FILE} in it or in its model/",
            hint=f"a run saves one within its first minutes; {hint}",
        )
    raise CheckpointInvalid(f"no model {path}: neither {path} nor {RUNS / path} exists", hint=hint)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    usable = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    kind, separator, index = name.partition(":")
    if not usable.get(kind, False) or (separator and not (index.isascii() and index.isdigit())):
        raise UsageError(
            f"no device {name} on this machine",
            hint=f"valid: auto, {', '.join(n for n, available in usable.items() if available)}",
        )
    return name
