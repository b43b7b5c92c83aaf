"""VMAF (Netflix), where the ffmpeg that is here has it."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

from v2v.errors import MissingLibrary
from v2v.evaluation.measures import Values


@cache
def ffmpeg_with_vmaf() -> str:
    """The ffmpeg to call. Raises `MissingLibrary` where it was built without libvmaf."""
    import imageio_ffmpeg

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


_HINT = "name an ffmpeg that has it: IMAGEIO_FFMPEG_EXE=/path/to/ffmpeg"


def vmaf(output: Path, real: Path, work: Path) -> Values:
    """[T] VMAF of the frames that both videos have, 0 to 100 (equal frames: about 97 and more).

    Args:
        work: a folder to write the log into; without one of its own ffmpeg would escape paths.

    Raises `MissingLibrary` where there is no libvmaf or it refuses the videos.
    """
    log = work / "vmaf.json"
    log.unlink(missing_ok=True)
    to_luma = "scale=out_color_matrix=bt709,format=yuv420p"
    chain = (
        f"[0:v]{to_luma}[a];[1:v]{to_luma}[b];"
        f"[a][b]libvmaf=shortest=1:log_fmt=json:log_path={log.name}:n_threads=1"
    )
    command = [
        ffmpeg_with_vmaf(), "-hide_banner", "-loglevel", "error", "-nostdin",
        "-i", str(output.resolve()), "-i", str(real.resolve()), "-lavfi", chain, "-f", "null", "-",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode or not log.is_file():
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise MissingLibrary(f"libvmaf refuses the videos: {lines[-1]}", hint=None)
    frames = json.loads(log.read_text("utf-8"))["frames"]
    log.unlink()
    return np.asarray([frame["metrics"]["vmaf"] for frame in frames], np.float64)
