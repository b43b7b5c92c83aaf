"""v2v: video-to-video synthesis from your own footage.

>>> import v2v
>>> store = v2v.open_store("data/dance")
>>> print(store)                                    # shapes and coverage
>>> window = store.window(0, 8, signals=["pose"], size=256)
>>> window.frames.shape, window.signals["pose"].shape
(torch.Size([8, 3, 256, 256]), torch.Size([8, 3, 256, 256]))
>>> model = v2v.load_model("runs/b")
>>> print(model)                                    # task, size, signals, clips
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from v2v.errors import V2VError

__version__ = "0.1.0"
__all__ = ["V2VError", "__version__", "load_model", "open_store"]

# In a checkout, the other packages are beside this folder; once installed, they are inside it.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").exists():
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from v2v.checkpoint import Model
    from v2v.data.store import ClipStore


def open_store(path: str | Path) -> ClipStore:
    """Open a clip store; see `v2v.data.store.ClipStore.open`."""
    from v2v.data.store import ClipStore  # loads pydantic and numpy on first use only

    return ClipStore.open(path)


def load_model(path: str | Path, *, device: str = "cpu") -> Model:
    """Load a run's model; see `v2v.checkpoint.load_model`."""
    from v2v.checkpoint import load_model

    return load_model(path, device=device)
