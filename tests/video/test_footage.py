"""Stored frames of many codecs, containers, rotations and clocks, compared with ffmpeg's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from v2v.errors import BrokenStream, MediaNotFound, NotAVideo, UsageError
from v2v.video.audio import copy_audio
from v2v.video.plan import FramePlan, plan_frames, plan_geometry
from v2v.video.probe import Probe, probe
from v2v.video.read import read_upright, stored_matrix
from v2v.video.stored import read_stored
from v2v.video.write import RoundTripEncoder

CODEC_ERROR = 3.0  # of 255: H.264 at crf 16 with 4:2:0 chroma, on smooth content
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast", "-crf", "12")
SAFE = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "fast", "-crf", "12", "-bf", "2")


@dataclass(frozen=True)
class Stored:
    """Footage after the round trip through the store encoder."""

    probe: Probe
    plan: FramePlan
    frames: np.ndarray  # RGB [T, H, W, 3]
    lost: list[int]


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Stored]:
    def run(path: Path, *, size: Any = None, first: int = 0, **plan_options: Any) -> Stored:
        footage = probe(path)
        plan = plan_frames(footage, **plan_options)
        geometry = plan_geometry(footage, size=size)
        target = tmp_path / "stored.mp4"
        encoder = RoundTripEncoder(
            target, width=geometry.width, height=geometry.height, rate=plan.rate, crf=16,
            preset="ultrafast", matrix=stored_matrix(footage),
        )  # fmt: skip
        indices, lost, decoded_count = [], [], 0
        for placed in read_upright(footage, plan, geometry, first=first):
            indices.append(placed.index)
            if placed.lost:
                lost.append(placed.index)
            decoded_count += len(list(encoder.encode(placed.frame)))
        decoded_count += len(list(encoder.close()))
        assert indices == list(range(first, len(plan)))
        frames = np.stack(list(read_stored(target)))
        assert len(frames) == decoded_count == len(plan) - first
        return Stored(footage, plan, frames, lost)

    return run


def crop_to_even(frames: np.ndarray) -> np.ndarray:
    """Drop an odd last row and column, which 4:2:0 cannot store."""
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


# ---------------------------------------------------------------- every codec and container

FORMATS = {
    "h264": ("a.mp4", *SAFE),
    "h264-open-gop": ("a.mp4", *SAFE, "-g", 6, "-x264-params", "open-gop=1:scenecut=0"),
    "h264-10bit": ("a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-crf", 12),
    "h264-422": ("a.mkv", "-c:v", "libx264", "-pix_fmt", "yuv422p", "-crf", 12),
    "h264-444": ("a.mkv", "-c:v", "libx264", "-pix_fmt", "yuv444p", "-crf", 12),
    "h264-rgb": ("a.mkv", "-c:v", "libx264rgb", "-pix_fmt", "rgb24", "-crf", 12),
    "h264-grey": ("a.mp4", "-c:v", "libx264", "-pix_fmt", "gray", "-crf", 12),
    "h264-avi": ("a.avi", *SAFE),
    "h264-interlaced": ("a.mp4", *X264, "-flags", "+ildct+ilme", "-x264-params", "tff=1"),
    "h264-ts": ("a.ts", *SAFE, "-g", 5),
    "hevc": ("a.mp4", "-c:v", "libx265", "-x265-params", "log-level=none:keyint=5", "-crf", 12),
    "hevc-10bit": (
        "a.mkv", "-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none",
        "-crf", 12,
    ),
    "vp8": ("a.webm", "-c:v", "libvpx", "-b:v", "2M", "-auto-alt-ref", 1, "-lag-in-frames", 8),
    "vp9": ("a.webm", "-c:v", "libvpx-vp9", "-b:v", 0, "-crf", 8, "-lag-in-frames", 8),
    "av1": ("a.mkv", "-c:v", "libaom-av1", "-cpu-used", 8, "-crf", 8, "-lag-in-frames", 4),
    "gif": ("a.gif", "-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none"),
    "apng": ("a.apng", "-c:v", "apng"),
    "mpeg4-avi": ("a.avi", "-c:v", "mpeg4", "-q:v", 1, "-bf", 2),
    "mpeg2-ps": ("a.mpg", "-c:v", "mpeg2video", "-q:v", 1, "-bf", 2, "-g", 5),
    "mpeg2-ts": ("a.ts", "-c:v", "mpeg2video", "-q:v", 1, "-bf", 2, "-g", 5),
    "wmv": ("a.wmv", "-c:v", "wmv2", "-q:v", 3),
    "flv": ("a.flv", *SAFE),
    "mjpeg-full-range": ("a.avi", "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", 1),
    "prores": ("a.mov", "-c:v", "prores_ks", "-profile:v", 2),
    "prores-4444": ("a.mov", "-c:v", "prores_ks", "-profile:v", 4, "-pix_fmt", "yuva444p10le"),
    "ffv1-rgb": ("a.mkv", "-c:v", "ffv1", "-pix_fmt", "gbrp"),
    "raw-bgr": ("a.avi", "-c:v", "rawvideo", "-pix_fmt", "bgr24"),
    "png-in-mov": ("a.mov", "-c:v", "png"),
    "y4m": ("a.y4m", "-pix_fmt", "yuv444p"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMATS)
def test_every_format_is_stored_completely(
    case, make_video, store, reference_decode, read_numbers, colour_error
):
    name, *options = FORMATS[case]
    path = make_video(name, *options, frames=23)
    stored = store(path)
    assert read_numbers(stored.frames) == list(range(23))
    assert stored.lost == []
    assert colour_error(stored.frames, crop_to_even(reference_decode(path))) < CODEC_ERROR
    assert (stored.probe.rate, stored.probe.variable_rate) == (25, False)
    assert (stored.probe.upright_width, stored.probe.upright_height) == (64, 48)


@pytest.mark.parametrize("case", FORMATS)
def test_reading_can_start_at_any_frame(case, make_video, read_numbers):
    """A resumed run starts in the middle and must read the same frames as the first run."""
    name, *options = FORMATS[case]
    footage = probe(make_video(name, *options, frames=23))
    plan, geometry = plan_frames(footage), plan_geometry(footage)

    def planes(first: int) -> list[np.ndarray]:
        return [p.frame.to_ndarray() for p in read_upright(footage, plan, geometry, first=first)]

    whole = planes(0)
    for first in range(1, 23, 3):
        tail = planes(first)
        assert len(tail) == 23 - first
        for index, (decoded, truth) in enumerate(
            zip(tail, whole[first:], strict=True), start=first
        ):
            assert np.array_equal(decoded, truth), f"frame {index}, started at {first}"


# ---------------------------------------------------------------- rotation, aspect, even sizes


ROTATIONS = {
    "90": ("-display_rotation", 90),
    "180": ("-display_rotation", 180),
    "270": ("-display_rotation", 270),
    "mirrored": ("-display_hflip",),
    "upside-down": ("-display_vflip",),
    "90-mirrored": ("-display_rotation", 90, "-display_hflip"),
    "270-mirrored": ("-display_rotation", 270, "-display_hflip"),
}


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_rotated_and_mirrored_footage(
    name, rotation, make_video, run_ffmpeg, store, reference_decode, colour_error, tmp_path
):
    plain = make_video("plain.mp4", *X264, frames=5)
    rotated = tmp_path / name
    run_ffmpeg(*ROTATIONS[rotation], "-i", plain, "-c", "copy", rotated)
    truth = reference_decode(rotated)
    assert colour_error(reference_decode(plain)[:, :48, :48], truth[:, :48, :48]) > 20
    stored = store(rotated)
    assert stored.frames.shape == truth.shape
    assert np.abs(stored.frames.astype(int) - truth).mean() < CODEC_ERROR
    if name == "a.mp4" and "-" not in rotation and rotation != "mirrored":
        assert stored.probe.rotation == 360 - int(rotation)  # ffmpeg counts counterclockwise


def test_rotation_metadata_turns_footage_upright(
    make_video, run_ffmpeg, store, read_numbers, tmp_path
):
    """Checks the direction independently of ffmpeg: footage stored on its side becomes upright."""
    plain = make_video("plain.mp4", *X264, "-vf", "transpose=clock", frames=5)
    run_ffmpeg("-display_rotation", 90, "-i", plain, "-c", "copy", tmp_path / "a.mp4")
    stored = store(tmp_path / "a.mp4")
    assert read_numbers(stored.frames) == list(range(5))
    assert stored.frames.shape == (5, 48, 64, 3)


@pytest.mark.parametrize(
    ("aspect", "shown"),
    [("4/3", (85, 48)), ("16/11", (93, 48)), ("10/11", (58, 48)), ("1/2", (32, 48))],
)
def test_non_square_pixels(aspect, shown, make_video, store, reference_decode, colour_error):
    path = make_video("a.mp4", *SAFE, "-vf", f"setsar={aspect}", frames=6)
    stored = store(path)
    assert (stored.probe.upright_width, stored.probe.upright_height) == shown
    assert (
        colour_error(stored.frames, crop_to_even(reference_decode(path, size=shown))) < CODEC_ERROR
    )


def test_non_square_pixels_with_rotation(
    make_video, run_ffmpeg, store, reference_decode, read_numbers, tmp_path
):
    filters = "transpose=clock,setsar=4/3"
    plain = make_video("plain.mp4", *X264, "-vf", filters, frames=5, size=(96, 64))
    run_ffmpeg("-display_rotation", 90, "-i", plain, "-c", "copy", tmp_path / "a.mp4")
    stored = store(tmp_path / "a.mp4")
    assert stored.frames.shape == (5, 84, 96, 3)  # 64 rotated lines of 4:3 pixels become 85
    assert read_numbers(stored.frames) == list(range(5))


@pytest.mark.parametrize("size", [(101, 57), (17, 16), (64, 49), (65, 48)])
@pytest.mark.parametrize("pixels", ["yuv444p", "yuv420p"])
def test_odd_sizes_become_even(size, pixels, make_video, store, reference_decode, read_numbers):
    path = make_video("a.mkv", "-c:v", "ffv1", "-pix_fmt", pixels, frames=4, size=size)
    stored, truth = store(path), reference_decode(path)
    assert truth.shape[1:3] == size[::-1]
    assert stored.frames.shape == crop_to_even(truth).shape
    smooth = np.abs(stored.frames[:, 32:].astype(int) - crop_to_even(truth)[:, 32:])
    assert not smooth.size or smooth.mean() < CODEC_ERROR
    assert read_numbers(stored.frames) == list(range(4))


@pytest.mark.parametrize("size", [32, (48, 32), (96, 96)])
def test_a_requested_size(size, make_video, store, read_numbers):
    stored = store(make_video("a.mp4", *SAFE, frames=5), size=size)
    shape = (32, 42) if size == 32 else (size[1], size[0])
    assert stored.frames.shape == (5, *shape, 3)
    if size != (96, 96):  # a square crop removes the outer blocks
        assert read_numbers(stored.frames) == list(range(5))


def test_a_size_change_within_the_stream(
    make_video, store, numbered_frames, read_numbers, tmp_path
):
    small = make_video("1.ts", *X264, frames=numbered_frames(5))
    large = make_video("2.ts", *X264, frames=numbered_frames(5, width=128, height=96, first=5))
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    stored = store(both)
    assert stored.frames.shape == (10, 48, 64, 3)
    assert read_numbers(stored.frames) == list(range(10))


# ---------------------------------------------------------------- colour

COLOURS = {
    "untagged": ("yuv420p", "smpte170m", "tv", ()),
    "bt709": ("yuv420p", "bt709", "tv", ("bt709", "bt709", "bt709")),
    "bt601": ("yuv420p", "smpte170m", "tv", ("smpte170m", "smpte170m", "smpte170m")),
    "bt470bg": ("yuv420p", "smpte170m", "tv", ("bt470bg", "bt470bg", "bt470bg")),
    "bt709-full": ("yuv420p", "bt709", "pc", ("bt709", "bt709", "bt709")),
    "bt709-full-444": ("yuv444p", "bt709", "pc", ("bt709", "bt709", "bt709")),
    "bt709-10bit": ("yuv420p10le", "bt709", "tv", ("bt709", "bt709", "bt709")),
    "bt601-422-full": ("yuv422p", "smpte170m", "pc", ("smpte170m", "smpte170m", "smpte170m")),
}


def tagged(tags: tuple[str, ...]) -> str:
    """A filter that sets matrix, primaries and transfer, or marks them as unknown."""
    matrix, primaries, transfer = tags or ("unknown", "unknown", "unknown")
    return f",setparams=colorspace={matrix}:color_primaries={primaries}:color_trc={transfer}"


@pytest.mark.parametrize("size", [None, (32, 24)])
@pytest.mark.parametrize("case", COLOURS)
def test_colour_matrices_and_ranges(
    case, size, make_video, store, reference_decode, colour_error, numbered_frames
):
    pixels, matrix, colour_range, tags = COLOURS[case]
    options = ["-c:v", "libx264", "-crf", 8, "-pix_fmt", pixels]
    options += ["-vf", f"scale=out_color_matrix={matrix}:out_range={colour_range}{tagged(tags)}"]
    path = make_video("a.mp4", *options, frames=4)
    truth = numbered_frames(4)
    assert colour_error(reference_decode(path), truth) < CODEC_ERROR
    frames = store(path, size=size).frames
    if size:
        truth = reference_decode(path, size=size)
    assert colour_error(frames, truth) < CODEC_ERROR


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_converted_to_bt709(transfer, make_video, store, read_numbers):
    chain = "scale=out_color_matrix=bt2020" + tagged(("bt2020nc", "bt2020", transfer))
    options = ("-vf", chain, "-c:v", "libx264", "-pix_fmt", "yuv420p10le")
    path = make_video("a.mp4", *options, frames=4)
    stored = store(path)
    assert stored.probe.hdr
    assert len(stored.frames) == 4 and stored.frames.std() > 20


# ---------------------------------------------------------------- time


def test_frames_hidden_by_an_edit_list_are_not_stored(
    make_video, run_ffmpeg, store, reference_decode, read_numbers, tmp_path
):
    """In a copy cut between keyframes, an edit list hides the frames needed only for decoding."""
    whole = make_video("whole.mp4", *SAFE, "-g", 20, frames=50)
    cut = tmp_path / "cut.mp4"
    run_ffmpeg("-ss", "1.08", "-i", whole, "-c", "copy", cut)
    stored = store(cut)
    assert read_numbers(stored.frames) == read_numbers(reference_decode(cut))
    assert read_numbers(stored.frames)[0] == 27
    assert stored.lost == []
    with av.open(str(cut)) as container:
        assert sum(p.size > 0 for p in container.demux(video=0)) > len(stored.frames)


UNEVEN = {  # per container, because every clock rounds differently
    "pauses.mkv": ("select='lt(mod(n,17),9)+lt(n,5)'", 30, X264),
    "pauses.mp4": ("select='lt(mod(n,17),9)+lt(n,5)'", 30, SAFE),
    "pauses60.mkv": ("select='gt(mod(n,29),12)+lt(n,5)'", 60, X264),
    "drops.webm": ("select='mod(n*7,10)'", 25, ("-c:v", "libvpx-vp9", "-crf", 10, "-b:v", 0)),
    "jumps.mp4": ("setpts='(N*40+floor(N/6)*90)/1000/TB'", 25, SAFE),
    "slows.mkv": ("setpts='(N*33+N*N)/1000/TB'", 30, X264),
    "pauses.gif": ("select='lt(mod(n,11),6)'", 20, ()),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_timestamps(name, make_video, store, reference_decode, read_numbers):
    chain, rate, codec = UNEVEN[name]
    options = ("-vf", chain, "-fps_mode", "passthrough", *codec)
    path = make_video(name, *options, frames=70, rate=rate)
    stored = store(path)
    assert stored.probe.variable_rate
    if name != "slows.mkv":  # a millisecond clock cannot distinguish 60 from 59.94
        assert float(stored.probe.rate) == pytest.approx(rate, rel=2e-3)
    truth = read_numbers(reference_decode(path, rate=stored.plan.rate))
    assert read_numbers(stored.frames) == truth


@pytest.mark.parametrize("jitter", [4, 12])
def test_timestamp_jitter_neither_drops_nor_repeats_frames(jitter, make_video, store, read_numbers):
    chain = f"setpts='(N*40+mod(N*7,{jitter}))/1000/TB'"
    options = ("-vf", chain, "-fps_mode", "passthrough", "-enc_time_base", "1:1000")
    stored = store(make_video("a.mkv", *options, *X264, frames=40))
    assert (stored.probe.rate, stored.probe.variable_rate) == (25, False)
    assert read_numbers(stored.frames) == list(range(40))


@pytest.mark.parametrize(
    ("old", "new"), [(30, 25), (24, 60), (25, 25), (50, Fraction(30000, 1001))]
)
def test_a_requested_rate(old, new, make_video, store, reference_decode, read_numbers):
    path = make_video("a.mp4", *SAFE, frames=60, rate=old)
    stored = store(path, fps=Fraction(new))
    assert stored.plan.rate == new
    assert read_numbers(stored.frames) == read_numbers(reference_decode(path, rate=Fraction(new)))


@pytest.mark.parametrize(
    ("start", "end", "kept"),
    [
        (None, 0.4, range(0, 10)),
        (0.4, None, range(10, 60)),
        (1.0, 1.04, range(25, 26)),
        (1.01, 2.0, range(26, 50)),
        (2.3, 99.0, range(58, 60)),
        (0.0, 2.4, range(0, 60)),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_a_time_range(name, start, end, kept, make_video, store, read_numbers):
    stored = store(make_video(name, *SAFE, "-g", 250, frames=60), start=start, end=end)
    assert read_numbers(stored.frames) == list(kept)
    assert stored.plan.start == pytest.approx(kept[0] / 25)


@pytest.mark.parametrize(
    ("start", "end"), [(1.0, 1.0), (2.0, 1.0), (-1.0, None), (99.0, None), (1.001, 1.002)]
)
def test_an_empty_range_is_refused(start, end, make_video):
    footage = probe(make_video("a.mp4", *X264, frames=60))
    with pytest.raises(UsageError) as caught:
        plan_frames(footage, start=start, end=end)
    assert caught.value.hint


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("case", ["h264", "h264-avi", "vp9", "gif", "mjpeg-full-range", "flv"])
def test_very_few_frames(case, count, make_video, store, read_numbers):
    name, *options = FORMATS[case]
    stored = store(make_video(name, *options, frames=count))
    assert read_numbers(stored.frames) == list(range(count))
    assert stored.plan.rate == 25


# ---------------------------------------------------------------- images


def test_a_still_image(store, numbered_frames, read_numbers, colour_error, tmp_path):
    truth = numbered_frames(1, first=77)
    for name in ("a.png", "a.jpg", "a.bmp", "a.webp"):
        Image.fromarray(truth[0]).save(tmp_path / name, quality=95)
        frames = store(tmp_path / name).frames
        assert read_numbers(frames) == [77], name
        assert colour_error(frames, truth) < CODEC_ERROR, name


def test_a_palette_image(store, numbered_frames, colour_error, tmp_path):
    truth = numbered_frames(1, first=77)
    picture = Image.fromarray(truth[0]).quantize(256)
    picture.save(tmp_path / "a.png")
    shown = np.asarray(picture.convert("RGB"))[None]
    assert colour_error(store(tmp_path / "a.png").frames, shown) < CODEC_ERROR


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("folder", [False, True])
def test_exif_orientation(orientation, folder, store, numbered_frames, tmp_path):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photos" / "a.jpg"
    path.parent.mkdir()
    Image.fromarray(numbered_frames(1, first=77)[0]).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        truth = np.asarray(ImageOps.exif_transpose(image))
    decoded = store(path.parent if folder else path).frames
    assert decoded.shape[1:] == truth.shape
    assert np.abs(decoded[0].astype(int) - truth).mean() < CODEC_ERROR


def test_exif_in_motion_jpeg(run_ffmpeg, store, numbered_frames, read_numbers, tmp_path):
    """Cameras write the orientation into every frame; PyAV 18 does not expose it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for index, frame in enumerate(numbered_frames(3)):
        rotated = np.rot90(frame)  # orientation 6 undoes this rotation
        Image.fromarray(rotated).save(tmp_path / f"{index}.jpg", exif=exif, quality=95)
    run_ffmpeg("-i", tmp_path / "%d.jpg", "-c", "copy", tmp_path / "a.avi")
    assert read_numbers(store(tmp_path / "a.avi").frames) == [0, 1, 2]


def write_images(folder: Path, frames: np.ndarray) -> Path:
    folder.mkdir()
    for index, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return folder


def test_a_folder_of_images_is_read_in_numeric_order(
    store, numbered_frames, read_numbers, colour_error, tmp_path
):
    truth = numbered_frames(12)
    stored = store(write_images(tmp_path / "images", truth))
    assert read_numbers(stored.frames) == list(range(12))
    assert colour_error(stored.frames, truth) < CODEC_ERROR


def test_images_at_a_requested_rate(store, numbered_frames, read_numbers, tmp_path):
    folder = write_images(tmp_path / "images", numbered_frames(12))
    stored = store(folder, fps=Fraction(4), start=0.5, end=2.0)
    assert stored.plan.rate == 4
    assert read_numbers(stored.frames) == list(range(2, 8))


def test_an_image_of_another_size_is_named_in_the_error(store, numbered_frames, tmp_path):
    folder = write_images(tmp_path / "images", numbered_frames(12))
    Image.new("RGB", (20, 30)).save(folder / "7.png")
    with pytest.raises(BrokenStream, match=r"7\.png is 20x30 pixels, but the first image is 64x48"):
        store(folder)


def test_an_unreadable_image_is_a_lost_frame(store, numbered_frames, read_numbers, tmp_path):
    folder = write_images(tmp_path / "images", numbered_frames(6))
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:120])
    stored = store(folder)
    assert stored.lost == [3]
    assert read_numbers(stored.frames) == [0, 1, 2, 2, 4, 5]


# ---------------------------------------------------------------- damage


def damage_packets(path: Path, first: int, last: int) -> None:
    """Flip bytes inside the packets `first` to `last` (in decoding order)."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    for packet in packets[first : last + 1]:
        begin = packet.pos + max(packet.size // 3, 24)  # after the container's own headers
        for position in range(begin, packet.pos + packet.size - 8, 5):
            data[position] ^= 0x55
    path.write_bytes(data)


DAMAGED = [
    "h264", "hevc", "vp9", "av1", "mjpeg-full-range", "mpeg4-avi", "h264-avi", "prores", "flv",
]  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_packets_do_not_affect_other_frames(case, make_video, store, reference_decode):
    """Frames that do not depend on the damaged packets keep their content and index."""
    name, *options = FORMATS[case]
    path = make_video(name, *options, "-g", 10, frames=60)
    truth = reference_decode(path)
    damage_packets(path, 23, 26)
    assert not np.array_equal(reference_decode(path), truth)
    stored = store(path)
    assert len(stored.frames) == 60
    error = np.abs(stored.frames.astype(int) - truth).mean(axis=(1, 2, 3))
    wrong = np.flatnonzero(error > CODEC_ERROR)
    assert set(wrong) <= set(range(19, 41)), wrong
    assert set(stored.lost) <= set(range(19, 41)), stored.lost
    if case not in ("vp9", "hevc"):  # these decoders do not report damage
        assert set(stored.lost) & set(wrong)


def test_damage_in_a_stream_without_exact_seeking(make_video, store, reference_decode):
    """Decoding continues after the damage, although a transport stream cannot seek exactly."""
    path = make_video("a.ts", *SAFE, "-g", 10, frames=60)
    truth = reference_decode(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 188 // 2 * 188
    for packet in range(middle, middle + 4 * 188, 188):
        data[packet + 120 : packet + 180] = bytes(60)
    path.write_bytes(data)
    stored = store(path)
    wrong = np.abs(stored.frames.astype(int) - truth).mean(axis=(1, 2, 3)) > CODEC_ERROR
    assert 0 < wrong.sum() < 20 and not wrong[:15].any() and not wrong[45:].any()


TRUNCATED = {
    "a.mkv": ("a.mkv", *SAFE),
    "fast-start.mp4": ("a.mp4", *SAFE, "-movflags", "+faststart"),
    "a.webm": ("a.webm", "-c:v", "libvpx-vp9", "-b:v", 0, "-crf", 8),
    "a.ts": ("a.ts", *SAFE),
    "a.avi": ("a.avi", "-c:v", "mpeg4", "-q:v", 2),
    "mjpeg.avi": ("a.avi", "-c:v", "mjpeg", "-q:v", 2),
    "a.gif": FORMATS["gif"],
}


@pytest.mark.parametrize("case", TRUNCATED)
def test_a_truncated_file(case, make_video, store, reference_decode):
    name, *options = TRUNCATED[case]
    # One thread, so that the encoded file and the frames in its first 60 percent are fixed.
    path = make_video(name, *options, "-g", 10, "-threads", 1, frames=60)
    truth = reference_decode(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    stored = store(path)
    intact = [i for i in range(len(stored.frames)) if i not in stored.lost]
    assert len(intact) >= 20
    assert intact == list(range(len(intact)))  # only the end is lost
    compared = intact[:-4]  # the last frames may be incomplete or depend on an incomplete one
    decoded, expected = stored.frames[compared].astype(int), truth[compared]
    assert np.abs(decoded - expected).mean(axis=(1, 2, 3)).max() < CODEC_ERROR


def test_files_without_video_are_refused(make_video, run_ffmpeg, tmp_path):
    sound = ("-f", "lavfi", "-i", "sine=duration=0.3")
    picture = make_video("cover.png", "-frames:v", 1, frames=1)
    run_ffmpeg(*sound, tmp_path / "sound.m4a")
    run_ffmpeg(*sound, tmp_path / "sound.wav")
    cover = ("-map", 0, "-map", 1, "-c:v", "copy", "-disposition:v", "attached_pic")
    run_ffmpeg(*sound, "-i", picture, *cover, tmp_path / "cover.mp3")
    whole = make_video("whole.mp4", *X264, frames=20)
    (tmp_path / "headless.mp4").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is a letter, not a film.\n" * 50)
    (tmp_path / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "text.txt").write_text("hello")
    for name in (
        "sound.m4a", "sound.wav", "cover.mp3", "headless.mp4", "zero.mp4", "text.mp4",
        "noise.mkv", "nothing", "letters",
    ):  # fmt: skip
        with pytest.raises(NotAVideo) as caught:
            probe(tmp_path / name)
        assert name in caught.value.message, name
        assert caught.value.hint, name


def test_a_mistyped_name_gets_a_suggestion(make_video, tmp_path):
    make_video("dance.mp4", *X264, frames=1)
    with pytest.raises(MediaNotFound) as caught:
        probe(tmp_path / "dacne.mp4")
    assert "dance.mp4" in str(caught.value.hint)


# ---------------------------------------------------------------- audio

SOUND = {
    "aac.mp4": ("-c:a", "aac"),
    "aac.ts": ("-c:a", "aac"),
    "aac.mkv": ("-c:a", "aac"),
    "alac.mov": ("-c:a", "alac"),
    "mp3.avi": ("-c:a", "libmp3lame"),
    "mp2.mpg": ("-c:a", "mp2"),
    "ac3.mkv": ("-c:a", "ac3"),
    "opus.webm": ("-c:a", "libopus"),
    "opus.mp4": ("-c:a", "libopus"),
    "vorbis.webm": ("-c:a", "libvorbis"),
    "flac.mkv": ("-c:a", "flac"),
    "pcm_s16le.avi": ("-c:a", "pcm_s16le"),
    "pcm_s16be.mov": ("-c:a", "pcm_s16be"),
    "pcm_u8.avi": ("-c:a", "pcm_u8"),
    "adpcm.avi": ("-c:a", "adpcm_ms"),
    "wma.wmv": ("-c:a", "wmav2"),
    "swf.flv": ("-c:a", "adpcm_swf", "-ar", 44100),
}
AUDIO_FILES = {
    "mp3.avi": "audio.mp3",
    "aac.ts": "audio.m4a",
    "ac3.mkv": "audio.mka",
    "swf.flv": "audio.nut",
}
BEEP = "aevalsrc='if(between(t,1,1.1),0.8*sin(2*PI*1000*t),0)':s=48000:d=3"


def beep_at(path: Path) -> float:
    """Seconds from the first audio sample of `path` to the start of the beep."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        origin = float((stream.start_time or 0) * stream.time_base)
        resampler = av.AudioResampler("flt", "mono", 48000)
        now = 0.0
        for frame in container.decode(stream):
            if frame.pts is not None:  # decoders may drop the first packet
                now = float(frame.pts * frame.time_base) - origin
            for block in resampler.resample(frame):
                loud = np.flatnonzero(np.abs(block.to_ndarray()[0]) > 0.3)
                if len(loud):
                    return now + float(loud[0]) / 48000
                now += block.samples / 48000
    raise AssertionError(f"{path} contains no beep")


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (0.52, 1.6)])
def test_copied_audio_stays_synchronised(name, start, end, make_video, tmp_path):
    """The beep starts 1 s after the first frame, whatever the first timestamp."""
    video_codec = {"webm": "libvpx", "flv": "flv1"}.get(name.rpartition(".")[2], "mpeg4")
    video = ("-c:v", video_codec)
    beep = ("-f", "lavfi", "-i", BEEP)
    path = make_video(name, *video, *SOUND[name], frames=50, inputs=beep)
    footage = probe(path)
    assert footage.audio is not None
    folder = tmp_path / "store"
    folder.mkdir()
    copied = copy_audio(path, folder, audio=footage.audio, start=start, end=end)
    assert copied is not None
    audio, offset = copied
    assert [p.name for p in folder.iterdir()] == [audio.name]
    assert audio.name == AUDIO_FILES.get(name, audio.name)
    assert start + offset + beep_at(audio) == pytest.approx(1.0, abs=0.03)


def test_audio_that_starts_late(make_video, run_ffmpeg, tmp_path):
    beep = ("-itsoffset", "0.7", "-f", "lavfi", "-i", BEEP)
    path = make_video("a.mp4", *X264, "-c:a", "aac", frames=60, inputs=beep)
    audio, offset = copy_audio(path, tmp_path, audio=probe(path).audio, start=0.0, end=2.4)
    assert offset == pytest.approx(0.7, abs=0.03)
    assert offset + beep_at(audio) == pytest.approx(1.7, abs=0.03)


def test_footage_without_audio(make_video):
    assert probe(make_video("a.mp4", *X264)).audio is None


# ---------------------------------------------------------------- real footage

ODD = {  # frame count
    "rotated_0.mov": 3,
    "rotated_90.mov": 3,
    "rotated_180.mov": 3,
    "rotated_270.mov": 3,
    "unordered.mov": 4,
    "hevc_10bit.mp4": 30,
    "av1.mkv": 125,
}


@pytest.mark.parametrize("name", ODD)
def test_unusual_real_footage(name, clips, store, reference_decode):
    path = clips / "odd" / name
    stored = store(path)
    truth = crop_to_even(reference_decode(path))
    assert len(stored.frames) == ODD[name]
    assert stored.lost == []
    assert stored.frames.shape == truth.shape
    for index, (decoded, expected) in enumerate(zip(stored.frames, truth, strict=True)):
        assert np.abs(decoded.astype(int) - expected).mean() < CODEC_ERROR, index


def test_a_corrupted_stream_loses_only_undecodable_frames(clips, store, reference_decode):
    path = clips / "odd" / "corrupted.mp4"
    stored = store(path)
    assert len(stored.frames) == 50
    assert stored.lost == [30, 32]
    truth = reference_decode(path, rate=Fraction(10)).astype(int)  # resampled by timestamp

    def error(index: int, other: int) -> float:
        return float(np.abs(stored.frames[index] - truth[other]).mean())

    assert max(error(index, index) for index in range(29)) < CODEC_ERROR
    # Later frames are predicted from lost ones, so they stay degraded but match their own index.
    for index in range(33, 49):
        assert error(index, index) < min(error(index, index - 1), error(index, index + 1)), index


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "face/talker_b.mp4", "face/talker_c.mp4", "face/talker_long.mp4", "pose/dancer.mp4",
        "pose/street_crowd.avi", "pose/actor.avi",
    ],
)  # fmt: skip
def test_intact_footage_loses_no_frames(name, clips, reference_decode):
    """Every downscaled frame matches ffmpeg's, also when reading starts in the middle."""
    footage = probe(clips / name)
    plan, geometry = plan_frames(footage), plan_geometry(footage, size=64)
    truth = reference_decode(clips / name, size=(geometry.width, geometry.height))
    assert len(plan) == len(truth)
    for first in (0, len(plan) // 2 + 1):
        for placed in read_upright(footage, plan, geometry, first=first):
            assert not placed.lost
            decoded = placed.frame.to_ndarray(format="rgb24").astype(int)
            error = np.abs(decoded - truth[placed.index]).mean()
            assert error < 1.5 * CODEC_ERROR, placed.index  # a different scaler
