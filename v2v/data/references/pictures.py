"""References on disk: RGBA pictures that a user may remove or add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from v2v.data.references.memory import References
from v2v.signals.arrays import check_values
from v2v.signals.traits import ReferenceSignal


def picture_name(clip: int, index: int) -> str:
    return f"{clip}-{index:02}.png"


def write_pictures(folder: Path, clip: int, references: References) -> None:
    """Write references as RGBA pictures, opaque on the person. Raises `OSError`."""
    folder.mkdir(exist_ok=True)
    for index in range(len(references)):
        path = folder / picture_name(clip, index)
        write_picture(path, references.pictures[index], references.masks[index])


def write_picture(path: Path, picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    rgba = np.concatenate([picture, mask[..., None]], axis=-1)
    Image.fromarray(rgba, "RGBA").save(path, format="PNG")


def read_references(
    folder: Path, clip: int, arrays: dict[str, NDArray[Any]], *, signal: ReferenceSignal,
    size: tuple[int, int], whole: bool,
) -> References | None:  # fmt: skip
    """The references of a clip whose pictures are in `folder`; None if none are left.

    Removed pictures are skipped. Raises `ValueError` for a picture that is damaged or not of
    `size` (H, W), and for arrays that do not match the signal.
    """
    layout = signal.layout
    frames = arrays.get("frames")
    if frames is None or frames.dtype != np.int64 or frames.ndim != 1 or not len(frames):
        raise ValueError("frames must be a non-empty int64 array [R]")
    for name, (kind, shape) in layout.items():
        values = arrays.get(name)
        if values is None or values.dtype != kind or values.shape != (len(frames), *shape):
            raise ValueError(f"{name} must be {kind} {[len(frames), *shape]}")
        check_values(name, values)
    existing = [i for i in range(len(frames)) if (folder / picture_name(clip, i)).exists()]
    if not existing:
        return None
    pictures, masks = [], []
    for index in existing:
        path = folder / picture_name(clip, index)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                if image.size != size[::-1] or image.mode != "RGBA":
                    raise ValueError(
                        f"{path.name} is {image.mode} of {image.width}x{image.height}, expected"
                        f" RGBA of {size[1]}x{size[0]}"
                    )
                rgba = np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path.name} cannot be read ({error})") from error
        pictures.append(rgba[..., :3])
        masks.append(rgba[..., 3])
    chosen = {name: arrays[name][existing] for name in layout}
    track = signal.assemble(chosen, width=size[1], height=size[0])
    return References(np.stack(pictures), np.stack(masks), track, frames[existing], whole)
