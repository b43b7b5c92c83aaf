"""Camera motion: for each frame the homography that maps the background to it.

Distant or flat backgrounds move by a homography when the camera pans, tilts, rolls or zooms.
Homographies map the background's reference frame, the first of its shot, to frame t, in stored
pixels; the remaining error is the residual. A still camera has identity homographies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.errors import ConfigError
from v2v.homography import Matrices, carry, corners_of
from v2v.signals.arrays import Layout
from v2v.signals.traits import CameraMotion, CameraSignal

if TYPE_CHECKING:
    import torch

GRID = 8  # grid cells along the longer side in drawings
_LINE, _UNKNOWN = (90, 220, 255), (255, 90, 60)


@dataclass(frozen=True)
class CameraTrack(CameraMotion):
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
    per_frame: ClassVar[tuple[str, ...]] = ("homography", "reference", "residual")

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


def _not_rendered_from() -> ConfigError:
    return ConfigError(
        "the camera signal cannot be a condition of the model: it moves the background plate",
        hint="remove it from the model's signals; it is used automatically if a clip has it",
    )


class Camera(CameraSignal):
    name: ClassVar[str] = "camera"
    files: ClassVar[tuple[str, ...]] = ("camera.npz",)
    rendered_from: ClassVar[bool] = False
    layout: ClassVar[Layout] = {
        "homography": ("float64", (3, 3)),
        "reference": ("int64", ()),
        "residual": ("float32", ()),
    }

    def assemble(self, arrays: dict[str, Any], *, width: int, height: int) -> CameraTrack:
        own = {name: arrays[name] for name in self.layout}
        return CameraTrack(**own, width=width, height=height)

    def channels(self, spec: dict[str, Any]) -> int:
        raise _not_rendered_from()


SIGNAL = Camera()
