"""The detectors and networks of an evaluation, and why some metrics are unavailable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2v.errors import EnvironmentProblem, V2VError
from v2v.evaluation.clips import Measured
from v2v.evaluation.detectors import Detector, FrameFormat, detectors_for
from v2v.evaluation.frame_scores import Tools
from v2v.evaluation.metrics import FeatureDistance, Metric, VideoStatistic, all_metrics
from v2v.pipelines.model import LoadedModel
from v2v.signals.traits import LabelMaps
from v2v.weights import have_weights

PERSON = ("background", "person")
PERSON_SEGMENTERS = ("person", "selfie")  # backends with these classes


@dataclass(frozen=True)
class Equipment:
    """The detectors and networks of an evaluation."""

    detectors: Mapping[str, Callable[[], Detector]]
    tools: Tools
    unavailable: dict[str, str]  # metric -> why it cannot be measured


def equipment_for(
    trained: LoadedModel,
    clip: Measured,
    detectors: Mapping[str, Callable[[], Detector]] | None,
    region: NDArray[np.bool_] | None = None,
) -> Equipment:
    """Open what the metrics need, as far as it is available.

    Args:
        detectors: by name; None: those for the model's signals.
        region: [H, W] the measured region.
    """
    height, width = trained.size
    signals = tuple(use.name for use in trained.model.record.signals)
    missing: dict[str, str] = {}  # network or detector -> why it is missing
    segmenter, why = _segmenter(signals, clip)
    if segmenter is None:
        missing["labels"] = why
    if detectors is None:
        detectors = detectors_for(signals, segmenter, FrameFormat(height, width, clip.store.rate))
    networks = _networks(str(trained.device), missing)
    person = PERSON.index("person") if segmenter in PERSON_SEGMENTERS else None
    tools = Tools(networks, person, region)
    reasons = {
        name: _why_unavailable(metric, tools, detectors, missing, signals, (height, width))
        for name, metric in all_metrics().items()
    }
    return Equipment(detectors, tools, {name: why for name, why in reasons.items() if why})


def _networks(device: str, missing: dict[str, str]) -> dict[str, Any]:
    """The networks of all metrics by name; `missing` gets the reasons for unavailable ones."""
    found: dict[str, Any] = {}
    for metric in all_metrics().values():
        network = None if isinstance(metric.statistic, VideoStatistic) else metric.statistic.network
        if network is None or network.name in found or network.name in missing:
            continue
        try:
            found[network.name] = network.open(device)
        except EnvironmentProblem as error:
            missing[network.name] = _sentence(error)
    return found


def _sentence(error: V2VError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _why_unavailable(
    metric: Metric,
    tools: Tools,
    detectors: Collection[str],
    missing: Mapping[str, str],
    signals: tuple[str, ...],
    size: tuple[int, int],
) -> str | None:
    """Why a metric cannot be measured; None if it can be."""
    statistic = metric.statistic
    if isinstance(statistic, FeatureDistance):
        return missing.get(statistic.network.name)
    if isinstance(statistic, VideoStatistic):
        if tools.region is not None:
            return "it measures whole frames only, and a region is given"
        try:
            statistic.check()
        except V2VError as error:
            return _sentence(error)
        return None
    need = tools.lacking(statistic, detectors, *size)
    if need is None:
        return None
    if need == "pixels":
        return (
            f"its windows need sides of {statistic.pixels} pixels; frames are {size[1]}x{size[0]}"
        )
    if need in missing:
        return missing[need]
    if need in ("pose", "face") and need not in signals:
        return f"the model does not render from {need}"
    if need == "person":
        return "the segmenter does not separate the person from the background"
    return "no detector or network for it is available"


def _segmenter(signals: tuple[str, ...], clip: Measured) -> tuple[str | None, str]:
    """The backend that segments rendered frames; or None and the reason."""
    if "pose" in signals:
        return "person", ""
    if "face" in signals:
        return "selfie", ""  # there is no body in view to track
    if "segmentation" not in signals:
        return None, "the model does not render people or label maps"
    record = clip.store.record.signals["segmentation"]
    track = clip.store.track("segmentation", 0, 1)
    assert isinstance(track, LabelMaps)
    if tuple(track.classes) == PERSON:
        return "selfie" if record.backend == "selfie" else "person", ""
    if record.backend in ("deeplab", "lraspp") and have_weights(record.backend):
        return record.backend, ""
    return None, (
        f"no segmenter for these {len(track.classes)} classes is available: labels made by"
        f" {record.backend} cannot be detected on rendered frames"
    )
