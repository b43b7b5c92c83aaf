"""Distances of body keypoints detected on output and real frames."""

from __future__ import annotations

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric


def _pose(pair: ChunkPair) -> Values:
    return measures.pose_statistics(pair.output.detections["pose"], pair.real.detections["pose"])


POSE = FrameStatistic(_pose, detections=("pose",))

METRICS = (
    Metric(
        "pose_error", "pose distance", "lower",
        "distance of detected keypoints in torso lengths, where a person is detected",
        POSE, lambda found: measures.pose_error_of(found).distance,
        family="subject", unit="torsos",
    ),
    Metric(
        "pck", "PCK@0.1", "higher", "fraction of keypoints within 0.1 torso lengths",
        POSE, lambda found: measures.pose_error_of(found).correct, family="subject",
    ),
    Metric(
        "pose_missed", "nobody found", "lower",
        "fraction of frames in which the detector finds a person in the real frame only",
        POSE, lambda found: measures.pose_error_of(found).missed,
        family="subject", unit="%", factor=100, digits=1,
    ),
)  # fmt: skip
