"""PSNR and sharpness of the person, and PSNR of the background."""

from __future__ import annotations

import torch

from v2v.evaluation import measures
from v2v.evaluation.measures import Values
from v2v.evaluation.metrics._base import ChunkPair, FrameStatistic, Metric
from v2v.evaluation.metrics.psnr import HIGHEST


def _person(pair: ChunkPair) -> Values:
    """[T, 3] PSNR and sharpness inside the real frame's person mask, and PSNR outside it."""
    person = torch.from_numpy(pair.real.detections["labels"] == pair.real.person)
    where, rest = person & pair.real.counted, ~person & pair.real.counted
    ours, real = pair.output.new, pair.real.new
    inside, outside = (
        measures.psnr_within(ours, real, w).clamp(max=HIGHEST) for w in (where, rest)
    )
    sharp = measures.sharpness(ours, real, where)
    return torch.stack([inside, sharp, outside], dim=1).double().numpy()


PERSON = FrameStatistic(_person, detections=("labels",), person=True)

METRICS = (
    Metric(
        "person_psnr", "PSNR of the person", "higher",
        "pixel error where the real frame shows a person, without the static background",
        PERSON, lambda found: found[:, 0], family="picture", unit="dB", digits=2,
    ),
    Metric(
        "person_sharpness", "sharpness of the person", "one", "sharpness in the person mask",
        PERSON, lambda found: found[:, 1], family="picture",
    ),
    Metric(
        "background_psnr", "PSNR of the background", "higher",
        "pixel error where the real frame shows no person",
        PERSON, lambda found: found[:, 2], family="picture", unit="dB", digits=2,
    ),
)  # fmt: skip
