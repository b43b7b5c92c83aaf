"""Agreement of label maps detected on output and real frames."""

from __future__ import annotations

import numpy as np

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric


def _labels(pair: ChunkPair) -> Values:
    """[T, 2] pixel accuracy and mean IoU."""
    ours, real = pair.output.detections["labels"], pair.real.detections["labels"]
    return np.stack(measures.label_agreement(ours, real), axis=1)


LABELS = FrameStatistic(_labels, detections=("labels",))

METRICS = (
    Metric(
        "label_accuracy", "pixel accuracy", "higher",
        "agreement of output and real labels from the same segmenter",
        LABELS, lambda found: found[:, 0], family="subject",
    ),
    Metric(
        "label_iou", "mean IoU", "higher",
        "intersection over union of the same labels, mean over the classes present",
        LABELS, lambda found: found[:, 1], family="subject",
    ),
)  # fmt: skip
