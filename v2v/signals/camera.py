"""How the camera moves: for each frame the homography that takes the background to it.

What is far away, or flat, moves as a homography does when a camera pans, tilts, rolls or zooms.
Homographies lead from the background's reference frame, the first of its shot, to frame t, in
stored pixels; the error that remains is the residual. A camera that stands still has the identity.
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
GRID = 8  # cells of the longer side of what is drawn
_LINE, _UNKNOWN = (90, 220, 255), (255, 90, 60)


@dataclass(frozen=True)
class CameraTrack(Track):
    """T frames of a camera.

    Attributes:
        homography: float64 [T, 3, 3], from pixels of the reference frame to pixels of frame t.
        reference: int64 [T] number of the reference frame in its clip: mosaics of frames with the
            same one fit together.
        residual: float32 [T] median distance, in pixels, of points of the background from where the
            homography puts them; NaN where the camera could not be followed.
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
        """In pixels p' = change p, of the reference frame as of all others."""
        moved = change @ self.homography @ np.linalg.inv(change)
        return replace(
            self, homography=moved / moved[:, 2:, 2:], width=width, height=height,
            residual=np.asarray(self.residual * factor, np.float32),
        )  # fmt: skip

    def scaled(self, width: int, height: int) -> Self:
        across, down = width / self.width, height / self.height
        factor = (across * down) ** 0.5
        return self._through(np.diag([across, down, 1.0]), width, height, factor)

    def cropped(self, x: int, y: int, width: int, height: int) -> Self:
        shift = np.array([[1.0, 0, -x], [0, 1, -y], [0, 0, 1]])
        return self._through(shift, width, height)

    def flipped(self) -> Self:
        mirror = np.array([[-1.0, 0, self.width], [0, 1, 0], [0, 0, 1]])
        return self._through(mirror, self.width, self.height)

    def present(self) -> NDArray[np.bool_]:
        return np.isfinite(self.residual)

    def motion(self) -> NDArray[np.float64]:
        """[T] pixels that a corner of the frame has moved by since the reference frame, at most."""
        corners = corners_of(self.width, self.height)
        gone: NDArray[np.float64] = np.linalg.norm(
            carry(self.homography, corners) - corners, axis=-1
        ).max(axis=-1)
        return gone

    def central(self, reference: int) -> int:
        """Of the frames of one background the one whose view is nearest to all others.

        Raises `ValueError` where the camera is known in none of them.
        """
        frames = np.flatnonzero((self.reference == reference) & self.present())
        if not len(frames):
            raise ValueError(f"the camera of background {reference} is never known")
        ends = carry(np.linalg.inv(self.homography[frames]), corners_of(self.width, self.height))
        away = np.linalg.norm(ends - np.median(ends, axis=0), axis=-1).sum(axis=-1)
        return int(frames[away.argmin()])

    def steady(self) -> Matrices:
        """[T, 3, 3] from each frame to the most central one of its background: a camera at rest."""
        found = np.tile(np.eye(3), (len(self), 1, 1))
        for reference in np.unique(self.reference).tolist():
            own = np.flatnonzero(self.reference == reference)
            if self.present()[own].any():
                still = self.homography[self.central(reference)]
                found[own] = still @ np.linalg.inv(self.homography[own])
        steady: Matrices = found / found[:, 2:, 2:]
        return steady

    def draw(self, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
        """A grid that is fixed to the background, red where the camera could not be followed."""
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
                ends = carry(matrix, line)
                near = np.clip(ends, -4 * step * GRID, 4 * step * GRID)
                cv2.polylines(
                    image, [np.round((near - 0.5) * 16).astype(np.int32)], False,
                    _LINE if known else _UNKNOWN, 1, cv2.LINE_AA, 4,
                )  # fmt: skip
        return canvas

    def tensor(self, height: int | None = None, width: int | None = None) -> torch.Tensor:
        raise _not_rendered_from()


def carry(matrices: Matrices, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Points [N, 2] through homographies [..., 3, 3]: [..., N, 2]."""
    ends = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ np.swapaxes(
        matrices, -1, -2
    )
    found: NDArray[np.float64] = ends[..., :2] / ends[..., 2:]
    return found


def carry_each(matrices: Matrices, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each frame's points [T, N, 2 or more] through its own homography [T, 3, 3]: x and y moved."""
    moved = np.array(points)
    for rows, matrix in zip(moved, matrices, strict=True):
        rows[:, :2] = carry(matrix, rows[:, :2])
    return moved


def centred(matrix: Matrices) -> Matrices:
    """A homography of continuous coordinates as OpenCV's: pixel centres are whole numbers."""
    half = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    moved: Matrices = np.linalg.inv(half) @ matrix @ half
    return moved


def corners_of(width: float, height: float) -> NDArray[np.float64]:
    return np.array([[0.0, 0], [width, 0], [width, height], [0, height]])


def _not_rendered_from() -> ConfigError:
    return ConfigError(
        "camera is not a signal that pictures are rendered from: it moves the background",
        hint="leave it out of the model's signals; where a clip has it, it is used",
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
