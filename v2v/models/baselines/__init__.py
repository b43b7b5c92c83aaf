"""Frame-by-frame baselines for the sequential generator, trained in the same loop.

Implemented from their papers. They normalise over each picture instead of the batch (a frame must
not depend on its neighbours in a batch), and accept any size with sides of at least 16 pixels. They
ignore the state, so they show the flicker that a video model must remove.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from v2v.config import Config
from v2v.errors import UnknownName
from v2v.models.baselines.pix2pix import Pix2Pix
from v2v.models.baselines.pix2pixhd import Pix2PixHD
from v2v.models.baselines.spade import Spade

BASELINES: dict[str, type[Pix2Pix] | type[Pix2PixHD] | type[Spade]] = {
    "pix2pix": Pix2Pix,
    "pix2pixhd": Pix2PixHD,
    "spade": Spade,
}


class BaselineArguments(Config):
    """The arguments of `build_baseline` in the record of a model."""

    name: Literal["pix2pix", "pix2pixhd", "spade"]
    channels: Annotated[int, Field(ge=1, le=1024)]
    preset: Literal["mobile", "base", "large", "paper"]
    scales: Annotated[int, Field(ge=1, le=6)] | None = None


def build_baseline(
    name: str, *, channels: int, preset: str, scales: int | None = None
) -> Pix2Pix | Pix2PixHD | Spade:
    """Build a baseline by name.

    Args:
        channels: of the signals.
        preset: mobile, base, large, or paper for the published size.
        scales: ignored; baselines have a single scale.

    Raises `UnknownName` for a name or preset that does not exist.
    """
    if name not in BASELINES:
        raise UnknownName.among("baseline", name, BASELINES)
    return BASELINES[name].for_size(channels, preset)
