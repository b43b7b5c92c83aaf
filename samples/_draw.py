"""Draws shaded, anti-aliased shapes for the samples.

Points are float arrays [N, 2], (x, y); points and lengths are in pixels of the finished frame.
Colours are RGB triples in 0..255.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[Any]  # float [N, 2], or [2] for one point
Image = NDArray[np.uint8]
Rgb = tuple[float, float, float]

SUPERSAMPLE = 2  # canvas size relative to the frame; area-averaged at the end
_LIGHT = (-0.55, -0.83)  # direction to the light in image axes: upper left
_SUBPIXEL_BITS = 5  # fractional bits of fixed-point polygon corners in OpenCV


def curve(points: Points, *, closed: bool = True, samples: int = 8) -> Points:
    """Catmull-Rom curve through `points` [N, 2], with `samples` steps per span."""
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([points[:1], points, points[-1:]])
    before, start, end, after = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    u = (np.arange(samples) / samples)[None, :, None]
    spans: Points = 0.5 * (
        2 * start
        + (end - before) * u
        + (2 * before - 5 * start + 4 * end - after) * u**2
        + (3 * start - before - 3 * end + after) * u**3
    )
    path = spans.reshape(-1, 2)
    return np.asarray(path if closed else np.concatenate([path, points[-1:]]))


def ellipse(
    centre: Points | tuple[float, float], rx: float, ry: float, *, angle: float = 0.0
) -> Points:
    """Outline of an ellipse with half-axes `rx`, `ry`, rotated by `angle` radians."""
    phase = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = rx * np.cos(phase), ry * np.sin(phase)
    cos, sin = np.cos(angle), np.sin(angle)
    rotated = np.stack([x * cos - y * sin, x * sin + y * cos], axis=1)
    return np.asarray(rotated + np.asarray(centre))


def capsule(a: Points, b: Points, radius_a: float, radius_b: float) -> Points:
    """Outline of two circles and their common tangents: one tapered limb segment."""
    length = float(np.hypot(*(b - a)))
    if length <= abs(radius_a - radius_b) + 1e-6:  # one circle contains the other
        centre, radius = (a, radius_a) if radius_a >= radius_b else (b, radius_b)
        return ellipse(centre, radius, radius)
    heading = np.arctan2(b[1] - a[1], b[0] - a[0])
    tangent = np.arccos((radius_a - radius_b) / length)
    far = heading + np.linspace(-tangent, tangent, 14)
    near = heading + np.linspace(tangent, 2 * np.pi - tangent, 14)
    return np.concatenate(
        [
            b + radius_b * np.stack([np.cos(far), np.sin(far)], axis=1),
            a + radius_a * np.stack([np.cos(near), np.sin(near)], axis=1),
        ]
    )


def limb(points: Sequence[Points], radii: Sequence[float]) -> list[Points]:
    """Outlines of the tapered segments that join `points`, with one radius per point."""
    spans = zip(points, points[1:], radii, radii[1:], strict=False)
    return [capsule(a, b, ra, rb) for a, b, ra, rb in spans]


def tube(points: Sequence[Points], radii: Sequence[float], *, cut: bool = False) -> list[Points]:
    """A limb with a smooth axis through `points`; `cut` ends it flat, like a sleeve."""
    steps = 7
    axis = curve(np.stack(points), closed=False, samples=steps)
    at = np.arange(len(axis)) / steps
    radius = [float(r) for r in np.interp(at, np.arange(len(radii)), radii)]
    if not cut:
        return limb(list(axis), radius)
    # The round cap of the last kept segment must not extend past the flat end.
    from_end = np.hypot(*(axis[-1] - axis).T)
    kept = max(2, int(np.count_nonzero(from_end > 1.05 * radius[-1])))
    start, along = axis[kept - 1], (axis[-1] - axis[kept - 1]) / from_end[kept - 1]
    side = np.array((-along[1], along[0]))
    wide, narrow = side * radius[kept - 1], side * radius[-1]
    hem = axis[-1] + 0.16 * radius[-1] * along  # the edge sags slightly in the middle
    end = [start + wide, axis[-1] + narrow, hem, axis[-1] - narrow, start - wide]
    return [*limb(list(axis[:kept]), radius[:kept]), np.stack(end)]


def ribbon(points: Points, width: float) -> list[Points]:
    """Outlines of a stroke along `points`, thick in the middle and pointed at both ends."""
    taper = np.sin(np.linspace(0.12, np.pi - 0.12, len(points)))
    return limb(list(points), [float(r) for r in 0.5 * width * taper])


def fill_polygon(image: NDArray[Any], outline: Points, value: float = 255) -> None:
    """Fill the inside of `outline` in `image` [H, W] with `value`; uint8 images get smooth edges.

    `outline`: float [N, 2] in pixels of `image`, with pixel centres at integers.
    """
    fixed = np.round(outline * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(image, [fixed], (value,), cv2.LINE_AA, _SUBPIXEL_BITS)


def shaded(rgb: Rgb, factor: float) -> Rgb:
    """`rgb` scaled by `factor`: darker below 1, lighter above."""
    red, green, blue = (min(255.0, channel * factor) for channel in rgb)
    return red, green, blue


def _reduced(image: Image) -> Image:
    """Downsample a canvas array [H, W, ...] to frame size by area averaging."""
    size = (image.shape[1] // SUPERSAMPLE, image.shape[0] // SUPERSAMPLE)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _blur(image: NDArray[Any], sigma: float) -> tuple[NDArray[Any], float]:
    """Blur [H, W] by `sigma` pixels, on a smaller grid if that loses no detail.

    Returns the blurred image and the sigma in pixels of its grid.
    """
    shrink = max(1.0, sigma / 3)
    height, width = (max(1, round(n / shrink)) for n in image.shape)
    if shrink > 1:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(image, (0, 0), sigma / shrink), sigma / shrink


def _enlarge(image: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """Resize `image` to the size of `like`."""
    return cv2.resize(image, like.shape[::-1], interpolation=cv2.INTER_LINEAR)


class Canvas:
    """An RGB image on which shapes are painted, later ones over earlier ones."""

    def __init__(self, background: Image) -> None:
        """`background`: uint8 [SUPERSAMPLE*H, SUPERSAMPLE*W, 3], copied."""
        self._image = background.copy()
        self._figure = np.zeros(background.shape[:2], np.uint8)  # where shapes were painted

    def finish(self) -> Image:
        """The painted frame, uint8 [H, W, 3]."""
        return _reduced(self._image)

    def cutout(self) -> Image:
        """Shapes painted on a black canvas: uint8 [H, W, 4], premultiplied RGB and alpha."""
        return np.dstack([self.finish(), _reduced(self._figure)])

    def fill(
        self,
        outlines: Points | Iterable[Points],
        rgb: Rgb,
        *,
        bulge: float = 0.0,
        relief: float = 0.3,
        feather: float = 0.0,
        opacity: float = 1.0,
        shadow: float = 0.0,
        clip: Points | None = None,
    ) -> None:
        """Paint the union of `outlines`.

        bulge: width in pixels of the rim that curves away from the viewer; 0 paints flat.
        relief: strength of shading on rims that face the light or face away from it.
        feather: blur of the edge in pixels.
        shadow: darkening of earlier shapes, 0..1; the background stays unchanged.
        clip: outline outside which nothing is painted.
        """
        shapes = [outlines] if isinstance(outlines, np.ndarray) else list(outlines)
        margin = 3 * feather + 2 * bulge * (shadow > 0) + 2
        box = self._box(shapes, margin)
        if box is None:
            return
        rows, cols = box
        mask = self._mask(shapes, box)
        if feather > 0:
            mask = _enlarge(_blur(mask, feather * SUPERSAMPLE)[0], mask)
        if clip is not None:
            mask = np.minimum(mask, self._mask([clip], box))
        cover = mask.astype(np.float32) * (1 / 255)

        colour = np.asarray(rgb, np.float32)[None, None]
        target = self._image[rows, cols].astype(np.float32)
        if bulge > 0:
            # The blurred mask serves as a height field; its slope is the rim's orientation.
            height, sigma = _blur(cover, bulge * SUPERSAMPLE * 0.7)
            slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
            slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
            facing = (slope_x * _LIGHT[0] + slope_y * _LIGHT[1]) * (-2.5 * sigma)
            light = _enlarge(1 + relief * np.clip(facing, -1.3, 0.9), mask)
            colour = np.minimum(colour * light[..., None], 255)
            if shadow > 0:
                cast = _enlarge(height, mask) * self._figure[rows, cols] * (shadow / 255)
                target *= (1 - cast)[..., None]
        target += (colour - target) * (cover * opacity)[..., None]
        self._image[rows, cols] = (target + 0.5).astype(np.uint8)
        self._figure[rows, cols] = cv2.max(self._figure[rows, cols], mask)

    def _box(self, shapes: Sequence[Points], margin: float) -> tuple[slice, slice] | None:
        """The canvas rows and columns that the shapes can cover; None if they are outside."""
        corners = np.concatenate(shapes)
        low = np.floor((corners.min(axis=0) - margin) * SUPERSAMPLE).astype(int)
        high = np.ceil((corners.max(axis=0) + margin) * SUPERSAMPLE).astype(int)
        height, width = self._figure.shape
        x0, y0 = max(low[0], 0), max(low[1], 0)
        x1, y1 = min(high[0], width), min(high[1], height)
        return None if x0 >= x1 or y0 >= y1 else (slice(y0, y1), slice(x0, x1))

    def _mask(self, shapes: Sequence[Points], box: tuple[slice, slice]) -> Image:
        """Coverage of the shapes' union within `box`, uint8 0..255."""
        rows, cols = box
        mask = np.zeros((rows.stop - rows.start, cols.stop - cols.start), np.uint8)
        for shape in shapes:
            # Canvas pixel k covers [k, k + 1); OpenCV's coordinates are pixel centres.
            fill_polygon(mask, shape * SUPERSAMPLE - 0.5 - (cols.start, rows.start))
        return mask
