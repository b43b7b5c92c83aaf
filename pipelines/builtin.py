"""The built-in pipelines as the command line sees them.

They are declared here rather than beside their classes because those modules import PyTorch, which
takes seconds, and `v2v --help` reads all declarations.
"""

from __future__ import annotations

from typing import Any

from v2v.defaults import PREDICTED_FRAMES
from v2v.errors import UsageError
from v2v.pipelines.registry import RANGE, Option, PipelineSpec

STRENGTHS = ("rotation", "translation", "scale", "expression", "gaze", "blink")


def pairs(option: str, given: list[str] | None) -> dict[str, str]:
    """NAME=VALUE, repeated, as a mapping. Raises `UsageError`."""
    found = {}
    for item in given or []:
        name, separator, value = item.partition("=")
        if not (name and separator and value):
            raise UsageError(f"cannot read {option} {item}", hint=f"write {option} NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


TRANSFER = PipelineSpec(
    command="transfer",
    load="v2v.pipelines.motion_transfer:MotionTransfer",
    signals=("pose",),
    task="pose",
    driven=True,
    common=RANGE | {"clip", "camera"},
    options=(
        Option(
            "retarget", "limbs: the target's bone lengths; global: position and size; none: as"
            " filmed.", default="limbs", choices=("limbs", "global", "none"),
        ),
    ),
    help="""
Motion transfer: the person that a model was trained on moves like the one in the source.

The source is footage or a clip store. Its skeleton is retargeted to the target's bone lengths,
position and floor. Sound and frame rate come from the source. Run the same command again to
resume after a stop.

**Examples**

    v2v transfer --source a.mp4 --target-model b

    v2v transfer --source a.mp4 --target-model b --preview

    v2v transfer --source data/a --target-model b --start 2 --end 10 --compare -o dance.mp4

    v2v transfer --source a.mp4 --target-model b --retarget global --size 720

    v2v transfer --source a.mp4 --target-model b --camera-path target
""",
)  # fmt: skip


def _face_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Six strengths as one argument; an unlimited translation only if it is given."""
    from v2v.pipelines.retarget.face import Strengths

    strengths = {name: values.pop(name) for name in STRENGTHS}
    stay = strengths["translation"] is None
    strengths["translation"] = 1.0 if stay else strengths["translation"]
    parts = {}
    for name, text in pairs("--part", values.pop("part")).items():
        try:
            parts[name] = float(text)
        except ValueError:
            raise UsageError(
                f"cannot read --part {name}={text}", hint="write a number, such as face=0.9"
            ) from None
    return {**values, "strengths": Strengths(**strengths), "parts": parts, "stay": stay}


_STRENGTH = "0: neutral; 1: as the source; up to 2."
REENACT = PipelineSpec(
    command="reenact",
    load="v2v.pipelines.face_reenactment:FaceReenactment",
    signals=("face",),
    task="face",
    driven=True,
    common=RANGE | {"clip", "camera"},
    options=(
        Option("absolute", "Use the source's head rotation, position and size.", bool, False),
        Option("rotation", _STRENGTH, float, 1.0),
        Option("translation", "As above. [default: 1, or less to stay in the trained area]", float),
        Option("scale", _STRENGTH, float, 1.0),
        Option("expression", _STRENGTH, float, 1.0),
        Option("gaze", _STRENGTH, float, 1.0),
        Option("blink", _STRENGTH, float, 1.0),
        Option(
            "part", "Scale of a part of the face (face, eyes, brows, nose or mouth), 0.7 to 1.3:"
            " face=0.9 is slimmer.", repeat=True,
        ),
        Option(
            "neutral", "The source's neutral moment, in seconds or hh:mm:ss. [default: found]",
            "time",
        ),
    ),
    prepare=_face_arguments,
    help="""
Face re-enactment: the face that a model was trained on moves like the one in the source.

Motion is relative to a neutral moment, which is found in the source and in the training clip, so
the target keeps its own head posture. Sound and frame rate come from the source.

**Examples**

    v2v reenact --source a.mp4 --target-model b

    v2v reenact --source a.mp4 --target-model b --rotation 0.5 --blink 1.2

    v2v reenact --source a.mp4 --target-model b --absolute --compare

    v2v reenact --source a.mp4 --target-model b --part face=0.9 --part eyes=1.1
""",
)  # fmt: skip


def _label_arguments(values: dict[str, Any]) -> dict[str, Any]:
    replaced = pairs("--replace", values["replace"])
    return {**values, "replace": replaced, "style": values["style"] or ()}


SYNTHESIZE = PipelineSpec(
    command="synthesize",
    load="v2v.pipelines.label_to_video:LabelToVideo",
    signals=("segmentation",),
    task="street",
    input=Option("labels", "A folder of maps, or a clip store."),
    options=(
        Option(
            "replace", "Render one class as another: vegetation=building; repeatable.", repeat=True
        ),
        Option(
            "style", "Appearance, if the model supports it: a training clip, a picture, or"
            " CLASS=NUMBER for a cluster.", repeat=True,
        ),
        Option("fps", "Frame rate of the maps. [default: the training clip's]"),
    ),
    prepare=_label_arguments,
    help="""
Label maps to video: the street that a model was trained on, with the layout of the maps.

The maps are a clip store's segmentation, or a folder of PNGs, one per frame.

**Examples**

    v2v synthesize --labels street/labels --target-model berlin

    v2v synthesize --labels data/street --target-model berlin --replace vegetation=building

    v2v synthesize --labels data/street --target-model berlin --style car=3 --style photo.jpg
""",
)  # fmt: skip


def _prediction_arguments(values: dict[str, Any]) -> dict[str, Any]:
    compare, look = values.pop("compare"), values.pop("clip")
    return {**values, "hold_back": compare and values["at"] is None, "look": look}


PREDICT_FRAMES = PipelineSpec(
    command="predict-frames",
    load="v2v.pipelines.frame_prediction:FramePrediction",
    input=Option("input", "Footage, or a clip store.", short="i"),
    model=Option("model", "A run's name, or its folder.", short="m"),
    options=(
        Option("frames", "Frames to predict.", int, PREDICTED_FRAMES, short="n"),
        Option(
            "at", "Moment to predict from, in seconds or hh:mm:ss. [default: the end; with"
            " --compare, the predicted frames before it]", "time",
        ),
        Option("compare", "Show the real next frames beside it; measure errors.", bool, False),
    ),
    common=frozenset({"clip"}),
    previews=False,
    prepare=_prediction_arguments,
    errors=lambda predicted: predicted.errors() if predicted.known else {},
    help="""
Frame prediction: continue a clip of the scene that a model was trained on.

The next signals are predicted from the past ones, then rendered, starting from the last real
frames. The model needs a predictor: `v2v train --task predict --data CLIP --name b`. With
`--compare`, the last frames of the clip are held out and shown beside the prediction, and the error
per frame is printed.

**Examples**

    v2v predict-frames --model b --input clip.mp4 --frames 30

    v2v predict-frames --model b --input data/street --at 1.5 --compare
""",
)  # fmt: skip

BUILT_IN = (TRANSFER, REENACT, SYNTHESIZE, PREDICT_FRAMES)
