"""The variant of the sequential generator that a run trains: from its settings and its clips."""

from __future__ import annotations

from typing import Any

from v2v.errors import ConfigError
from v2v.models.generator_settings import (
    DEPARTURE,
    OUTLINE_DEPARTURE,
    TRUST,
    Compose,
    GeneratorSettings,
    Past,
)
from v2v.models.protocol import TrainingData


def reads(settings: GeneratorSettings) -> frozenset[str]:
    """The fields of a condition that it would use; see `Generator.reads_with`."""
    warps = settings.sequential and settings.compose != "none"
    used = {
        "background_plate": settings.background_plate != "off" and settings.prior != "on",
        "style": settings.style == "encoded",
        "control_points": warps and settings.control_points != "off",
        "references": settings.references != "off",
    }
    return frozenset(name for name, uses in used.items() if uses)


def arguments(settings: GeneratorSettings, data: TrainingData) -> dict[str, Any]:
    """Its arguments for a run; see `Generator.arguments`. Raises `ConfigError`."""
    several, references = len(data.folders) > 1, data.references > 0
    style = ("clip" if several else "none") if settings.style == "auto" else settings.style
    return {
        "sequential": settings.sequential, "compose": _compose_mode(settings, data),
        "past": _past_mode(settings, data), "background_plate": data.background_plate,
        "prior": _has_prior(settings, data), "style": style, "clips": len(data.folders),
        "control_points": data.control_points > 0, "references": data.references,
        "motion": data.warped_by, "residual": references and settings.residual,
        "outline": references and data.background_plate, "trust": TRUST,
        "departure": DEPARTURE, "outline_departure": OUTLINE_DEPARTURE[data.warped_by],
    }  # fmt: skip


def _compose_mode(settings: GeneratorSettings, data: TrainingData) -> Compose:
    """How the generator uses the warped past frame.

    References are sharp and aligned. A past frame that was warped repeatedly is neither, and would
    blur the output if it was blended over them.
    """
    wanted = settings.compose
    if wanted != "auto":
        return wanted
    return "condition" if data.references else "blend"


def _past_mode(settings: GeneratorSettings, data: TrainingData) -> Past:
    """Which past inputs the core receives.

    With a static camera the signals describe all motion, and past output frames only add their
    errors; if control points initialise the flow, past signals are not needed either. With a
    moving camera only images show its motion: references if there are any, else past output
    frames.
    """
    if (
        settings.sequential
        and settings.compose == "none"
        and settings.past in ("signals", "nothing")
    ):
        raise ConfigError(
            f"generator.past={settings.past} and generator.compose=none leave no image of the past",
            hint="use generator.sequential=false to render frame by frame",
        )
    if settings.past != "auto":
        return settings.past
    if _compose_mode(settings, data) == "none" or not (data.background_plate or data.references):
        return "frames"
    return "nothing" if data.control_points else "signals"


def _has_prior(settings: GeneratorSettings, data: TrainingData) -> bool:
    wanted = settings.prior
    if wanted == "off" or data.background_plate:
        return False
    if wanted == "on" and not data.foreground:
        raise ConfigError(
            "generator.prior=on needs to know the foreground, but a clip has neither a person mask"
            " nor labels",
            hint=f"add it with: v2v preprocess {data.folders[0]} --signal segmentation",
        )
    return data.foreground
