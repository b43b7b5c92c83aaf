"""Camera motion: for each frame the homography that maps the background to it.

Distant or flat backgrounds move by a homography when the camera pans, tilts, rolls or zooms.
Homographies map the background's reference frame, the first of its shot, to frame t, in stored
pixels; the remaining error is the residual. A still camera has identity homographies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.errors import ConfigError
from v2v.signals._base import Layout, Signal, Track, check_arrays, read_arrays

if TYPE_CHECKING:
    import torch

Matrices = NDArray[np.float64]  # [..., 3, 3]
GRID = 8  # grid cells along the longer side in drawings
_LINE, _UNKNOWN = (90, 220, 255), (255, 90, 60)


@dataclass(frozen=True)
class CameraTrack(Track):
    """T frames of a camera.

    Attributes:
        homography: float64 [T, 3, 3], from pixels of the reference frame to pixels of frame t.
        reference: int64 [T] number of the reference frame in its clip; frames with the same
            reference share a mosaic.
        residual: float32 [T] median reprojection error of background points in pixels; NaN where
            camera tracking failed.
    """

    homography: Matrices
    reference: NDArray[np.int64]
    residual: NDArray[np.float32]
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.homography)

    def __getitem__(self, index: slice) -> Self:
        return replace(
            self, homography=self.homography[index], reference=self.reference[index],
            residual=self.residual[index],
        )  # fmt: skip

    def _through(self, change: Matrices, width: int, height: int, factor: float = 1.0) -> Self:
        """Apply the coordinate change p' = `change` p to all frames, including the reference."""
        moved = change @ self.homography @ np.linalg.inv(change)
        return replace(
            self, homography=moved / moved[:, 2:, 2:], width=width, height=height,
            residual=np.asarray(self.residual * factor, np.float32),
        )  # fmt: skip

    def scaled(self, width: int, height: int) -> Self:
        scale_x, scale_y = width / self.width, height / self.height
        factor = (scale_x * scale_y) ** 0.5
        return self._through(np.diag([scale_x, scale_y, 1.0]), width, height, factor)

    def cropped(self, x: int, y: int, width: int, height: int) -> Self:
        shift = np.array([[1.0, 0, -x], [0, 1, -y], [0, 0, 1]])
        return self._through(shift, width, height)

    def flipped(self) -> Self:
        mirror = np.array([[-1.0, 0, self.width], [0, 1, 0], [0, 0, 1]])
        return self._through(mirror, self.width, self.height)

    def present(self) -> NDArray[np.bool_]:
        return np.isfinite(self.residual)

    def motion(self) -> NDArray[np.float64]:
        """[T] largest displacement of a frame corner from the reference frame, in pixels."""
        corners = corners_of(self.width, self.height)
        displacement: NDArray[np.float64] = np.linalg.norm(
            carry(self.homography, corners) - corners, axis=-1
        ).max(axis=-1)
        return displacement

    def central(self, reference: int) -> int:
        """The most central frame of one background: the one nearest to the median view.

        Raises `ValueError` if camera tracking failed in all of its frames.
        """
        frames = np.flatnonzero((self.reference == reference) & self.present())
        if not len(frames):
            raise ValueError(f"camera tracking failed in all frames of background {reference}")
        warped = carry(np.linalg.inv(self.homography[frames]), corners_of(self.width, self.height))
        distance = np.linalg.norm(warped - np.median(warped, axis=0), axis=-1).sum(axis=-1)
        return int(frames[distance.argmin()])

    def steady(self) -> Matrices:
        """[T, 3, 3] from each frame to the central one of its background: removes camera motion."""
        found = np.tile(np.eye(3), (len(self), 1, 1))
        for reference in np.unique(self.reference).tolist():
            own = np.flatnonzero(self.reference == reference)
            if self.present()[own].any():
                still = self.homography[self.central(reference)]
                found[own] = still @ np.linalg.inv(self.homography[own])
        steady: Matrices = found / found[:, 2:, 2:]
        return steady

    def draw(self, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
        """A grid fixed to the background, red where camera tracking failed."""
        height, width = height or self.height, width or self.width
        track = self.scaled(width, height)
        canvas = np.zeros((len(self), height, width, 3), np.uint8)
        step = max(width, height) / GRID
        low, high = -GRID, 2 * GRID + 1
        lines = [
            np.stack([step * np.arange(low, high), np.full(high - low, step * k)], axis=-1)
            for k in range(low, high)
        ]
        lines += [line[:, ::-1] for line in lines]
        for image, matrix, known in zip(canvas, track.homography, self.present(), strict=True):
            for line in lines:
                warped = carry(matrix, line)
                clipped = np.clip(warped, -4 * step * GRID, 4 * step * GRID)
                cv2.polylines(
                    image, [np.round((clipped - 0.5) * 16).astype(np.int32)], False,
                    _LINE if known else _UNKNOWN, 1, cv2.LINE_AA, 4,
                )  # fmt: skip
        return canvas

    def tensor(self, height: int | None = None, width: int | None = None) -> torch.Tensor:
        raise _not_rendered_from()


def carry(matrices: Matrices, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Apply homographies [..., 3, 3] to points [N, 2]: [..., N, 2]."""
    moved = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ np.swapaxes(
        matrices, -1, -2
    )
    result: NDArray[np.float64] = moved[..., :2] / moved[..., 2:]
    return result


def carry_each(matrices: Matrices, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply each frame's homography [T, 3, 3] to x and y of its points [T, N, 2 or more]."""
    moved = np.array(points)
    for rows, matrix in zip(moved, matrices, strict=True):
        rows[:, :2] = carry(matrix, rows[:, :2])
    return moved


def centred(matrix: Matrices) -> Matrices:
    """Convert a homography to OpenCV's coordinates, where pixel centres are integers."""
    half = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    moved: Matrices = np.linalg.inv(half) @ matrix @ half
    return moved


def corners_of(width: float, height: float) -> NDArray[np.float64]:
    return np.array([[0.0, 0], [width, 0], [width, height], [0, height]])


def _not_rendered_from() -> ConfigError:
    return ConfigError(
        "the camera signal cannot be a condition of the model: it moves the background plate",
        hint="remove it from the model's signals; it is used automatically if a clip has it",
    )


class Camera(Signal):
    name: ClassVar[str] = "camera"
    files: ClassVar[tuple[str, ...]] = ("camera.npz",)
    rendered_from: ClassVar[bool] = False
    layout: ClassVar[Layout] = {
        "homography": ("float64", (3, 3)),
        "reference": ("int64", ()),
        "residual": ("float32", ()),
    }

    def check_files(
        self, folder: Path, spec: dict[str, Any], *, frames: int, width: int, height: int
    ) -> None:
        check_arrays(folder / self.files[0], self.layout, frames)

    def read(
        self, folder: Path, spec: dict[str, Any], start: int, stop: int, *, width: int, height: int
    ) -> CameraTrack:
        arrays = read_arrays(folder / self.files[0], self.layout, start, stop)
        return CameraTrack(**arrays, width=width, height=height)

    def channels(self, spec: dict[str, Any]) -> int:
        raise _not_rendered_from()


SIGNAL = Camera()
