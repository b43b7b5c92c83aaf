"""Provenance tag of a comparison that contains synthetic clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel

from v2v import __version__
from v2v.evaluation.compare.align import ComparedVideo
from v2v.pipelines.provenance import Provenance


class PanelMark(BaseModel):
    label: str
    mark: Provenance | None


class Composite(Provenance):
    """Provenance tag of a comparison that contains synthetic clips."""

    pipeline: str = "comparison"
    digital_source_type: str = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeSynthetic"
    panels: tuple[PanelMark, ...]

    @classmethod
    def of_clips(cls, clips: Sequence[ComparedVideo]) -> Composite | None:
        """Merge the marks of all clips; None if no clip is marked."""
        marks = [clip.mark for clip in clips if clip.mark is not None]
        if not marks:
            return None

        def all_of(values: Iterable[str]) -> str:
            return ", ".join(dict.fromkeys(values))

        names = ", ".join(clip.label for clip in clips if clip.mark is not None)
        return cls(
            note=f"Contains synthetic video, rendered by a model, not filmed: {names}.",
            tool=f"v2v {__version__}", model=all_of(m.model for m in marks),
            model_sha256=all_of(m.model_sha256 for m in marks),
            trained_on=tuple(dict.fromkeys(name for m in marks for name in m.trained_on)),
            source=all_of(m.source for m in marks),
            source_sha256=all_of(m.source_sha256 for m in marks),
            panels=tuple(PanelMark(label=clip.label, mark=clip.mark) for clip in clips),
        )  # fmt: skip
