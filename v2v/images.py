"""Reads all image files: frames, label maps, animations, style images.

Pictures are returned as displayed: 16-bit and float values are scaled to 8 bits, not truncated;
wide-gamut colours are converted to sRGB, transparency is composited over black and the EXIF
rotation is applied. Label maps are returned as the numbers in the file. The content of a file
determines its format, not its suffix.

Images are untrusted input: sizes are checked before pixels are allocated, and every exception that
Pillow raises on a damaged file becomes a `V2VError`.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from v2v.errors import NotAVideo, NotWritable, V2VError

Picture = NDArray[np.uint8]  # RGB [H, W, 3]

MOST_PIXELS = 178_956_970  # Pillow's own limit: half a gigabyte as RGB
MOST_SIDE = 65_500
# Pillow reads more formats; some run external programs (EPS) or are detected too loosely.
FORMATS = (
    "PNG", "JPEG", "MPO", "JPEG2000", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "TGA", "AVIF",
)  # fmt: skip
LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")  # and WebP files with a `VP8 ` chunk
DEFAULT_DURATION = 100  # milliseconds, for animation frames without a duration, as in browsers
ALIKE = 3  # levels by which a profile may differ from sRGB and still count as sRGB

# Pillow warns about large images and odd metadata. This module checks sizes and reports damage
# as an error.
warnings.filterwarnings("ignore", module=r"PIL\.")

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@dataclass(frozen=True)
class ImageInfo:
    """Format and size of an image file; `width` and `height` are after EXIF rotation."""

    format: str  # lower case, such as png
    mode: str  # Pillow's mode, such as RGB or I;16
    width: int
    height: int


@dataclass(frozen=True)
class LabelImage:
    """The numbers in a label map, unscaled.

    `values` are int64 [H, W], or [H, W, 3] for a colour image. `deep` is true if the file stores
    more than 8 bits per value, `lossy` if its compression changes values.
    """

    values: NDArray[np.int64]
    deep: bool
    lossy: bool

    @property
    def grey(self) -> NDArray[np.int64] | None:
        """[H, W] the value that all channels share; None if the channels differ."""
        if self.values.ndim == 2:
            return self.values
        equal = (self.values[..., :1] == self.values).all()
        return self.values[..., 0] if equal else None


def inspect_image(path: Path) -> ImageInfo:
    """Read an image's header. Raises `NotAVideo`, `NotWritable` (no permission to read)."""
    with _opened(path) as image:
        if image.format == "TIFF":
            image.load()  # rotates it; some Pillow versions report the rotated size before
        width, height = image.size
        if _orientation(image) >= 5:  # orientations 5 to 8 transpose
            width, height = height, width
        return ImageInfo((image.format or "").lower(), image.mode, width, height)


def read_picture(path: Path, *, white: float = 1.0) -> Picture:
    """Read an image as displayed: upright, uint8 [H, W, 3].

    16-bit and 32-bit integers range from 0 to 65535. Floats range from 0 to `white`, which
    `float_white` determines from all images of a clip.

    Raises `NotAVideo`, `NotWritable` (no permission to read).
    """
    with _opened(path) as image:
        rotated = image.format == "TIFF"  # Pillow and OpenCV rotate TIFFs when they decode them
        rgb = _rgb(image, path, white)
        transpose = None if rotated else _TRANSPOSES.get(_orientation(image))
        if transpose is not None:
            rgb = np.asarray(Image.fromarray(rgb).transpose(transpose))
        return rgb


def float_white(paths: Sequence[Path]) -> float:
    """Return the value of white in float images: 255 if any value is above 1, otherwise 1.

    Returns 1.0 if the first image is not a float image. One file is not enough: a dark frame of a
    clip with values up to 255 may have no value above 1. Raises the errors of `read_picture`.
    """
    for path in paths:
        with suppress(V2VError), _opened(path) as image:  # the error is reported on decoding
            if image.mode != "F":
                return 1.0
            if np.nanmax(np.asarray(image), initial=0) > 1:
                return 255.0
    return 1.0


def has_transparency(path: Path) -> bool:
    """Whether any pixel is not fully opaque. Raises the errors of `read_picture`."""
    with _opened(path) as image:
        return _alpha(image) is not None


def read_labels(path: Path) -> LabelImage:
    """Read the ids or the colours of a label map of any bit depth. Transparency is ignored.

    Raises `NotAVideo`, `NotWritable` (no permission to read).
    """
    with _opened(path) as image:
        lossy = image.format in LOSSY or (image.format == "WEBP" and _is_lossy_webp(path))
        deep = _is_deep(image) or image.mode.startswith("I")
        if _is_deep(image):
            values = _deep_values(path)
        elif image.mode in ("LA", "PA"):
            values = np.asarray(image)[..., 0]  # transparent pixels also hold ids
        elif image.mode in ("L", "P", "1", "F") or image.mode.startswith("I"):
            values = np.asarray(image)
        else:
            values = np.asarray(image.convert("RGB"))
        values = _checked(values, path)
    if values.dtype.kind == "f":
        if (values != np.floor(values)).any():
            raise NotAVideo(
                f"{path} has fractional values; label ids must be whole numbers",
                hint="save the label ids as an 8-bit or 16-bit greyscale PNG",
            )
        values = np.clip(values, -(2.0**53), 2.0**53)
    return LabelImage(values.astype(np.int64), deep, lossy)


# ---------------------------------------------------------------- animations


def animation_kind(path: Path) -> Literal["apng", "gif", "webp"] | None:
    """Return a file's animation format, None if it is no animation.

    Reads headers only and never raises. libav decodes APNG and GIF, `read_animation` WebP.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            if head.startswith(b"\x89PNG"):
                control = (body for kind, body in _png_chunks(file) if kind == b"acTL")
                return "apng" if int.from_bytes(next(control, b"")[:4], "big") > 1 else None
            if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
                frames = (kind for kind, _ in _webp_chunks(file) if kind == b"ANMF")
                return "webp" if len(list(islice(frames, 2))) == 2 else None
        if head.startswith((b"GIF87a", b"GIF89a")):
            with _opened(path) as image:
                return "gif" if getattr(image, "is_animated", False) else None
    except (OSError, V2VError):
        pass
    return None


def animation_durations(path: Path) -> list[int]:
    """Return the duration of each frame of an animated WebP in milliseconds."""
    durations = []
    with open(path, "rb") as file:
        for kind, body in _webp_chunks(file):
            if kind == b"ANMF" and len(body) >= 16:
                durations.append(int.from_bytes(body[12:15], "little") or DEFAULT_DURATION)
    return durations


def read_animation(path: Path) -> Iterator[Picture]:
    """Yield the frames of an animated WebP in order, composited over black.

    Frames are decoded one by one; the iterator stops at the first frame that cannot be decoded.
    Raises the errors of `read_picture` if the file itself cannot be read.
    """
    with _opened(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            try:
                image.seek(number)
                frame = _rgb(image, path, 1.0)
            except Exception:  # damaged bytes make Pillow's readers raise any exception
                return
            yield frame


def _png_chunks(file: Any) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, first 8 bytes) of a PNG's chunks before the pixel data, from any position."""
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
        size = int.from_bytes(head[:4], "big")
        body = file.read(min(size, 8))
        yield head[4:], body
        file.seek(size + 4 - len(body), os.SEEK_CUR)  # a checksum follows


def _webp_chunks(file: Any) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, first 16 bytes) of a WebP's chunks; `file` may be at any position."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[4:], "little")
        body = file.read(min(size, 16))
        yield head[:4], body
        file.seek(size + size % 2 - len(body), os.SEEK_CUR)


def _is_lossy_webp(path: Path) -> bool:
    with open(path, "rb") as file:
        return all(kind != b"VP8L" for kind, _ in _webp_chunks(file))


# ---------------------------------------------------------------- opening


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image and check its header and size; reading errors become `V2VError`s."""
    try:
        if path.is_dir():
            raise NotAVideo(f"{path} is a folder, not an image", hint=None)
        # Open by handle: Pillow memory-maps a path, and then misreads rotated TIFFs.
        with open(path, "rb") as file, Image.open(file, formats=_formats()) as image:
            width, height = image.size
            if min(width, height) < 1:
                raise NotAVideo(f"{path} has an invalid size: {width}x{height}", hint=_SAVE_AGAIN)
            if width * height > MOST_PIXELS or max(width, height) > MOST_SIDE:
                raise _too_large(path, f"{width}x{height} pixels")
            yield image
    except V2VError:
        raise
    except PermissionError as error:
        raise NotWritable(f"no permission to read {path}", hint=None) from error
    except UnidentifiedImageError as error:
        raise NotAVideo(f"{path} cannot be read as an image", hint=_SAVE_AGAIN) from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise _too_large(path, "more pixels than fit in memory") from error
    except Exception as error:  # damaged bytes make Pillow's readers raise any exception
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise NotAVideo(f"{path} cannot be read as an image{reason}", hint=_SAVE_AGAIN) from error


_SAVE_AGAIN = "the file is damaged or in an unsupported format; save it again as PNG or JPEG"


def _too_large(path: Path, what: str) -> NotAVideo:
    return NotAVideo(
        f"{path} is too large: {what}",
        hint=f"the limit is {MOST_PIXELS // 1_000_000} megapixels; downscale it first",
    )


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if the metadata is damaged, as in viewers."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # the pixels may be intact
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


# ---------------------------------------------------------------- pixels


def _rgb(image: Image.Image, path: Path, white: float) -> Picture:
    """Return an open image's pixels as displayed, before rotation."""
    if _is_deep(image):
        rgb = _from_16_bits(_deep_values(path))  # Pillow keeps only the upper byte
    elif image.mode == "F" or image.mode.startswith("I"):
        grey = _eight_bits(np.asarray(image), path, white)
        rgb = np.repeat(grey[..., None], 3, axis=2)
    else:
        rgb = np.asarray(_srgb(image))
    rgb = _checked(rgb, path)
    alpha = _alpha(image)
    if alpha is not None:
        product = rgb.astype(np.uint16) * alpha[..., None]
        rgb = ((product + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(rgb, dtype=np.uint8)


def _eight_bits(values: NDArray[Any], path: Path, white: float) -> NDArray[np.uint8]:
    values = _checked(values, path)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise NotAVideo(
                f"{path} has NaN or infinite values",
                hint="float values must be from 0 to 1, or from 0 to 255",
            )
        if values.min() < 0 or values.max() > white:
            raise NotAVideo(
                f"{path} has float values from {values.min():g} to {values.max():g}",
                hint="float values must be from 0 to 1, or from 0 to 255",
            )
        return np.asarray(np.rint(values.astype(np.float64) * (255 / white)), np.uint8)
    if values.min() < 0 or values.max() > 65535:
        raise NotAVideo(
            f"{path} has values from {values.min()} to {values.max()}",
            hint="images of more than 8 bits must have values from 0 to 65535",
        )
    return _from_16_bits(values)


def _from_16_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return value / 257, rounded."""
    return np.asarray((values.astype(np.uint32) + 128) // 257, np.uint8)


def _checked(values: NDArray[Any], path: Path) -> NDArray[Any]:
    if not values.size:
        raise NotAVideo(f"{path} has no pixels", hint=_SAVE_AGAIN)
    return values


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow would truncate 16-bit colours to 8 bits."""
    grey = image.mode == "F" or image.mode.startswith("I")
    return image.format in ("PNG", "TIFF") and not grey and ";16" in str(getattr(image, "tile", ""))


def _deep_values(path: Path) -> NDArray[Any]:
    """Read an image of 16 bits per channel as uint16 [H, W, 3]."""
    raw = np.fromfile(path, np.uint8)
    values = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise NotAVideo(f"{path} cannot be read as an image", hint=_SAVE_AGAIN)
    if values.ndim == 2 or values.shape[2] < 3:  # grey with alpha
        values = np.repeat(values.reshape(*values.shape[:2], -1)[..., :1], 3, axis=2)
    return np.asarray(values[..., 2::-1])


def _alpha(image: Image.Image) -> NDArray[np.uint8] | None:
    """Return the [H, W] alpha channel, 255 = opaque; None if every pixel is opaque."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        if image.mode in ("La", "RGBa"):  # premultiplied: already composited over black
            return None
        alpha = np.asarray(image.getchannel("A"))
    elif "transparency" in image.info and image.mode in ("P", "L", "RGB") and not _is_deep(image):
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    else:
        return None
    return None if alpha.min(initial=255) == 255 else alpha


def _srgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit sRGB without alpha."""
    profile = image.info.get("icc_profile")
    colours = image if image.mode in ("RGB", "CMYK", "LAB") else None
    if image.mode in ("RGBA", "RGBX", "P", "YCbCr", "HSV"):
        colours = image.convert("RGB")
    if isinstance(profile, bytes) and colours is not None:
        transform = _to_srgb(profile, colours.mode)
        if transform is not None:
            converted = ImageCms.applyTransform(colours, transform)
            if converted is not None:
                return converted
    if image.mode in ("La", "RGBa"):
        # Pillow's conversion divides by alpha, so drop the alpha band and keep the values.
        bands = image.split()[:-1]
        return Image.merge("RGB", bands * 3 if len(bands) == 1 else bands)
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> Any:
    """Return the transform from a colour profile, None if it is sRGB or unusable."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode != "RGB":
            return transform
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
        converted = ImageCms.applyTransform(Image.fromarray(grid), transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, struct.error):
        return None  # ignore a damaged profile or one for other channels, as viewers do
    is_srgb = (
        converted is not None and np.abs(np.asarray(converted, np.int16) - grid).max() <= ALIKE
    )
    return None if is_srgb else transform
