"""MediaPipe graphs with only the networks that a signal needs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2v.errors import MissingLibrary

Frame = NDArray[np.uint8]

# Body and hands from the same subgraphs as the Holistic solution, so with the same keypoints, but
# without its face network: a fifth faster. Hands are detected near the wrists, so small ones are
# found and left and right are not swapped.
_BODY_GRAPH = """
input_stream: "image"
output_stream: "pose_landmarks"
output_stream: "left_hand_landmarks"
output_stream: "right_hand_landmarks"
node {
  calculator: "PoseLandmarkCpu"
  input_stream: "IMAGE:image"
  input_side_packet: "MODEL_COMPLEXITY:model_complexity"
  input_side_packet: "SMOOTH_LANDMARKS:smooth_landmarks"
  input_side_packet: "ENABLE_SEGMENTATION:enable_segmentation"
  input_side_packet: "SMOOTH_SEGMENTATION:smooth_segmentation"
  input_side_packet: "USE_PREV_LANDMARKS:use_prev_landmarks"
  output_stream: "LANDMARKS:pose_landmarks"
  output_stream: "SEGMENTATION_MASK:segmentation_mask"
}
"""
_HANDS_NODE = """
node {
  calculator: "HandLandmarksLeftAndRightCpu"
  input_stream: "IMAGE:image"
  input_stream: "POSE_LANDMARKS:pose_landmarks"
  output_stream: "LEFT_HAND_LANDMARKS:left_hand_landmarks"
  output_stream: "RIGHT_HAND_LANDMARKS:right_hand_landmarks"
}
"""


@cache
def mediapipe() -> Any:
    """Import the package on first use: it takes a second and logs to the terminal."""
    try:
        import mediapipe as package
    except ImportError as error:
        raise MissingLibrary(
            f"mediapipe cannot be loaded: {error}",
            hint="on Debian or Ubuntu: sudo apt install libgl1 libegl1 libgles2;"
            " then run `v2v doctor`",
        ) from error
    return package


def body_graph(*, hands: bool, mask: bool, min_detection: float, min_tracking: float) -> Any:
    """A graph that tracks one body: `process(rgb)` returns pose and hand landmarks or None.

    It keeps the region of the previous frame; create a new graph to search the whole frame again.
    """
    mp = mediapipe()
    from google.protobuf import text_format
    from mediapipe.framework import calculator_pb2
    from mediapipe.python.solution_base import SolutionBase

    text, outputs = _BODY_GRAPH, ["pose_landmarks"]
    if hands:
        text += _HANDS_NODE
        outputs += ["left_hand_landmarks", "right_hand_landmarks"]
    else:
        for side in ("left", "right"):
            text = text.replace(f'output_stream: "{side}_hand_landmarks"\n', "")
    if mask:
        text = text.replace(
            'output_stream: "pose_landmarks"\n',
            'output_stream: "pose_landmarks"\noutput_stream: "segmentation_mask"\n', 1,
        )  # fmt: skip
        outputs.append("segmentation_mask")
    return SolutionBase(
        graph_config=text_format.Parse(text, calculator_pb2.CalculatorGraphConfig()),
        side_inputs={
            "model_complexity": 1, "smooth_landmarks": False, "enable_segmentation": mask,
            "smooth_segmentation": False, "use_prev_landmarks": True,
        },
        calculator_params=_thresholds(mp, min_detection, min_tracking),
        outputs=outputs,
    )  # fmt: skip


def _thresholds(mp: Any, min_detection: float, min_tracking: float) -> dict[str, float]:
    inner = "poselandmarkcpu__"
    return {
        f"{inner}posedetectioncpu__TensorsToDetectionsCalculator.min_score_thresh": min_detection,
        f"{inner}poselandmarkbyroicpu__tensorstoposelandmarksandsegmentation__"
        "ThresholdingCalculator.threshold": min_tracking,
    }


def points(landmarks: Any, width: int, height: int) -> NDArray[np.float32]:
    """[N, 4] x, y, z in pixels and score of a landmark list; a missing score is 1."""
    landmark_list = landmarks.landmark
    out = np.array([(p.x, p.y, p.z, 1.0) for p in landmark_list], np.float32)
    out[:, :3] *= (width, height, width)
    # MediaPipe's solutions clear unreliable fields; our own graphs keep both.
    for name in ("visibility", "presence"):
        if landmark_list[0].HasField(name):
            out[:, 3] = np.minimum(out[:, 3], [getattr(p, name) for p in landmark_list])
    return out


def box_of(points_xy: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Bounding box of points [N, 2]: x, y, width, height."""
    low, high = points_xy.min(axis=0), points_xy.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])
