"""FVD, the distance between the features of short clips."""

from __future__ import annotations

from v2v.evaluation.metrics._base import FeatureDistance, Metric, Network
from v2v.evaluation.networks import VideoResNet

METRICS = (
    Metric(
        "fvd", "FVD (R3D-18)", "lower", "Fréchet distance of features of torchvision's R3D-18"
        " (Kinetics-400) on 16-frame clips; not comparable with FVD by I3D",
        FeatureDistance(Network("r3d_18", VideoResNet), enough=2048, samples="clips"),
        family="motion", digits=1,
    ),
)  # fmt: skip
