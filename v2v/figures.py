"""Save Matplotlib figures reproducibly: the same figure gives the same bytes."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNDATED: dict[str, dict[str, Any]] = {
    "png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}
}  # fmt: skip


def save_figure(figure: Figure, file: IO[bytes], image_format: str) -> None:
    """Write a figure as png, svg or pdf."""
    import matplotlib

    # Without a salt, the ids in an SVG are random.
    with matplotlib.rc_context({"svg.hashsalt": "v2v"}):
        figure.savefig(file, format=image_format, metadata=_UNDATED[image_format])
