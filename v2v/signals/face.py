"""Face: the 478-point mesh with irises, drawn as edge curves for face synthesis.

The mesh is that of arXiv 1907.06724 with the irises of arXiv 2006.11341. Left and right are the
person's own. Head pose and openness are computed from the mesh; re-enactment uses them too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.pixels import planes
from v2v.signals import landmarks as marks
from v2v.signals._face_topology import mirror
from v2v.signals.arrays import Layout
from v2v.signals.base import Track
from v2v.signals.landmarks import Colour, Landmarks
from v2v.signals.parts import Part
from v2v.signals.traits import ReferenceSignal

if TYPE_CHECKING:
    import torch

POINTS = 478
MIRROR = mirror(POINTS)

OVAL = (
    10, 109, 67, 103, 54, 21, 162, 127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148,
    152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356, 389, 251, 284, 332, 297, 338,
)  # fmt: skip
LIPS_OUTER = (
    61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146,
)  # fmt: skip
LIPS_INNER = (
    78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95,
)  # fmt: skip
RIGHT_EYE = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
RIGHT_BROW = (46, 53, 52, 65, 55, 107, 66, 105, 63, 70)
RIGHT_IRIS = (469, 470, 471, 472)
NOSE_BRIDGE = (168, 6, 197, 195, 5, 4, 1, 19, 94, 2)
NOSE_BASE = (115, 48, 64, 98, 97, 2, 326, 327, 294, 278, 344)


def _left(points: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(MIRROR[i] for i in points)


# name: points, closed, colour
PARTS: dict[str, tuple[tuple[int, ...], bool, Colour]] = {
    "oval": (OVAL, True, (255, 255, 255)),
    "right_brow": (RIGHT_BROW, True, (255, 160, 60)),
    "left_brow": (_left(RIGHT_BROW), True, (60, 200, 255)),
    "right_eye": (RIGHT_EYE, True, (255, 80, 60)),
    "left_eye": (_left(RIGHT_EYE), True, (60, 120, 255)),
    "right_iris": (RIGHT_IRIS, True, (255, 200, 200)),
    "left_iris": (_left(RIGHT_IRIS), True, (200, 220, 255)),
    "nose_bridge": (NOSE_BRIDGE, False, (160, 255, 120)),
    "nose_base": (NOSE_BASE, False, (90, 220, 90)),
    "lips_outer": (LIPS_OUTER, True, (255, 60, 200)),
    "lips_inner": (LIPS_INNER, True, (200, 60, 255)),
}
IRISES = {"right": (468, RIGHT_IRIS), "left": (MIRROR[468], _left(RIGHT_IRIS))}
# Drawn points that are jittered together: an iris stays in its eye, and the lips stay aligned.
_JITTER_GROUPS = [
    sorted({point for name in names for point in PARTS[name][0]} | set(centres))
    for names, centres in (
        (("oval",), ()),
        (("right_brow",), ()),
        (("left_brow",), ()),
        (("right_eye", "right_iris"), (468,)),
        (("left_eye", "left_iris"), (MIRROR[468],)),
        (("nose_bridge", "nose_base"), ()),
        (("lips_outer", "lips_inner"), ()),
    )
]
_INNER = sorted({p for n, (points, _, _) in PARTS.items() if n != "oval" for p in points})
# Points that move with the skull and hardly with expression: forehead, temples, eye corners,
# nose. Head pose is computed from them only, so that speaking does not nod the head.
RIGID = (
    10, 151, 9, 8, 168, 6, 197, 195, 5, 4, 109, 338, 67, 297, 103, 332, 54, 284, 21, 251,
    162, 389, 127, 356, 234, 454, 33, 263, 133, 362, 98, 327,
)  # fmt: skip


def _control_points() -> list[marks.ControlPoint]:
    """The drawn and the rigid points, and points around the oval for hair and neck."""
    inner = sorted({*_INNER, *RIGID} - set(OVAL))
    found: list[marks.ControlPoint] = [({point: 1.0}, 0.12) for point in inner]
    found += [({point: 1.0}, 0.25) for point in OVAL]
    # The oval again, extrapolated away from the bridge of the nose.
    found += [({point: 1.5, 168: -0.5}, 0.4) for point in (*OVAL[:9], *OVAL[-8:])]
    found += [({point: 1.5, 168: -0.5}, 0.6) for point in OVAL[9:-8]]
    return found


@dataclass(frozen=True)
class HeadPose:
    """Head pose in each of T frames, weak perspective.

    `rotation` [T, 3, 3] maps the head's axes (for a face that looks into the camera: x to the
    image's right, y down, z away from the camera) to the camera's; `translation` [T, 2] is the
    centre of the rigid points in pixels; `scale` [T] is the distance between the outer eye corners
    in pixels, in a frontal view. NaN without a face.
    """

    rotation: NDArray[np.float32]
    translation: NDArray[np.float32]
    scale: NDArray[np.float32]

    def angles(self) -> NDArray[np.float32]:
        """[T, 3] yaw (positive: to the image's right), pitch (down), roll (clockwise), degrees.

        The rotation is roll about the head's own axis, then pitch, then yaw.
        """
        r = self.rotation
        yaw = np.arctan2(-r[:, 0, 2], r[:, 2, 2])
        pitch = np.arcsin(np.clip(-r[:, 1, 2], -1, 1))
        roll = np.arctan2(r[:, 1, 0], r[:, 1, 1])
        degrees: NDArray[np.float32] = np.degrees(np.stack([yaw, pitch, roll], axis=1))
        return degrees.astype(np.float32)


def head_pose(points: Landmarks, depth: NDArray[np.float32]) -> HeadPose:
    """Rotation, translation and scale of the head from the mesh.

    The rigid points of all frames are aligned to their common mean (generalised Procrustes
    analysis with the rotation of Kabsch 1976); the axes of the mean shape define the frontal pose.
    So a frame's pose does not depend on single points.

    Args:
        points: [T, 478, 3] x, y in pixels and score.
        depth: [T, 478] z in pixels, increasing away from the camera.
    """
    return rigid_pose(rigid_points(points, depth))


def rigid_points(points: Landmarks, depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """[T, 32, 3] x, y, z in pixels of the points that head pose is computed from."""
    rigid = list(RIGID)
    return np.concatenate([points[:, rigid, :2], depth[:, rigid, None]], axis=2)


def rigid_pose(rigid: NDArray[np.float32]) -> HeadPose:
    """Head pose from `rigid_points`, for clips too long to keep all points in memory."""
    count = len(rigid)
    rotation = np.full((count, 3, 3), np.nan, np.float32)
    translation = np.full((count, 2), np.nan, np.float32)
    scale = np.full(count, np.nan, np.float32)
    found = np.flatnonzero(np.isfinite(rigid[:, 0, 0]))
    if not len(found):
        return HeadPose(rotation, translation, scale)

    shapes, _, _ = _normalised(rigid[found[:: max(len(found) // SAMPLE, 1)]])
    eyes_level = np.abs(shapes[:, RIGID.index(33), 2] - shapes[:, RIGID.index(263), 2])
    mean = shapes[np.argmin(eyes_level)]
    for _ in range(5):
        turn = _kabsch(mean, shapes)
        mean = np.einsum("tij,tni->tnj", turn, shapes).mean(axis=0)
        mean /= np.sqrt((mean**2).sum())
    mean = mean @ _axes(mean)
    eyes = np.linalg.norm(mean[RIGID.index(33)] - mean[RIGID.index(263)])
    for start in range(0, len(found), SAMPLE):
        rows = found[start : start + SAMPLE]
        shapes, centre, size = _normalised(rigid[rows])
        rotation[rows] = _kabsch(mean, shapes)
        translation[rows] = centre[:, :2]
        scale[rows] = size * eyes
    return HeadPose(rotation, translation, scale)


SAMPLE = 1024  # frames to compute the mean shape from, and frames processed at a time


def _normalised(
    rigid: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Shapes [T, N, 3] centred at 0 with size 1, their centres [T, 3] and sizes [T]."""
    shapes = rigid.astype(np.float64)
    centre = shapes.mean(axis=1)
    shapes -= centre[:, None]
    size = np.sqrt((shapes**2).sum(axis=(1, 2)))
    return shapes / size[:, None, None], centre, size


def _kabsch(reference: NDArray[np.float64], shapes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotations [T, 3, 3] that best align `reference` [N, 3] with each of `shapes` [T, N, 3]."""
    u, _, vt = np.linalg.svd(np.einsum("tni,nj->tij", shapes, reference))
    proper = np.ones((len(shapes), 3))
    proper[:, 2] = np.linalg.det(u @ vt)
    turns: NDArray[np.float64] = (u * proper[:, None, :]) @ vt
    return turns


def _axes(shape: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns: the head's right (in the image), down and away axes in the frame of `shape`."""
    at = {point: shape[i] for i, point in enumerate(RIGID)}
    right = sum(at[MIRROR[p]] - at[p] for p in (33, 133, 127, 162, 21, 54, 103, 234))
    right = np.asarray(right) / np.linalg.norm(np.asarray(right))
    down = at[168] - at[10]  # from the hairline to between the eyes
    down = down - (down @ right) * right
    # That line leans back on most heads; 10 degrees more upright is a frontal pose.
    down /= np.linalg.norm(down)
    away = np.cross(right, down)
    lean = np.radians(10)
    down, away = (
        np.cos(lean) * down + np.sin(lean) * away,
        np.cos(lean) * away - np.sin(lean) * down,
    )
    return np.stack([right, down, away], axis=1)


def eye_openness(points: Landmarks) -> NDArray[np.float32]:
    """[T, 2] right, left: lid distance over eye width, about 0 (closed) to 0.35 (wide open)."""
    right = _openness(points, (33, 133), ((159, 145), (158, 153), (160, 144)))
    left = _openness(
        points,
        (263, 362),
        tuple((MIRROR[a], MIRROR[b]) for a, b in ((159, 145), (158, 153), (160, 144))),
    )
    return np.stack([right, left], axis=1)


def mouth_openness(points: Landmarks) -> NDArray[np.float32]:
    """[T] distance between the inner lips over their width, from 0 (closed) to about 1."""
    return _openness(points, (78, 308), ((13, 14), (82, 87), (312, 317)))


def _openness(
    points: Landmarks, ends: tuple[int, int], lids: tuple[tuple[int, int], ...]
) -> NDArray[np.float32]:
    def distance(a: int, b: int) -> NDArray[np.float32]:
        length: NDArray[np.float32] = np.linalg.norm(points[:, a, :2] - points[:, b, :2], axis=1)
        return length

    gap = np.mean([distance(a, b) for a, b in lids], axis=0)
    ratio: NDArray[np.float32] = (gap / np.maximum(distance(*ends), 1e-3)).astype(np.float32)
    return ratio


_CONTROL_POINTS = marks.control_point_matrix(_control_points(), POINTS)


def _parts() -> tuple[Part, ...]:
    """The whole head, and above it the eyes and the mouth, taken from other frames if better."""
    found = [Part("head", (*RIGID, *OVAL), (), 1.0, motion="dense")]
    for name, lines, radius in (
        ("right_eye", ("right_eye", "right_brow"), 0.12),
        ("left_eye", ("left_eye", "left_brow"), 0.12),
        ("mouth", ("lips_outer", "lips_inner"), 0.15),
    ):
        loops = [PARTS[line][0] for line in lines]
        bones = tuple(pair for points in loops for pair in pairwise(points))
        shape = tuple(point for points in loops for point in points)
        iris = IRISES[name.removesuffix("_eye")] if name != "mouth" else None
        centre = (iris[0],) if iris is not None else ()
        found.append(Part(name, (*shape, *centre), bones, radius, reach=2.0, motion="dense"))
    return tuple(found)


REGIONS = _parts()


@dataclass(frozen=True)
class FaceTrack(Track):
    """T frames of a face: the mesh and measures computed from it."""

    points: Landmarks  # [T, 478, 3]
    depth: NDArray[np.float32]  # [T, 478] z in pixels
    filled: NDArray[np.bool_]  # [T] true where a gap was interpolated
    rotation: NDArray[np.float32]  # [T, 3, 3]
    translation: NDArray[np.float32]  # [T, 2]
    scale: NDArray[np.float32]  # [T]
    width: int
    height: int
    regions: ClassVar[tuple[str, ...]] = ("face", "mouth")
    parts: ClassVar[tuple[Part, ...]] = REGIONS
    per_frame: ClassVar[tuple[str, ...]] = (
        "points", "depth", "filled", "rotation", "translation", "scale",
    )  # fmt: skip

    def __post_init__(self) -> None:
        assert self.points.shape[1:] == (POINTS, 3), self.points.shape

    def __repr__(self) -> str:
        return f"FaceTrack(frames={len(self)}, points={POINTS}, size={self.width}x{self.height})"

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: slice) -> Self:
        return replace(self, **{name: getattr(self, name)[index] for name in self.per_frame})

    @property
    def head(self) -> HeadPose:
        return HeadPose(self.rotation, self.translation, self.scale)

    @property
    def eyes(self) -> NDArray[np.float32]:
        return eye_openness(self.points)

    @property
    def mouth(self) -> NDArray[np.float32]:
        return mouth_openness(self.points)

    def scaled(self, width: int, height: int) -> Self:
        x, y = width / self.width, height / self.height
        return replace(
            self, points=marks.scaled(self.points, x, y), depth=self.depth * np.float32(x),
            translation=self.translation * np.array([x, y], np.float32),
            scale=self.scale * np.float32(x), width=width, height=height,
        )  # fmt: skip

    def cropped(self, x: int, y: int, width: int, height: int) -> Self:
        return replace(
            self, points=marks.moved(self.points, -x, -y),
            translation=self.translation - np.array([x, y], np.float32), width=width, height=height,
        )  # fmt: skip

    def flipped(self) -> Self:
        mirrored = np.array([-1, 1, 1], np.float32)
        translation = self.translation.copy()
        translation[:, 0] = self.width - translation[:, 0]
        return replace(
            self, points=marks.flipped(self.points, self.width, MIRROR),
            depth=self.depth[:, MIRROR], translation=translation,
            rotation=self.rotation * mirrored[:, None] * mirrored[None, :],
        )  # fmt: skip

    def jittered(self, generator: np.random.Generator, sigma: float) -> Self:
        """Add noise of `sigma` pixels; each part moves as a whole, so that curves stay smooth."""
        offsets = marks.jitter(generator, len(self), len(_JITTER_GROUPS), sigma)
        points = self.points.copy()
        for group, indices in enumerate(_JITTER_GROUPS):
            points[:, indices, :2] += offsets[:, group, None]
        return replace(self, points=points)

    def present(self) -> NDArray[np.bool_]:
        seen: NDArray[np.bool_] = np.isfinite(self.points[:, 0, 0])
        return seen

    def boxes(self) -> NDArray[np.float32]:
        parts = ((_INNER, 1.25), (list(LIPS_OUTER), 1.5))
        found = [
            marks.squares(self.points[:, part], least=len(part), min_score=0.0, grow=grow)
            for part, grow in parts
        ]
        return np.stack(found, axis=1)

    def control_points(self) -> NDArray[np.float32]:
        seen = np.repeat(self.present()[:, None], POINTS, axis=1)
        return marks.control_points(self.points, seen, self.scale, _CONTROL_POINTS)

    def body_size(self) -> NDArray[np.float32]:
        return self.scale

    def part_points(self) -> NDArray[np.float32]:
        return self.points[..., :2]

    def draw(self, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
        height, width = height or self.height, width or self.width
        canvas = np.zeros((len(self), height, width, 3), np.uint8)
        for points, image in zip(self.scaled(width, height).points, canvas, strict=True):
            draw_face(image, points)
        return canvas

    def distance_maps(
        self, height: int | None = None, width: int | None = None
    ) -> NDArray[np.uint8]:
        """Distance to each part's edge, uint8 [T, height, width, 11] in the order of `PARTS`.

        0 on the edge, 255 from a quarter of the shorter side on; all 255 without a face.
        """
        height, width = height or self.height, width or self.width
        maps = np.full((len(self), height, width, len(PARTS)), 255, np.uint8)
        for points, out in zip(self.scaled(width, height).points, maps, strict=True):
            if np.isfinite(points[0, 0]):
                out[:] = _distances(points, height, width)
        return maps

    def tensor(
        self, height: int | None = None, width: int | None = None, *, distance_maps: bool = False
    ) -> torch.Tensor:
        """The drawing, RGB in [-1, 1], float32 [T, 3, height, width].

        `distance_maps` appends 11 channels, see there.
        """
        import torch

        pictures = self.draw(height, width)
        if distance_maps:
            pictures = np.concatenate([pictures, self.distance_maps(height, width)], axis=3)
        return torch.from_numpy(planes(pictures))


def draw_face(canvas: NDArray[np.uint8], points: NDArray[np.float32]) -> None:
    """Draw one face [478, 3] onto `canvas` (RGB uint8 [H, W, 3]), in place.

    Curves are 1 pixel wide at 256 and scale with the shorter side.
    """
    if not np.isfinite(points[0, 0]):
        return
    width = max(round(min(canvas.shape[:2]) / 256), 1)
    places = marks.fixed_point(points[:, :2])
    for indices, closed, colour in _PART_INDICES:
        marks.polyline(canvas, places[indices], colour, width, closed)
    for centre, rim in IRISES.values():
        radius = np.linalg.norm(points[list(rim), :2] - points[centre, :2], axis=1).mean()
        x, y = places[centre]
        cv2.circle(
            canvas, (int(x), int(y)), max(int(radius * 0.35 * (1 << marks.SHIFT)), 8),
            (255, 255, 120), -1, cv2.LINE_AA, marks.SHIFT,
        )  # fmt: skip


_PART_INDICES = tuple((list(i), closed, colour) for i, closed, colour in PARTS.values())


def _distances(points: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    pixels = marks.fixed_point(points[:, :2])
    maps = np.empty((height, width, len(PARTS)), np.uint8)
    for i, (indices, closed, _) in enumerate(PARTS.values()):
        canvas = np.full((height, width), 255, np.uint8)
        cv2.polylines(canvas, [pixels[list(indices)]], closed, (0,), 1, cv2.LINE_8, marks.SHIFT)
        distance = cv2.distanceTransform(canvas, cv2.DIST_L2, 3)
        maps[..., i] = np.minimum(distance * (255 * 4 / min(height, width)), 255)
    return maps


class Face(ReferenceSignal):
    name: ClassVar[str] = "face"
    files: ClassVar[tuple[str, ...]] = ("face.npz",)
    remembered: ClassVar[tuple[str, ...]] = ("points", "depth")
    reference_count: ClassVar[int] = 32
    warped_by: ClassVar[Literal["parts", "dense"]] = "dense"
    options: ClassVar[tuple[str, ...]] = ("distance_maps",)
    layout: ClassVar[Layout] = {
        "points": ("float32", (POINTS, 3)), "depth": ("float32", (POINTS,)),
        "filled": ("bool", ()), "rotation": ("float32", (3, 3)),
        "translation": ("float32", (2,)), "scale": ("float32", ()),
    }  # fmt: skip

    def assemble(self, arrays: dict[str, Any], *, width: int, height: int) -> FaceTrack:
        own = {name: arrays[name] for name in self.layout}
        return FaceTrack(**own, width=width, height=height)

    def channels(self, spec: dict[str, Any]) -> int:
        return 3 + len(PARTS) * self.options_in(spec)["distance_maps"]

    def tensor(self, track: Track, spec: dict[str, Any], height: int, width: int) -> torch.Tensor:
        return cast(FaceTrack, track).tensor(height, width, **self.options_in(spec))


SIGNAL = Face()
