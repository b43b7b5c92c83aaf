"""v2v: video-to-video synthesis from your own footage.

>>> import v2v
>>> store = v2v.build_store("dance.mp4", signals="pose")  # frames and signals, in data/dance
>>> v2v.train(store, name="b", task="pose", minutes=60)   # a model, in runs/b
>>> transfer = v2v.MotionTransfer.from_pretrained("b")
>>> transfer("other.mp4", end=10).save("out.mp4")
>>> v2v.evaluate("b").folder                              # report.html and report.json

Everything takes paths and text. Progress appears in a terminal and in a notebook; `report=` takes
another reporter (`v2v.progress`). The logger "v2v" carries stages, notes and failures. Errors are
subclasses of `V2VError` (`v2v.errors`). docs/python.md is a complete example.

Importing `v2v` loads nothing else: the names below are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2v.errors import V2VError

__version__ = "0.1.0"
__all__ = [
    "FaceReenactment",
    "FramePrediction",
    "LabelToVideo",
    "MotionTransfer",
    "V2VError",
    "__version__",
    "build_store",
    "build_stores",
    "evaluate",
    "load_model",
    "open_store",
    "train",
    "train_predictor",
]

# In a checkout, the other packages are beside this folder; once installed, they are inside it.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").exists():
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from v2v.api import (
        build_store,
        build_stores,
        evaluate,
        load_model,
        open_store,
        train,
        train_predictor,
    )
    from v2v.pipelines.face_reenactment import FaceReenactment
    from v2v.pipelines.frame_prediction import FramePrediction
    from v2v.pipelines.label_to_video import LabelToVideo
    from v2v.pipelines.motion_transfer import MotionTransfer

_API = (
    "build_store", "build_stores", "evaluate", "load_model", "open_store", "train",
    "train_predictor",
)  # fmt: skip
_HOMES = {
    **dict.fromkeys(_API, "v2v.api"),
    "FaceReenactment": "v2v.pipelines.face_reenactment",
    "FramePrediction": "v2v.pipelines.frame_prediction",
    "LabelToVideo": "v2v.pipelines.label_to_video",
    "MotionTransfer": "v2v.pipelines.motion_transfer",
}
_MODULES = ("errors", "progress")


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"v2v.{name}")
    else:
        raise AttributeError(f"module 'v2v' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
