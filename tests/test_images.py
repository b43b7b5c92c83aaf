"""Image files of every kind: the decoded pixels, and the files that are refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from v2v.errors import MediaError, NotAVideo, V2VError
from v2v.images import (
    animation_durations,
    animation_kind,
    float_white,
    has_transparency,
    inspect_image,
    read_animation,
    read_labels,
    read_picture,
)
from v2v.preprocess.run import expand_inputs
from v2v.video.plan import plan_frames, plan_geometry
from v2v.video.probe import ANIMATED_WEBP, probe
from v2v.video.read import read_upright
from v2v.video.stored import PixelReader

# Every eighth of 96 levels from black to white, and their 8-bit values (value / 257, rounded).
RAMP = np.rint(np.linspace(0, 65535, 96)).astype(np.uint16)[None, ::8].repeat(8, axis=0)
LEVELS = [0, 21, 43, 64, 86, 107, 129, 150, 172, 193, 215, 236]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, colour_type: int, *, claim: tuple[int, int] | None = None) -> bytes:
    """Encode uint8 or uint16 [H, W, C] as a PNG, including kinds that Pillow cannot write."""
    height, width = values.shape[:2]
    bits = 8 * values.dtype.itemsize
    header = struct.pack(">IIBBBBB", *(claim or (width, height)), bits, colour_type, 0, 0, 0)
    rows = values.astype(values.dtype.newbyteorder(">"))
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def read_as_clip(path: Path) -> np.ndarray:
    return read_picture(path, white=float_white([path]))


# ---------------------------------------------------------------- more than 8 bits


def save_float(white: float) -> Callable[[Path], None]:
    return lambda path: Image.fromarray((RAMP / 65535 * white).astype(np.float32)).save(path)


HIGH_BIT_DEPTH: dict[str, Callable[[Path], object]] = {
    "16.png": lambda path: Image.fromarray(RAMP).save(path),
    "16.tif": lambda path: Image.fromarray(RAMP).save(path),
    "16 packed.tif": lambda path: Image.fromarray(RAMP).save(path, compression="tiff_lzw"),
    "16 big-endian.tif": lambda path: Image.fromarray(RAMP.astype(">u2")).save(path),
    "16.ppm": lambda path: Image.fromarray(RAMP.astype(np.int32)).save(path),
    "32.tif": lambda path: Image.fromarray(RAMP.astype(np.int32)).save(path),
    "float to 1.tif": save_float(1),
    "float to 255.tif": save_float(255),
    "colour.png": lambda path: path.write_bytes(png(np.dstack([RAMP] * 3), 2)),
    "colour.tif": lambda path: cv2.imwrite(str(path), np.dstack([RAMP] * 3)),
    "opaque grey.png": lambda path: path.write_bytes(png(np.dstack([RAMP, RAMP | 65535]), 4)),
    "opaque.png": lambda path: path.write_bytes(png(np.dstack([RAMP] * 3 + [RAMP | 65535]), 6)),
}


@pytest.mark.parametrize("name", HIGH_BIT_DEPTH)
def test_high_bit_depth_images_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    HIGH_BIT_DEPTH[name](path)
    shown = read_as_clip(path)
    assert shown.shape == (8, 12, 3) and shown.dtype == np.uint8
    expected = np.broadcast_to(np.array(LEVELS, np.uint8)[:, None], (8, 12, 3))
    np.testing.assert_array_equal(shown, expected)


def test_16_bit_colour_images_keep_their_channel_order(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(np.full((4, 4, 3), (65535, 32639, 257), np.uint16), 2))
    assert read_as_clip(path)[0, 0].tolist() == [255, 127, 1]


def test_a_dark_float_image_uses_the_white_level_of_its_clip(tmp_path: Path) -> None:
    dark, bright = tmp_path / "1.tif", tmp_path / "2.tif"
    Image.fromarray(np.full((4, 4), 1, np.float32)).save(dark)
    Image.fromarray(np.full((4, 4), 200, np.float32)).save(bright)
    assert float_white([dark]) == 1 and float_white([dark, bright]) == 255
    assert read_picture(dark, white=255).max() == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 256])
def test_invalid_float_values_are_refused(tmp_path: Path, value: float) -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(NotAVideo) as caught:
        read_as_clip(tmp_path / "a.tif")
    assert "from 0 to 1, or from 0 to 255" in str(caught.value.hint)


# ---------------------------------------------------------------- transparency, colours, rotation


def test_transparent_pixels_become_black_and_opaque_ones_are_unchanged(tmp_path: Path) -> None:
    values = np.full((4, 4, 4), (10, 250, 30, 255), np.uint8)
    values[0], values[1, :, 3] = (0, 250, 0, 0), 128
    half = [round(v * 128 / 255) for v in (10, 250, 30)]
    for name, quality in (("a.png", {}), ("a.webp", {"lossless": True, "exact": True})):
        Image.fromarray(values).save(tmp_path / name, **quality)  # type: ignore[arg-type]
        shown = read_picture(tmp_path / name)
        assert shown[:, 0].tolist() == [[0, 0, 0], half, [10, 250, 30], [10, 250, 30]], name
        assert has_transparency(tmp_path / name)
    palette = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8)).convert("P")
    palette.putpalette([0, 255, 0, 9, 8, 7, 1, 2, 3])
    palette.save(tmp_path / "p.png", transparency=0)
    first = palette.convert("RGB").getpixel((0, 0))
    assert first == (0, 255, 0)
    assert read_picture(tmp_path / "p.png").reshape(-1, 3)[0].tolist() == [0, 0, 0]
    Image.fromarray(values[2:]).save(tmp_path / "opaque.png")
    assert not has_transparency(tmp_path / "opaque.png")


def test_transparency_is_noted(tmp_path: Path) -> None:
    values = np.full((32, 32, 4), 255, np.uint8)
    for number in range(20):
        values[0, 0, 3] = 0 if number > 10 else 255  # a fade that starts halfway through the clip
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    assert any("composited over black" in note for note in probe(tmp_path).notes)
    assert not probe(tmp_path / "0.png").notes


def profile(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    """An ICC profile with sRGB's curve and these primaries (XYZ, adapted to D50)."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0)
    curve += fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    text = b"text\0\0\0\0none\0\0\0\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(78)
    tags = {b"desc": name, b"cprt": text, b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)}
    tags |= {
        key: b"XYZ \0\0\0\0" + fixed(*xyz)
        for key, xyz in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue))
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for key, body in tags.items():
        body += bytes(-len(body) % 4)
        table += key + struct.pack(">II", offset + len(data), len(body))
        data += body
    head = struct.pack(">I4sI4s4s4s", offset + len(data), bytes(4), 0x02400000, b"mntr", b"RGB ",
                       b"XYZ ") + bytes(12) + b"acsp" + bytes(28)  # fmt: skip
    head += fixed(0.9642, 1, 0.8249) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + data


DISPLAY_P3 = profile((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189),
                     (0.1571, 0.06657, 0.78407))  # fmt: skip
P3_TO_SRGB = np.array([[1.2249, -0.2247, 0], [-0.042, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])


def test_wide_gamut_colours_become_srgb(tmp_path: Path) -> None:
    colours = np.array([[(180, 120, 90), (90, 140, 100), (128, 128, 128)]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png", icc_profile=DISPLAY_P3)
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = linear @ P3_TO_SRGB.T
    expected = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    shown = read_picture(tmp_path / "a.png")
    assert np.abs(shown - 255 * expected).max() < 2
    assert np.abs(shown.astype(int) - colours).max() > 5, "the conversion must change these colours"


def test_srgb_and_damaged_profiles_do_not_change_the_pixels(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (own, own[:200], b"no profile", DISPLAY_P3[:150]):
        Image.fromarray(colours).save(tmp_path / "a.png", icc_profile=data)
        np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), colours)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("high_bit_depth", [False, True])
def test_exif_rotation_is_applied(tmp_path: Path, suffix: str, high_bit_depth: bool) -> None:
    if high_bit_depth and suffix == "webp":
        pytest.skip("WebP is always 8-bit")
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(96, dtype=np.uint8).reshape(8, 12)
    path = tmp_path / f"a.{suffix}"
    quality = {"lossless": True} if suffix == "webp" else {}
    image = Image.fromarray(
        values.astype(np.uint16) * 257 if high_bit_depth else np.dstack([values] * 3)
    )
    image.save(path, exif=exif, **quality)  # type: ignore[arg-type]
    np.testing.assert_array_equal(read_picture(path)[..., 0], np.rot90(values, -1))
    info = inspect_image(path)
    assert (info.width, info.height) == (8, 12)


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 60)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), values)


# ---------------------------------------------------------------- hostile and damaged

GREY = np.zeros((8, 8, 1), np.uint8)
BOMB = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(8_000_000)))
TIFF = b"II*\0\x08\0\0\0\x03\0" + b"".join(
    struct.pack("<HHII", tag, 4, 1, value) for tag, value in ((256, 99999), (257, 99999), (273, 8))
)
HOSTILE = {
    "claims.png": png(GREY, 0, claim=(60000, 60000)),
    "claims less.png": png(GREY, 0, claim=(15000, 12000)),
    "claims nothing.png": png(GREY, 0, claim=(0, 0)),
    "long.png": png(GREY, 0, claim=(100_000, 1)),
    "text.png": png(GREY, 0)[:33] + BOMB + png(GREY, 0)[33:],
    "cut.png": png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), 2)[:900],
    "claims.tif": TIFF + bytes(8),
    "claims.bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 99999, -99999, 1, 24, 0, 0, 0, 0, 0, 0),
    "cut.webp": b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff" + bytes(9),
    "empty.png": b"",
    "text.jpg": b"hello",
    "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # would run Ghostscript
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_raise_one_clear_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    for read in (read_picture, read_labels, has_transparency):
        if read is has_transparency and name.startswith(("cut.png", "claims less")):
            continue  # the header rules out transparency, so the pixels are not read
        with pytest.raises(NotAVideo, match=name) as caught:
            read(path)
        assert "\n" not in caught.value.message
    with pytest.raises(MediaError):
        list(read_upright(probe(path), *_plan(path)))


def _plan(path: Path):  # type: ignore[no-untyped-def]
    return plan_frames(probe(path)), plan_geometry(probe(path))


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(NotAVideo, match="is a folder"):
        read_picture(tmp_path)
    (tmp_path / "1.png").mkdir()
    with pytest.raises(NotAVideo, match="contains no images"):
        probe(tmp_path)


def test_the_first_image_may_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    Image.new("RGB", (32, 32), (200, 10, 10)).save(tmp_path / "1.png")
    probed = probe(tmp_path)
    frames = list(read_upright(probed, *_plan(tmp_path)))
    assert [frame.lost for frame in frames] == [True, False]


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F",
         "I;16", "I;16B", "La", "RGBa"]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    suffix=st.sampled_from(["png", "jpg", "tif", "bmp", "webp", "gif", "ppm", "tga"]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 99),
    corruption=st.none() | st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)),
)
def test_every_pillow_image_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, mode: str, suffix: str, size: tuple[int, int],
    seed: int, corruption: tuple[float, bytes] | None,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("image") / f"a.{suffix}"
    noise = np.random.default_rng(seed).integers(0, 256, 8 * size[0] * size[1], np.uint8)
    image = Image.new(mode, size)
    byte_count = len(image.tobytes())
    if mode not in ("F", "PA", "La", "RGBa"):
        image.frombytes(noise.tobytes()[:byte_count])
    try:
        image.save(path)
    except (OSError, ValueError, KeyError, SystemError):
        return  # this format does not support the mode
    if corruption is not None:
        data = bytearray(path.read_bytes())
        start = int(corruption[0] * (len(data) - 1))
        data[start : start + len(corruption[1])] = corruption[1]
        path.write_bytes(data)
    try:
        shown = read_as_clip(path)
    except V2VError as error:
        assert str(path) in error.message
        return
    assert shown.dtype == np.uint8 and shown.ndim == 3 and shown.shape[2] == 3
    if corruption is None:
        assert shown.shape == (size[1], size[0], 3)


# ---------------------------------------------------------------- animations


def frames_of(count: int, *, alpha: bool = False) -> list[Image.Image]:
    """A square that moves 4 pixels per frame on black or transparency, above a grey area."""
    frames = []
    for number in range(count):
        values = np.zeros((32, 64, 4 if alpha else 3), np.uint8)
        values[8:16, 4 * number : 4 * number + 8] = 255
        values[20:] = (90, 90, 90, 128)[: values.shape[2]]
        frames.append(Image.fromarray(values))
    return frames


def animate(path: Path, durations: int | list[int], *, alpha: bool = False, kind: str) -> Path:
    count = 8 if isinstance(durations, int) else len(durations)
    first, *others = frames_of(count, alpha=alpha)
    first.save(
        path, format=kind, save_all=True, append_images=others, duration=durations, lossless=True
    )
    return path


def square_positions(path: Path, **options: Fraction) -> list[float]:
    """The x position of the square in each stored frame."""
    probed = probe(path)
    plan = plan_frames(probed, fps=options.get("fps"))
    pixels = PixelReader()
    shown = [
        pixels(f.frame) for f in read_upright(probed, plan, plan_geometry(probed)) if not f.lost
    ]
    return [float(np.flatnonzero(frame[12, :, 0] > 128)[0]) for frame in shown]


def test_an_animated_webp_keeps_its_timing(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.webp", 62, alpha=True, kind="WEBP")
    probed = probe(path)
    assert probed.container == ANIMATED_WEBP and probed.frames == 8
    assert probed.rate == Fraction(1000, 62) and not probed.variable_rate
    assert probed.notes, "a note must report that transparency becomes black"
    assert {int(frame[30, 30, 0]) for frame in read_animation(path)} == {45}
    assert square_positions(path) == [4 * n for n in range(8)]
    assert square_positions(path, fps=Fraction(1000, 124)) == [8 * n for n in range(4)]


def test_pauses_in_an_animation_are_kept(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.webp", [100, 100, 400, 100, 100, 100], kind="WEBP")
    probed = probe(path)
    assert probed.variable_rate and probed.rate == 10
    assert square_positions(path) == [0, 4, 8, 8, 8, 8, 12, 16, 20]


def test_slow_animations_are_sampled_once_per_second(tmp_path: Path) -> None:
    probed = probe(animate(tmp_path / "a.webp", [12_000, 12_000], kind="WEBP"))
    assert probed.rate == 1 and probed.variable_rate
    assert len(plan_frames(probed)) == 13


def test_rounded_millisecond_durations_map_to_a_standard_rate(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.webp", [41, 42, 42] * 4, kind="WEBP")
    assert probe(path).rate == 24 and not probe(path).variable_rate


@pytest.mark.parametrize(
    ("kind", "name", "found"),
    [
        ("PNG", "a.png", "apng"), ("PNG", "a.webp", "apng"), ("GIF", "a.png", "gif"),
        ("WEBP", "a.png", "webp"), ("WEBP", "a.gif", "webp"),
    ],
)  # fmt: skip
def test_animation_kind_depends_on_content_not_suffix(
    tmp_path: Path, kind: str, name: str, found: str
) -> None:
    path = animate(tmp_path / name, 100, kind=kind)
    assert animation_kind(path) == found
    probed = probe(path)
    assert probed.frames == 8 and not probed.images and float(probed.rate) == pytest.approx(10)
    assert square_positions(path) == [4 * n for n in range(8)]


def test_a_still_image_is_not_an_animation(tmp_path: Path) -> None:
    for name in ("a.png", "a.webp"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
        assert animation_kind(tmp_path / name) is None
        assert probe(tmp_path / name).images == (tmp_path / name,)
    animated = animate(tmp_path / "b.webp", 50, kind="WEBP")
    assert read_picture(animated).shape == (32, 64, 3), (
        "read_picture returns the first frame of an animation"
    )


def test_each_animation_in_a_folder_is_a_clip(tmp_path: Path) -> None:
    for name in ("10.webp", "2.webp"):
        animate(tmp_path / name, 50, kind="WEBP")
    (tmp_path / "._2.webp").write_bytes(b"companion")
    jobs = expand_inputs([str(tmp_path)], None)
    assert [job.source.name for job in jobs] == ["2.webp", "10.webp"]
    with pytest.raises(NotAVideo, match=r"contains animations, such as 2\.webp"):
        probe(tmp_path)


def test_a_damaged_animation_is_refused_or_truncated(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.webp", 50, kind="WEBP")
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(40):
        corrupted = bytearray(data)
        for offset in generator.integers(12, len(data), 3):
            corrupted[offset] ^= int(generator.integers(1, 256))
        path.write_bytes(corrupted[: int(generator.integers(20, len(data)))])
        try:
            shown = list(read_animation(path))
            assert len(animation_durations(path)) >= 0
        except V2VError:
            continue
        assert all(frame.shape[2] == 3 for frame in shown)
