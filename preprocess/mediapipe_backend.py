"""MediaPipe 0.10.21, whose wheel has its models inside: the only module that imports it.

Later versions have neither bundled models nor `solutions`. Graphs have only the networks that a
signal needs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2v.errors import MissingLibrary
from v2v.preprocess.detectors import (
    Backend,
    Body,
    BodyDetector,
    Box,
    FaceBoxDetector,
    FaceDetector,
    Frame,
    PersonMaskDetector,
    Points,
)

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
def _package() -> Any:
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


class MediaPipe(Backend):
    """See `Backend`."""

    def __init__(self) -> None:
        self.solutions = _package().solutions

    def body(
        self, *, hands: bool, mask: bool, min_detection: float, min_tracking: float
    ) -> BodyDetector:
        return _Graph(hands, mask, min_detection, min_tracking)

    def still_body(self) -> BodyDetector:
        return _StillBody(self.solutions.pose.Pose(static_image_mode=True))

    def face(
        self,
        *,
        tracking: bool,
        irises: bool = True,
        min_detection: float = 0.5,
        min_tracking: float = 0.5,
    ) -> FaceDetector:
        return _Face(
            self.solutions.face_mesh.FaceMesh(
                static_image_mode=not tracking, refine_landmarks=irises, max_num_faces=1,
                min_detection_confidence=min_detection, min_tracking_confidence=min_tracking,
            )
        )  # fmt: skip

    def face_boxes(self, *, min_detection: float = 0.5) -> FaceBoxDetector:
        return _FaceBoxes(
            self.solutions.face_detection.FaceDetection(
                model_selection=1, min_detection_confidence=min_detection
            )
        )

    def person_mask(self) -> PersonMaskDetector:
        return _Selfie(self.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0))


class _Network:
    """A MediaPipe solution: `process(frame)` and `close()`."""

    def __init__(self, solution: Any) -> None:
        self.solution = solution

    def close(self) -> None:
        self.solution.close()


class _Graph(_Network, BodyDetector):
    """Body, and hands or mask, of one tracked person."""

    def __init__(self, hands: bool, mask: bool, min_detection: float, min_tracking: float) -> None:
        super().__init__(
            _body_graph(
                hands=hands, mask=mask, min_detection=min_detection, min_tracking=min_tracking
            )
        )
        self.hands, self.mask = hands, mask

    def find(self, frame: Frame) -> Body | None:
        result = self.solution.process(input_data={"image": frame})
        if result.pose_landmarks is None:
            return None
        hands = (
            (result.left_hand_landmarks, result.right_hand_landmarks)
            if self.hands
            else (None, None)
        )
        left, right = (None if hand is None else _points(hand, frame) for hand in hands)
        mask = result.segmentation_mask if self.mask else None
        return Body(_points(result.pose_landmarks, frame), left, right, mask)


class _StillBody(_Network, BodyDetector):
    def find(self, frame: Frame) -> Body | None:
        landmarks = self.solution.process(frame).pose_landmarks
        return None if landmarks is None else Body(_points(landmarks, frame))


class _Face(_Network, FaceDetector):
    def find(self, frame: Frame) -> Points | None:
        faces = self.solution.process(frame).multi_face_landmarks
        return _points(faces[0], frame) if faces else None


class _FaceBoxes(_Network, FaceBoxDetector):
    def find(self, frame: Frame) -> list[Box]:
        height, width = frame.shape[:2]
        boxes = [
            detection.location_data.relative_bounding_box
            for detection in self.solution.process(frame).detections or []
        ]
        return [
            (b.xmin * width, b.ymin * height, b.width * width, b.height * height) for b in boxes
        ]


class _Selfie(_Network, PersonMaskDetector):
    def find(self, frame: Frame) -> NDArray[np.float32]:
        mask: NDArray[np.float32] = self.solution.process(frame).segmentation_mask
        return mask


def _body_graph(*, hands: bool, mask: bool, min_detection: float, min_tracking: float) -> Any:
    """A graph that tracks one body, and keeps its region of the previous frame."""
    _package()
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
        calculator_params=_thresholds(min_detection, min_tracking),
        outputs=outputs,
    )  # fmt: skip


def _thresholds(min_detection: float, min_tracking: float) -> dict[str, float]:
    inner = "poselandmarkcpu__"
    return {
        f"{inner}posedetectioncpu__TensorsToDetectionsCalculator.min_score_thresh": min_detection,
        f"{inner}poselandmarkbyroicpu__tensorstoposelandmarksandsegmentation__"
        "ThresholdingCalculator.threshold": min_tracking,
    }


def _points(landmarks: Any, frame: Frame) -> Points:
    """[N, 4] x, y, z in pixels and score of a landmark list; a missing score is 1."""
    height, width = frame.shape[:2]
    landmark_list = landmarks.landmark
    out = np.array([(p.x, p.y, p.z, 1.0) for p in landmark_list], np.float32)
    out[:, :3] *= (width, height, width)
    # MediaPipe's solutions clear unreliable fields; our own graphs keep both.
    for name in ("visibility", "presence"):
        if landmark_list[0].HasField(name):
            out[:, 3] = np.minimum(out[:, 3], [getattr(p, name) for p in landmark_list])
    return out
