"""The result of an evaluation, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2v import __version__
from v2v.evaluation.clips import Measured
from v2v.evaluation.frame_scores import FrameScores
from v2v.evaluation.leakage import Leakage
from v2v.evaluation.methods import REAL, Method
from v2v.evaluation.metrics import all_metrics
from v2v.evaluation.ranking import Place, compare
from v2v.evaluation.statistics import Summary, known

FORMAT = 1


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`."""

    folder: Path  # of the report
    name: str  # of the evaluated model's method
    clips: tuple[Measured, ...]
    methods: tuple[Method, ...]
    summaries: dict[str, dict[str, Summary]]  # method -> metric -> summary
    frame_scores: list[dict[str, FrameScores]]  # per clip: method -> metric -> [frames]
    order: list[Place]  # ranking of the methods without access to the ground truth
    unavailable: dict[str, str]  # metric -> why it was not measured
    notes: tuple[str, ...]
    leakage: tuple[Leakage, ...]  # per clip: measured frames that occur in training
    # Per clip: method -> mean difference (0 to 255) between two renderings of a frame.
    returns: tuple[dict[str, float], ...] = ()

    def against(self, method: str) -> tuple[list[str], list[str], list[str]]:
        """Metrics in which the model is better, worse, or not significantly different."""
        ours, theirs = (
            [methods[name] for methods in self.frame_scores] for name in (self.name, method)
        )
        counts = [clip.count for clip in self.clips]
        return compare(ours, theirs, counts, block=block_of(self.clips))

    def as_json(self) -> dict[str, Any]:
        """The content of report.json; floats are rounded to six significant digits."""
        (main,) = [method.model for method in self.methods if method.name == self.name]
        assert main is not None
        record = main.model.record
        return {
            "format": FORMAT, "tool": f"v2v {__version__}",
            "model": {
                "name": main.name, "row": self.name, "task": record.task, "sha256": main.sha256,
                "width": record.width, "height": record.height,
                "steps": record.training.get("steps"),
            },
            "data": [
                {
                    "name": clip.name, "source": clip.store.record.source.name,
                    "sha256": clip.store.record.source.sha256,
                    "part": "held out" if clip.held_out else "whole",
                    "frames": [clip.start, clip.start + clip.count],
                    "free_running": len(clip.order), "fps": str(clip.store.rate),
                    "in_training": {"moving": leak.moving, "still": leak.still},
                    "differs_on_return": _rounded(again),
                }
                for clip, leak, again in zip(self.clips, self.leakage, self.returns, strict=True)
            ],
            "notes": list(self.notes),
            "measures": {
                m.name: {"title": m.title, "unit": m.unit, "better": m.better, "about": m.about}
                for m in all_metrics().values() if m.name not in self.unavailable
            },
            "unavailable": self.unavailable,
            "rows": {
                method.name: {
                    "what": method.what, "given_the_truth": method.uses_ground_truth,
                    "measures": {
                        name: _rounded(found.as_json())
                        for name, found in self.summaries[method.name].items()
                    },
                }
                for method in self.methods
            },
            "order": [
                {"row": place.method, "faults": list(place.faults), "rank": _rounded(place.rank),
                 "groups": _rounded(place.groups)}
                for place in self.order
            ],
            "against": {
                method.name: dict(zip(("better", "worse", "same"), found, strict=True))
                for method in self.methods
                if method.name not in (self.name, REAL)
                for found in [self.against(method.name)]
            },
            "courses": [
                {
                    method: {name: _rounded(values.tolist()) for name, values in scores.items()}
                    for method, scores in methods.items()
                }
                for methods in self.frame_scores
            ],
        }  # fmt: skip


def _rounded(value: Any) -> Any:
    """Round floats to six significant digits; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if not isinstance(value, float):
        return value
    number = known(value)
    return None if number is None else float(f"{number:.6g}")


def block_of(clips: Sequence[Measured]) -> int:
    """Bootstrap block length in frames: one second, within which errors are correlated."""
    return max(round(float(clips[0].store.rate)), 1)
