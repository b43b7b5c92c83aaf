"""VMAF (Netflix), if the installed ffmpeg supports it."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

from v2v.errors import MissingLibrary
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import Metric, VideoStatistic

EXTRA = "pip install 'v2v[metrics]'"


@cache
def ffmpeg_with_vmaf() -> str:
    """Path of an ffmpeg with libvmaf. Raises `MissingLibrary` if there is none."""
    try:
        import ffmpeg  # noqa: F401 - builds the command line
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingLibrary(f"{error.name} is not installed", hint=EXTRA) from error
    try:
        binary: str = imageio_ffmpeg.get_ffmpeg_exe()
        listed = subprocess.run(
            [binary, "-hide_banner", "-filters"], capture_output=True, text=True, check=True
        ).stdout
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        raise MissingLibrary(f"ffmpeg cannot be run: {error}", hint=_HINT) from error
    if " libvmaf " not in listed:
        raise MissingLibrary(f"{binary} was built without libvmaf", hint=_HINT)
    return binary


_HINT = "set IMAGEIO_FFMPEG_EXE=/path/to/ffmpeg to an ffmpeg with libvmaf"


def vmaf(output: Path, real: Path, work: Path) -> Values:
    """[T] VMAF of the frames common to both videos, 0 to 100 (identical frames: about 97 or more).

    Args:
        work: folder for the log; ffmpeg runs in it, so that the log's path needs no escaping.

    Raises `MissingLibrary` if libvmaf is missing or rejects the videos.
    """
    log = work / "vmaf.json"
    log.unlink(missing_ok=True)
    import ffmpeg

    binary = ffmpeg_with_vmaf()
    luma = (
        ffmpeg.input(str(video.resolve()))
        .video.filter("scale", out_color_matrix="bt709")
        .filter("format", "yuv420p")
        for video in (output, real)
    )
    command = (
        ffmpeg.filter(
            [*luma], "libvmaf", shortest=1, log_fmt="json", log_path=log.name, n_threads=1
        )
        .output("-", format="null")
        .global_args("-hide_banner", "-loglevel", "error", "-nostdin")
        .compile(cmd=binary)
    )
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode or not log.is_file():
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise MissingLibrary(f"libvmaf rejects the videos: {lines[-1]}", hint=None)
    frames = json.loads(log.read_text("utf-8"))["frames"]
    log.unlink()
    return np.asarray([frame["metrics"]["vmaf"] for frame in frames], np.float64)


METRICS = (
    Metric(
        "vmaf", "VMAF", "higher",
        "perceived quality of television (Netflix, by ffmpeg); designed for larger frames",
        VideoStatistic(vmaf, check=ffmpeg_with_vmaf), family="picture", unit="of 100", digits=1,
    ),
)  # fmt: skip
