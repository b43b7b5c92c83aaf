"""Statistics of the training footage that a model stores, because rendering needs them."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from v2v.data.dataset import ClipDataset
from v2v.data.store import ClipStore
from v2v.signals import load_signal
from v2v.signals.traits import LabelMaps, LabelSignal, PointSignal

STATISTICS = 4096  # frames per clip whose points the model stores
PIECE = 4096  # frames read at a time
LABEL_SAMPLES = 256  # label maps sampled for the fractions of classes


def footage_statistics(windows: ClipDataset, size: tuple[int, int]) -> dict[str, Tensor]:
    """Statistics of the footage that rendering needs, e.g. points to measure body sizes.

    `N.SIGNAL.points` and `.depth`: in stored pixels of clip N; `N.frames`: their frame numbers;
    `N.SIGNAL.share` [256]: the fraction of pixels of each class; `N.style` [3, H, W]: a frame.
    """
    found: dict[str, Tensor] = {}
    for number, (folder, record) in enumerate(windows.records):
        store = ClipStore(folder, record)
        start, stop = windows.clips[number].train
        chosen = np.unique(np.linspace(start, stop - 1, STATISTICS).astype(int))
        found[f"{number}.frames"] = torch.from_numpy(chosen)
        if "style" in windows.extras:
            batch = next(windows.sequence(number, start, start + 1, size=size))
            assert batch.style is not None
            found[f"{number}.style"] = batch.style[0]
        for signal in windows.signals:
            definition = load_signal(signal)
            if isinstance(definition, LabelSignal):
                found[f"{number}.{signal}.share"] = _class_shares(store, signal, start, stop)
            for name in definition.remembered if isinstance(definition, PointSignal) else ():
                parts = []  # in pieces: the face mesh of a long clip does not fit into memory
                for first in range(start, stop, PIECE):
                    end = min(first + PIECE, stop)
                    rows = chosen[(chosen >= first) & (chosen < end)] - first
                    parts.append(getattr(store.track(signal, first, end), name)[rows])
                values = np.ascontiguousarray(np.concatenate(parts), np.float32)
                found[f"{number}.{signal}.{name}"] = torch.from_numpy(values)
    return found


def _class_shares(store: ClipStore, signal: str, start: int, stop: int) -> Tensor:
    """[256] fraction of the pixels of frames `start` to `stop` that belong to each class."""
    counts = np.zeros(256, np.int64)
    for index in np.unique(np.linspace(start, stop - 1, LABEL_SAMPLES).astype(int)):
        track = cast(LabelMaps, store.track(signal, int(index), int(index) + 1))
        counts += np.bincount(track.labels.ravel(), minlength=256)
    return torch.from_numpy((counts / counts.sum()).astype(np.float32))
