"""Checks of the installation: one per library; a failed check does not stop the others.

Importing this module is cheap: each check loads its library itself.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

State = Literal["ok", "warn", "fail"]
LEAST_DISK, ENOUGH_DISK = 1.0, 10.0  # GB; a minute of 512x512 takes 0.1, a training run a few
MODELS = (  # files in MediaPipe's wheel that preprocessing needs
    "pose_detection/pose_detection.tflite",
    "pose_landmark/pose_landmark_full.tflite",
    "face_detection/face_detection_short_range.tflite",
    "face_detection/face_detection_full_range_sparse.tflite",
    "face_landmark/face_landmark_with_attention.tflite",
    "hand_landmark/hand_landmark_full.tflite",
    "selfie_segmentation/selfie_segmentation.tflite",
)
SYSTEM_LIBRARIES = {
    "libGL.so": "libgl1",
    "libglib-2": "libglib2.0-0",
    "libgthread": "libglib2.0-0",
    "libEGL": "libegl1",
    "libGLES": "libgles2",
}


@dataclass(frozen=True)
class Check:
    """A finding; `advice` is what to do about it, or None."""

    name: str
    state: State
    found: str
    advice: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check_installation() -> list[Check]:
    """Run all checks, in the order in which to fix failures. Takes a few seconds."""
    checks: tuple[tuple[str, Callable[[], Check | list[Check]]], ...] = (
        ("python", _python),
        ("torch", _torch),
        ("torchvision", _torchvision),
        ("opencv", _opencv),
        ("mediapipe", _mediapipe),
        ("codecs", _codecs),
        ("decord", _decord),
        ("ffmpeg", _ffmpeg),
        ("weights", _weights),
        ("disk", _disk),
        ("folder", _folder),
    )
    results: list[Check] = []
    for name, check in checks:
        found = _run_check(name, check)
        results += found if isinstance(found, list) else [found]
    return results


def render(checks: list[Check], console: Console) -> None:
    """Print one line per check, with the advice below it."""
    from rich.markup import escape
    from rich.table import Table

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        text = escape(check.found)
        if check.advice:
            text += f"\n[dim]{escape(check.advice)}[/dim]"
        table.add_row(f"[{colours[check.state]}]{check.state}[/]", check.name, text)
    console.print(table, highlight=False)


def _run_check(name: str, check: Callable[[], Check | list[Check]]) -> Check | list[Check]:
    try:
        return check()
    except Exception as error:  # a broken library can raise anything
        text = str(error).strip().splitlines()
        first = text[0] if text else ""
        return Check(name, "fail", f"{type(error).__name__}: {first}"[:300], _advice(name, error))


def _advice(name: str, error: Exception) -> str:
    for library, package in SYSTEM_LIBRARIES.items():
        if library in str(error):
            return f"on Debian or Ubuntu: sudo apt install {package}"
    # Checks whose name differs from that of the package.
    package = {
        "opencv": '"opencv-contrib-python>=4.11,<5"',
        "mediapipe": "mediapipe==0.10.21",
        "codecs": "av",
        "decord": "decord2",
        "weights": "torchvision",
    }.get(name, name)
    return f"reinstall it: pip install --force-reinstall --no-deps {package}"


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check("python", "ok", version)
    return Check(
        "python", "fail", version, "create an environment with Python 3.11 or 3.12: MediaPipe"
        " 0.10.21 supports no other version",
    )  # fmt: skip


def _torch() -> Check:
    import torch

    threads = f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        gpus = ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names)
        return Check("torch", "ok", f"{torch.__version__}, cuda: {gpus}, {threads}")
    if torch.backends.mps.is_available():
        return Check("torch", "ok", f"{torch.__version__}, mps, {threads}")
    advice = "preprocessing runs well on a CPU; training is much faster on a GPU"
    if shutil.which("nvidia-smi"):
        build = (
            "built without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
        )
        advice = (
            f"an NVIDIA driver is installed, but this torch ({build}) finds no GPU: install the"
            " build for your driver, see pytorch.org/get-started"
        )
    return Check("torch", "warn", f"{torch.__version__}, cpu, {threads}", advice)


def _torchvision() -> Check:
    # Works around builds that do not match.
    from v2v.weights import torchvision_models

    torchvision_models()
    import torch
    import torchvision
    from torchvision.extension import _has_ops

    if _has_ops():
        return Check("torchvision", "ok", torchvision.__version__)
    return Check(
        "torchvision", "warn",
        f"{torchvision.__version__}, not built for torch {torch.__version__}",
        "v2v works with it; to fix it, install torch and torchvision from the same index",
    )  # fmt: skip


def _opencv() -> Check:
    import cv2

    distributions = [
        name
        for name in ("opencv-python", "opencv-contrib-python", "opencv-python-headless",
                     "opencv-contrib-python-headless")
        if _version(name)
    ]  # fmt: skip
    if len(distributions) > 1:
        return Check(
            "opencv", "warn", f"{cv2.__version__}, from {' and '.join(distributions)}",
            "they overwrite each other's files; keep one: pip uninstall -y"
            f" {' '.join(distributions)} && pip install 'opencv-contrib-python>=4.11,<5'",
        )  # fmt: skip
    if not hasattr(cv2, "DISOpticalFlow_create"):
        return Check(
            "opencv", "fail", f"{cv2.__version__} lacks DIS flow", _advice("opencv", OSError())
        )
    return Check("opencv", "ok", cv2.__version__)


def _mediapipe() -> Check:
    os.environ.setdefault("GLOG_minloglevel", "2")
    import mediapipe

    version = _version("mediapipe") or "unknown"
    modules = Path(mediapipe.__file__).parent / "modules"
    missing = [model for model in MODELS if not (modules / model).is_file()]
    if missing:
        return Check(
            "mediapipe", "fail", f"{version} lacks {', '.join(Path(m).name for m in missing)}",
            _advice("mediapipe", OSError()),
        )  # fmt: skip
    if version != "0.10.21":
        return Check(
            "mediapipe", "warn", version, "v2v is tested with the models of 0.10.21:"
            " pip install mediapipe==0.10.21",
        )  # fmt: skip
    return Check("mediapipe", "ok", f"{version}, {len(MODELS)} models inside the wheel")


def _codecs() -> Check:
    import av

    needed = (("libx264", "w"), ("ffv1", "w"), ("ffv1", "r"), ("h264", "r"))
    foreign = ("hevc", "vp9", "av1", "prores", "mjpeg")
    missing = [
        f"{name} {_CODEC_KINDS[mode]}" for name, mode in needed if not _has_codec(name, mode)
    ]
    if missing:
        return Check(
            "codecs", "fail", f"PyAV {av.__version__} lacks {', '.join(missing)}",
            "install PyAV's own wheel, which includes them: pip install --force-reinstall av",
        )  # fmt: skip
    unreadable = [name for name in foreign if not _has_codec(name, "r")]
    if unreadable:
        return Check(
            "codecs", "warn", f"PyAV {av.__version__} cannot read {', '.join(unreadable)}",
            "convert such footage to H.264 first, or pip install --force-reinstall av",
        )  # fmt: skip
    return Check(
        "codecs",
        "ok",
        f"PyAV {av.__version__}: writes H.264, FFV1; reads those, {', '.join(foreign)}",
    )


_CODEC_KINDS = {"r": "decoder", "w": "encoder"}


def _has_codec(name: str, mode: Any) -> bool:
    import av

    try:
        av.Codec(name, mode)
    except ValueError:  # UnknownCodecError is a ValueError
        return False
    return True


def _decord() -> Check:
    import decord
    import numpy as np

    from v2v.video.write import VideoWriter

    with tempfile.TemporaryDirectory() as folder:
        from fractions import Fraction

        path = Path(folder) / "two.mp4"
        with VideoWriter(path, width=64, height=64, rate=Fraction(25)) as video:
            for grey in (40, 200):
                video.write(np.full((64, 64, 3), grey, np.uint8))
        frames = decord.VideoReader(str(path), num_threads=1).get_batch([0, 1]).asnumpy()
    means = frames.reshape(2, -1).mean(axis=1)
    version = _version("decord2") or _version("decord") or "unknown"
    if np.abs(means - (40, 200)).max() > 6:
        return Check(
            "decord", "fail", f"{version} decodes frames incorrectly", _advice("decord", OSError())
        )
    return Check("decord", "ok", f"{version}, decodes what v2v writes")


def _ffmpeg() -> Check:
    try:
        import imageio_ffmpeg
    except ImportError:
        return Check(
            "ffmpeg", "warn", "missing: no VMAF in v2v evaluate", "pip install 'v2v[metrics]'"
        )
    path = imageio_ffmpeg.get_ffmpeg_exe()
    return Check("ffmpeg", "ok", f"{imageio_ffmpeg.get_ffmpeg_version()} at {path}")


def _weights() -> list[Check]:
    from v2v.errors import WeightsUnavailable
    from v2v.weights import ENUMS, find_weights

    checks = []
    for name in ENUMS:
        try:
            path = find_weights(name)
        except WeightsUnavailable as error:
            checks.append(Check(f"weights: {name}", "warn", error.message, error.hint))
        else:
            checks.append(Check(f"weights: {name}", "ok", str(path)))
    return checks


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    text = f"{free:.1f} GB free in {Path.cwd()}"
    if free >= ENOUGH_DISK:
        return Check("disk", "ok", text)
    advice = "a minute of 512x512 footage takes about 0.1 GB, a training run a few GB"
    return Check("disk", "warn" if free >= LEAST_DISK else "fail", text, advice)


def _folder() -> Check:
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        return Check(
            "folder", "fail", f"{here} is not writable ({error.strerror})",
            "change to a folder that you can write to, or give --output",
        )  # fmt: skip
    return Check("folder", "ok", f"{here} is writable")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
