"""The measured region of the frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.errors import UsageError
from v2v.evaluation.clips import Measured
from v2v.images import read_picture


def read_region(region: str, clips: Sequence[Measured]) -> tuple[NDArray[np.bool_], str]:
    """[H, W] the measured region in the model's pixels, and a note. Raises `UsageError`."""
    placement = clips[0].placement
    if any(clip.placement != placement for clip in clips):
        raise UsageError(
            "--region needs clips of the same size",
            hint="measure them one at a time: --data STORE",
        )
    height, width = placement.source
    mask = np.zeros((height, width), np.uint8)
    numbers = region.split(",")
    if len(numbers) == 4 and all(_is_whole(number) for number in numbers):
        x0, y0, x1, y1 = (int(number) for number in numbers)
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise UsageError(
                f"--region {region} is not inside the {width}x{height} frames",
                hint=f"give x0,y0,x1,y1 with x0 < x1 <= {width} and y0 < y1 <= {height}",
            )
        mask[y0:y1, x0:x1] = 255
    else:
        if not Path(region).is_file():
            raise UsageError(
                f"--region {region} is neither four numbers nor a picture",
                hint="give x0,y0,x1,y1 in pixels, or a mask picture, bright inside the region",
            )
        picture = read_picture(Path(region))
        mask = np.asarray(
            cv2.resize(picture.max(axis=2), (width, height), interpolation=cv2.INTER_NEAREST),
            np.uint8,
        )
    chosen = np.asarray(np.asarray(placement.picture(mask)) > 127)
    if not chosen.any():
        raise UsageError(
            f"--region {region} is empty",
            hint="give a mask picture that is bright inside the region",
        )
    return chosen, (
        f"only {chosen.mean():.0%} of the picture is measured (--region {region}); outside it every"
        " method counts as correct, so compare scores only with scores of the same region. Poses,"
        " faces and labels are detected on whole frames"
    )


def _is_whole(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit()
