"""The metrics of `v2v evaluate`: one module each, and those of installed packages.

A module lists its metrics in `METRICS`. Packages name such modules in the entry point group
`v2v.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from types import MappingProxyType

from v2v.errors import MissingLibrary
from v2v.evaluation.metrics._base import (
    ChunkPair,
    FeatureDistance,
    FrameChunk,
    FrameStatistic,
    Metric,
    Network,
    VideoStatistic,
)

__all__ = [
    "ChunkPair", "FeatureDistance", "FrameChunk", "FrameStatistic", "Metric", "Network",
    "VideoStatistic", "all_metrics",
]  # fmt: skip

ENTRY_POINTS = "v2v.metrics"
ORDER = (  # of the rows in the report; other metrics follow
    "psnr", "ssim", "ms_ssim", "lpips", "vmaf", "sharpness", "person", "tof", "tlp", "flicker",
    "warping_error", "frame_difference", "pose", "face", "labels", "fid", "fvd",
)  # fmt: skip


@cache
def all_metrics() -> Mapping[str, Metric]:
    """All metrics by name: the built-in ones, then those of installed packages.

    Raises `MissingLibrary` if an installed package cannot be loaded or uses a name that is taken.
    """
    found = {metric.name: metric for metric in _own()}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            metrics: tuple[Metric, ...] = tuple(entry.load().METRICS)
        except Exception as error:  # whatever the package's code raises
            raise MissingLibrary(
                f"the metrics of the installed package {entry.value} cannot be loaded: {error!r}",
                hint="repair or uninstall the package",
            ) from error
        for metric in metrics:
            if found.setdefault(metric.name, metric) is not metric:
                raise MissingLibrary(
                    f"the installed package {entry.value} redefines the metric {metric.name}",
                    hint="rename the metric, or uninstall the package",
                )
    return MappingProxyType(found)


def _own() -> Iterator[Metric]:
    names = [module.name for module in iter_modules(__path__) if not module.name.startswith("_")]
    names.sort(key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    for name in names:
        yield from import_module(f"{__name__}.{name}").METRICS
