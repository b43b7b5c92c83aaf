"""Frame-by-frame baselines for the sequential generator, trained in the same loop.

Implemented from their papers. They normalise over each picture instead of the batch (a frame must
not depend on its neighbours in a batch), and accept any size with sides of at least 16 pixels. They
ignore the state, so they show the flicker that a video model must remove.
"""

from v2v.errors import UnknownName
from v2v.models.baselines.base import Baseline
from v2v.models.baselines.pix2pix import Pix2Pix
from v2v.models.baselines.pix2pixhd import Pix2PixHD
from v2v.models.baselines.spade import Spade

BASELINES: dict[str, type[Baseline]] = {"pix2pix": Pix2Pix, "pix2pixhd": Pix2PixHD, "spade": Spade}


def build_baseline(name: str, *, channels: int, preset: str, scales: int | None = None) -> Baseline:
    """Build a baseline by name; see `Baseline.build`.

    Raises `UnknownName` for a name or preset that does not exist.
    """
    if name not in BASELINES:
        raise UnknownName.among("baseline", name, BASELINES)
    return BASELINES[name].build(channels=channels, preset=preset, scales=scales)
