"""Errors of face meshes detected on output and real frames."""

from __future__ import annotations

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric


def _face(pair: ChunkPair) -> Values:
    return measures.face_statistics(pair.output.detections["face"], pair.real.detections["face"])


FACE = FrameStatistic(_face, detections=("face",))

METRICS = (
    Metric(
        "face_error", "face NME", "lower",
        "error of the detected mesh in eye distances, where a face is detected",
        FACE, lambda found: measures.face_error_of(found).distance,
        family="subject", unit="eye distances",
    ),
    Metric(
        "eyes", "eyes r", "higher", "correlation of the openness of the eyes",
        FACE, lambda found: measures.face_error_of(found).eyes, family="subject",
    ),
    Metric(
        "mouth", "mouth r", "higher", "correlation of the openness of the mouth",
        FACE, lambda found: measures.face_error_of(found).mouth, family="subject",
    ),
    Metric(
        "face_missed", "no face found", "lower",
        "fraction of frames in which the detector finds a face in the real frame only",
        FACE, lambda found: measures.face_error_of(found).missed,
        family="subject", unit="%", factor=100, digits=1,
    ),
)  # fmt: skip
