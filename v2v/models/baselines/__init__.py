"""Frame-by-frame generators that the sequential one is measured against, in the same loop.

Written from their papers. Where the original normalises over the batch, these do over each picture
(a frame must not depend on its neighbours in a batch), and they take any size with sides of 16
pixels or more. They ignore the state: what flickers in them is what a video model must mend.
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
    """What a model's record says of a baseline: the arguments of `build_baseline`."""

    name: Literal["pix2pix", "pix2pixhd", "spade"]
    channels: Annotated[int, Field(ge=1, le=1024)]
    preset: Literal["mobile", "base", "large", "paper"]
    scales: Annotated[int, Field(ge=1, le=6)] | None = None


def build_baseline(
    name: str, *, channels: int, preset: str, scales: int | None = None
) -> Pix2Pix | Pix2PixHD | Spade:
    """The baseline of that name.

    Args:
        channels: of the signals.
        preset: mobile, base, large, or paper for the size that was published.
        scales: what the sequential generator grows through; baselines have one.

    Raises `UnknownName` for a name or preset that does not exist.
    """
    if name not in BASELINES:
        raise UnknownName.among("baseline", name, BASELINES)
    return BASELINES[name].for_size(channels, preset)
