"""Backward optical flow with occlusion: DIS on the CPU, or RAFT if its weights are available."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from v2v import warp
from v2v.config import PreprocessSettings
from v2v.errors import ConfigError
from v2v.pixels import planes
from v2v.preprocess.extractor import ClipContext, Finished, MapExtractor, Record
from v2v.signals.flow import pack
from v2v.weights import find_weights, have_weights, load_state, torchvision_models

Frame = NDArray[np.uint8]


class Extractor(MapExtractor):
    signal: ClassVar[str] = "flow"

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        super().__init__(settings, clip)
        flow = settings.flow
        # A multiple of 8, the coarsest grid of both methods.
        width, height = (max(round(n * flow.scale / 8) * 8, 16) for n in (clip.width, clip.height))
        self.grid = (width, height)
        device = _device(flow.device)
        self.backend = flow.backend
        if self.backend == "auto":
            self.backend = "dis"
            if device.type == "cuda" and have_weights("raft-large"):
                self.backend = "raft-large"
        if self.backend == "dis":
            self.estimator: Any = Dis(flow.dis_preset)
            self.version = f"opencv {cv2.__version__} {flow.dis_preset}, 1"
        else:
            self.estimator = Raft(self.backend, flow.weights, device)
            self.version = f"torchvision {self.estimator.weights_name}, 1"

    def step(self, index: int, frame: Frame, previous: Frame | None, cut: bool) -> Record:
        width, height = self.grid
        if previous is None or cut:  # no previous frame in the shot: everything is occluded
            flow = np.zeros((2, height, width), np.float32)
            return {"flow.mkv": pack(flow, np.ones((height, width), np.float32))}
        backward, forward = self.estimator(self._resized(previous), self._resized(frame))
        occlusion = warp.occlusion(
            torch.from_numpy(backward)[None], torch.from_numpy(forward)[None]
        )
        return {"flow.mkv": pack(backward, occlusion[0, 0].numpy())}

    def _resized(self, frame: Frame) -> Frame:
        small: Frame = cv2.resize(frame, self.grid, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        return small

    def finish(self, parts: list[Path], folder: Path, shots: list[tuple[int, int]]) -> Finished:
        files = self.join(parts, folder)
        width, height = self.grid
        count = self.clip.count
        return Finished(
            files=files,
            spec={
                "shape": f"u, v, occlusion [{count}, 3, {height}, {width}]",
                "grid": [*self.grid],
            },
            coverage=1 - len(shots) / count,
        )


class Dis:
    """Dense inverse search (Kroeger et al. 2016, arXiv 1603.03590) in OpenCV."""

    def __init__(self, preset: str) -> None:
        presets = {
            "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
            "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
            "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
        }
        self.method: Any = cv2.DISOpticalFlow_create(presets[preset])  # type: ignore[attr-defined]

    def __call__(
        self, previous: Frame, frame: Frame
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Backward and forward flow [2, h, w] in pixels between two RGB frames."""
        before, now = (cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (previous, frame))
        backward, forward = self.method.calc(now, before, None), self.method.calc(before, now, None)
        return tuple(np.ascontiguousarray(f.transpose(2, 0, 1)) for f in (backward, forward))  # type: ignore[return-value]


class Raft:
    """RAFT (Teed and Deng 2020, arXiv 2003.12039) in torchvision."""

    def __init__(self, name: str, weights: Path | None, device: torch.device) -> None:
        from torch import nn

        models = torchvision_models()
        build = {"raft-small": "raft_small", "raft-large": "raft_large"}[name]
        path = find_weights(name) if weights is None else weights
        self.weights_name = path.name
        self.device = device
        self.model: nn.Module = getattr(models.optical_flow, build)(weights=None)
        load_state(self.model, path)
        self.model.eval().to(device)

    @torch.inference_mode()
    def __call__(
        self, previous: Frame, frame: Frame
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        pair = torch.from_numpy(planes(np.stack([previous, frame]))).to(self.device)
        height, width = pair.shape[-2:]
        # The correlation pyramid needs at least 16 cells per side at 1/8 of the size.
        pad = (0, max(128 - width, 0), 0, max(128 - height, 0))
        pair = torch.nn.functional.pad(pair, pad, mode="replicate")
        flows = self.model(pair.flip(0), pair)[-1][..., :height, :width].float().cpu().numpy()
        return flows[0], flows[1]


def _device(name: str) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available()}
    available["mps"] = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available.get(name.split(":")[0], False):
        available_names = ", ".join(kind for kind, present in available.items() if present)
        raise ConfigError(
            f"setting flow.device is {name!r}, which this machine does not have",
            hint=f"use one of {available_names}, or auto",
        )
    return torch.device(name)
