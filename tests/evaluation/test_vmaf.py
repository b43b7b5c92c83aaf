"""VMAF, if this machine's ffmpeg supports it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from v2v.errors import MissingLibrary
from v2v.evaluation.metrics import vmaf as module
from v2v.evaluation.metrics.vmaf import ffmpeg_with_vmaf, vmaf
from v2v.video.write import VideoWriter


@pytest.fixture
def _needs_vmaf() -> None:
    try:
        ffmpeg_with_vmaf()
    except MissingLibrary as error:
        pytest.skip(error.message)


def written(path: Path, frames: np.ndarray) -> Path:
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, rate=Fraction(25), codec="ffv1") as out:
        for frame in frames:
            out.write(frame)
    return path


@pytest.mark.usefixtures("_needs_vmaf")
def test_vmaf_of_identical_and_blurred_frames(
    tmp_path: Path, numbered_frames: Callable[..., np.ndarray]
) -> None:
    """The folder's name contains characters with a special meaning in ffmpeg filters."""
    folder = tmp_path / "it's: a [name]"
    folder.mkdir()
    frames = numbered_frames(6, width=128, height=96)
    real = written(folder / "real.mkv", frames)
    blurred = np.stack([cv2.GaussianBlur(f, (0, 0), 4) for f in frames])
    same = vmaf(written(folder / "same.mkv", frames[:4]), real, folder)
    worse = vmaf(written(folder / "blurred.mkv", blurred), real, folder)
    assert len(same) == 4 and len(worse) == 6
    assert same.min() > 90 and worse.max() < 60
    assert not (folder / "vmaf.json").exists()


def test_an_ffmpeg_without_libvmaf_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg_with_vmaf.cache_clear()
    without = subprocess.CompletedProcess([], 0, stdout=" .. ssim  VV->V  ...", stderr="")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: without)
    with pytest.raises(MissingLibrary, match="without libvmaf"):
        ffmpeg_with_vmaf()
    ffmpeg_with_vmaf.cache_clear()
