"""Losses: tensors in, a float32 scalar out. The objective holds their weights by name.

Every loss is a mean over samples of per-sample means, so a batch may be split across processes.
"""

from v2v.losses.adversarial import (
    AdversarialKind,
    discriminator_loss,
    feature_matching,
    generator_loss,
)
from v2v.losses.perceptual import (
    EfficientNetPerceptual,
    PerceptualLoss,
    PerceptualName,
    PyramidPerceptual,
    VGGPerceptual,
    build_perceptual,
)
from v2v.losses.temporal import (
    confidence,
    flow_loss,
    matte_loss,
    occlusion_loss,
    synthesised_share,
    warp_loss,
)

__all__ = [
    "AdversarialKind",
    "EfficientNetPerceptual",
    "PerceptualLoss",
    "PerceptualName",
    "PyramidPerceptual",
    "VGGPerceptual",
    "build_perceptual",
    "confidence",
    "discriminator_loss",
    "feature_matching",
    "flow_loss",
    "generator_loss",
    "matte_loss",
    "occlusion_loss",
    "synthesised_share",
    "warp_loss",
]
