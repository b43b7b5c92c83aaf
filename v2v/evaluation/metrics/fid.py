"""FID, the distance between the features of single frames."""

from __future__ import annotations

from v2v.evaluation.metrics._base import FeatureDistance, Metric, Network
from v2v.evaluation.networks import Inception

METRICS = (
    Metric(
        "fid", "FID", "lower", "Fréchet distance of Inception features of single frames",
        FeatureDistance(Network("inception", Inception), enough=2048, samples="frames"),
        family="picture", digits=1,
    ),
)  # fmt: skip
