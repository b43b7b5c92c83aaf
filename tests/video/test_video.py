"""Frame timing, cropping and scaling, video and map writing, and frame-exact seeking."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from v2v.errors import MediaNotFound, NotAVideo, NotWritable, UsageError
from v2v.video.plan import plan_frames, plan_geometry
from v2v.video.probe import Probe, probe
from v2v.video.read import SMPTE170M
from v2v.video.stored import PixelReader, read_stored
from v2v.video.write import GOP, MapWriter, RoundTripEncoder, VideoWriter, concatenate

RATES = [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(50)]


def footage(
    ticks: list[int], *, clock: Fraction = Fraction(1, 1000), rate: Fraction = Fraction(25),
    variable: bool = False, size: tuple[int, int] = (64, 48),
) -> Probe:  # fmt: skip
    """The `Probe` of footage with these timestamps and this upright size."""
    return Probe(
        path=Path("clip.mp4"), container="mp4", codec="h264", pixel_format="yuv420p",
        width=size[0], height=size[1], upright_width=size[0], upright_height=size[1],
        orientation=(1, 0, 0, 1), pixel_aspect=Fraction(1), rate=rate, variable_rate=variable,
        pts=np.array(ticks, dtype=np.int64), time_base=clock, timestamps_known=True, matrix=1,
        transfer=1, full_range=False, audio=None,
    )  # fmt: skip


# ---------------------------------------------------------------- frame timing

rates = st.fractions(Fraction(1), Fraction(240), max_denominator=1001)
uneven = st.lists(st.integers(1, 400), min_size=1, max_size=60).map(
    lambda steps: np.cumsum([0, *steps]).tolist()
)


@given(rate=st.sampled_from(RATES), count=st.integers(1, 400), start=st.integers(-99, 99))
def test_constant_rate_keeps_every_frame_once(rate, count, start):
    ticks = [start + round(k * 1000 / rate) for k in range(count)]
    plan = plan_frames(footage(ticks, rate=rate))
    assert (plan.rate, plan.start) == (rate, 0)
    assert np.array_equal(plan.sources, np.arange(count))


@given(ticks=uneven, rate=rates)
def test_each_output_frame_shows_the_latest_due_frame(ticks, rate):
    """Like ffmpeg's `fps` filter: a frame is due half an output frame before its own time."""
    plan = plan_frames(footage(ticks, variable=True), fps=rate)
    assert (np.diff(plan.sources) >= 0).all()
    positions = [Fraction(tick, 1000) * rate for tick in ticks]
    for index, ordinal in enumerate(plan.sources):
        due = [k for k, position in enumerate(positions) if position < index + Fraction(1, 2)]
        assert ordinal == due[-1]
    seconds = ticks[-1] / 1000 + 1 / 25
    assert abs(len(plan) / rate - seconds) <= max(1 / rate, Fraction(1, 1000))


@given(ticks=uneven, start=st.floats(0, 20), length=st.floats(0.001, 20), fps=st.none() | rates)
def test_a_time_range_contains_only_its_frames(ticks, start, length, fps):
    given_footage = footage(ticks, variable=True)
    try:
        plan = plan_frames(given_footage, fps=fps, start=start, end=start + length)
    except UsageError as error:
        assert error.hint
        return
    times = given_footage.times[plan.sources]
    assert (times >= start - 1e-5).all() and (times < start + length + 1e-5).all()
    assert start - 1e-5 <= plan.start <= times[0]


@pytest.mark.parametrize("fps", [Fraction(0), Fraction(-5), Fraction(1, 20), Fraction(5000)])
def test_invalid_rates_are_refused(fps):
    for still in (footage([0, 40, 80]), replace(footage([0, 1, 2]), images=(Path("1.png"),))):
        with pytest.raises(UsageError, match="fps=") as caught:
            plan_frames(still, fps=fps)
        assert "0.1 to 1000" in str(caught.value.hint)


# ---------------------------------------------------------------- cropping and scaling

sides = st.integers(16, 4000)
sizes = st.tuples(sides, sides)
even_sides = st.integers(8, 2048).map(lambda n: 2 * n)
requested_sizes = st.none() | st.integers(16, 2048) | st.tuples(even_sides, even_sides)


def is_refused(picture, size):
    """Whether the crop to the aspect ratio of `size` is too small and refused."""
    if not isinstance(size, tuple):
        return False
    width, height = (n - n % 2 for n in picture)
    return min(size) / max(size[0] / width, size[1] / height) < 15  # rounds down to 14


@given(picture=sizes, size=requested_sizes)
def test_the_box_is_inside_the_picture_and_all_sizes_are_even(picture, size):
    if is_refused(picture, size):
        with pytest.raises(UsageError, match="would remain"):
            plan_geometry(footage([0], size=picture), size=size)
        return
    plan = plan_geometry(footage([0], size=picture), size=size)
    x, y, w, h = plan.box
    assert min(x, y) >= 0 and min(w, h) >= 2 and x + w <= picture[0] and y + h <= picture[1]
    assert not any(n % 2 for n in (x, y, w, h, plan.width, plan.height))
    if isinstance(size, tuple):
        assert (plan.width, plan.height) == size
        # Scaled to cover: the aspect ratio changes only by rounding to pixel pairs.
        wide, high = plan.scale
        assert abs(wide / high - 1) <= 2.1 / min(w, h)
        assert w >= picture[0] - 3 or h >= picture[1] - 3, "must crop one axis only"
        assert abs((x + w / 2) - picture[0] / 2) <= 2.5 and abs((y + h / 2) - picture[1] / 2) <= 2.5
    elif size is None:
        assert (plan.width, plan.height) == (picture[0] // 2 * 2, picture[1] // 2 * 2)
    else:
        assert abs(min(plan.width, plan.height) - size) <= size % 2


@given(picture=sizes, size=requested_sizes, data=st.data())
def test_a_crop_stays_inside_the_requested_box(picture, size, data):
    w, h = (data.draw(st.integers(16, n)) for n in picture)
    x, y = (data.draw(st.integers(0, n - m)) for n, m in zip(picture, (w, h), strict=True))
    assume(not is_refused((w, h), size))
    plan = plan_geometry(footage([0], size=picture), size=size, box=(x, y, w, h))
    left, top, width, height = plan.box
    assert left >= x - 1 and top >= y - 1
    assert left + width <= x + w and top + height <= y + h


@pytest.mark.parametrize("size", [8, 15, 9000, (64, 63), (8, 64), (64, 9000), (63, 64)])
def test_invalid_sizes_are_refused(size):
    with pytest.raises(UsageError, match="size=") as caught:
        plan_geometry(footage([0]), size=size)
    assert "16 to 8192" in str(caught.value.hint)


def test_a_picture_below_16_pixels_is_refused():
    with pytest.raises(UsageError, match="too small: 15x48 pixels") as caught:
        plan_geometry(replace(footage([0]), upright_width=15))
    assert "16x16" in str(caught.value.hint)


# ---------------------------------------------------------------- lossless maps


def write_map(path: Path, images: np.ndarray, *, rate: Fraction = Fraction(25)) -> Path:
    bits = 8 if images.dtype == np.uint8 else 16
    height, width = images.shape[1:]
    writer = MapWriter(path, width=width, height=height, rate=rate, bits=bits)
    for image in images:
        writer.write(image)
    writer.close()
    return path


def read_map(path: Path, kind: type, first: int = 0) -> np.ndarray:
    name = "gray" if kind is np.uint8 else "gray16le"
    return np.stack(list(read_stored(path, first=first, pixel_format=name)))


def noise(kind: type, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    top = np.iinfo(kind).max
    return np.random.default_rng(seed).integers(0, top, shape, kind, endpoint=True)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 16, 16), (9, 48, 64), (3, 51, 37), (2, 144, 16)])
def test_maps_are_lossless_and_deterministic(kind, shape, tmp_path):
    images = noise(kind, shape)
    images[0, 0, :2] = 0, np.iinfo(kind).max
    path = write_map(tmp_path / "a.mkv", images)
    assert np.array_equal(read_map(path, kind), images)
    second = write_map(tmp_path / "b.mkv", images)
    assert second.read_bytes() == path.read_bytes()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(8, 40), width=st.integers(8, 40))
def test_maps_of_any_size_are_lossless(seed, height, width, tmp_path_factory):
    images = noise(np.uint16, (2, height, width), seed)
    path = write_map(tmp_path_factory.mktemp("map") / "a.mkv", images)
    assert np.array_equal(read_map(path, np.uint16), images)


# ---------------------------------------------------------------- seeking


def write_frames(path: Path, frames: np.ndarray, rate: Fraction) -> tuple[Path, np.ndarray]:
    """Write a stored segment; return its path and the frames decoded by the encoder."""
    height, width = frames.shape[1:3]
    encoder = RoundTripEncoder(
        path, width=width, height=height, rate=rate, crf=16, preset="ultrafast", matrix=SMPTE170M
    )
    decoded, pixels = [], PixelReader()
    for rgb in frames:
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
        decoded += [pixels(f) for f in encoder.encode(frame)]
    decoded += [pixels(f) for f in encoder.close()]
    return path, np.stack(decoded)


@pytest.mark.parametrize("rate", RATES, ids=lambda r: f"{float(r):.3f}")
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_every_frame_can_be_read_by_its_index(container, rate, numbered_frames, tmp_path):
    """In single and joined parts whose length is not a multiple of the group of pictures."""
    frames = numbered_frames(37, width=32, height=16)
    suffix = "mp4" if container == "mp4" else "mkv"
    parts, decoded = [], []
    for index, part_frames in enumerate((frames[:GOP], frames[GOP:21], frames[21:22], frames[22:])):
        path = tmp_path / f"{index}.{suffix}"
        if container == "mp4":
            path, decoded_part = write_frames(path, part_frames, rate)
        else:
            decoded_part = part_frames[..., 0].astype(np.uint16) << 7
            write_map(path, decoded_part, rate=rate)
        parts.append(path)
        decoded.append(decoded_part)
    whole = np.concatenate(decoded)
    kind = {"mp4": "rgb24", "matroska": "gray16le"}[container]
    target = tmp_path / f"whole.{suffix}"
    concatenate(parts, target, container=container, rate=rate)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in [*parts, target]}
    for first in range(37):
        tail = np.stack(list(read_stored(target, first=first, pixel_format=kind)))
        assert np.array_equal(tail, whole[first:]), first
    for part, decoded_part in zip(parts, decoded, strict=True):
        for first in range(len(decoded_part)):
            tail = np.stack(list(read_stored(part, first=first, pixel_format=kind)))
            assert np.array_equal(tail, decoded_part[first:]), (part.name, first)
    assert probe(target).rate == rate
    assert probe(target).frames == 37


@pytest.mark.parametrize("rate", RATES, ids=lambda r: f"{float(r):.3f}")
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_timestamps_do_not_drift(container, rate, tmp_path):
    """Seeks stay exact after 10 000 frames, although Matroska rounds to milliseconds."""
    count = 10_000
    if container == "mp4":
        whole, _ = write_frames(tmp_path / "1.mp4", np.zeros((1, 16, 16, 3), np.uint8), rate)
    else:
        whole = write_map(tmp_path / "1.mkv", np.zeros((1, 16, 16), np.uint8), rate=rate)
    for copies in (100, 100):
        longer = whole.with_stem(f"{whole.stem}x{copies}")
        concatenate([whole] * copies, longer, container=container, rate=rate)
        whole = longer
    with av.open(str(whole)) as file:
        assert file.streams.video[0].average_rate == rate
    for remaining in (1, 2, 7, 8, 9, 30):
        assert sum(1 for _ in read_stored(whole, first=count - remaining)) == remaining


def test_encoding_is_deterministic(numbered_frames, tmp_path):
    frames = numbered_frames(20)
    first_path, first_decoded = write_frames(tmp_path / "1.mp4", frames, Fraction(25))
    second_path, second_decoded = write_frames(tmp_path / "2.mp4", frames, Fraction(25))
    assert first_path.read_bytes() == second_path.read_bytes()
    assert np.array_equal(first_decoded, second_decoded)
    assert np.array_equal(first_decoded, np.stack(list(read_stored(first_path))))


def test_three_decoders_agree(numbered_frames, reference_decode, read_numbers, tmp_path):
    import decord

    path, decoded = write_frames(
        tmp_path / "frames.mp4", numbered_frames(40), Fraction(30000, 1001)
    )
    reader = decord.VideoReader(str(path), num_threads=1)
    by_decord = reader.get_batch(range(40)).asnumpy()
    assert read_numbers(by_decord) == list(range(40))
    assert np.abs(by_decord.astype(int) - decoded).max() <= 1
    backwards = np.stack([reader[k].asnumpy() for k in reversed(range(40))])[::-1]
    assert np.array_equal(backwards, by_decord)
    by_ffmpeg = reference_decode(path)
    assert np.abs(by_ffmpeg.astype(int) - decoded).max() <= 1


@pytest.mark.parametrize("width, height", [(40, 72), (48, 64)])
def test_narrow_hevc_video_leaves_the_heap_intact(width, height, tmp_path):
    """x265 wrote beyond its buffers; malloc notices in a process of our own settings."""
    script = f"""
from fractions import Fraction
from pathlib import Path
from v2v.runtime import prepare_process
prepare_process()
import numpy as np
from v2v.video.write import VideoWriter
noise = np.random.default_rng(0)
for part in range(6):
    writer = VideoWriter(
        Path(r"{tmp_path}") / f"{{part}}.mov", width={width}, height={height}, rate=Fraction(25),
        crf=10, codec="hevc",
    )
    for _ in range(12):
        writer.write(noise.integers(0, 255, ({height}, {width}, 3), dtype=np.uint8))
    writer.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert probe(tmp_path / "5.mov").frames == 12


@pytest.mark.parametrize("order", ["decord, torchvision", "torchvision, decord"])
def test_decord_and_torchvision_can_be_imported_together(order, numbered_frames, tmp_path):
    def run(script: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)

    if run("import torchvision").returncode:
        pytest.skip("torchvision cannot be imported here, even without decord")
    path, _ = write_frames(tmp_path / "frames.mp4", numbered_frames(9), Fraction(25))
    result = run(f"import {order}, av, cv2; print(len(decord.VideoReader({str(path)!r})))")
    assert (result.returncode, result.stdout.strip()) == (0, b"9"), result.stderr.decode()


# ---------------------------------------------------------------- writing output videos


def test_a_file_appears_only_when_complete(numbered_frames, read_numbers, tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, width=64, height=48, rate=Fraction(24)) as writer:
        for frame in numbered_frames(30):
            writer.write(frame)
            assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    probed = probe(path)
    assert (probed.frames, probed.rate, probed.codec, probed.matrix) == (30, 24, "h264", 1)
    assert read_numbers(np.stack(list(read_stored(path)))) == list(range(30))


def test_written_colours_match_the_input(numbered_frames, reference_decode, colour_error, tmp_path):
    frames = numbered_frames(5)
    with VideoWriter(tmp_path / "a.mp4", width=64, height=48, rate=Fraction(24), crf=8) as writer:
        for frame in frames:
            writer.write(frame)
    assert colour_error(reference_decode(tmp_path / "a.mp4"), frames) < 3


@pytest.mark.parametrize("written", [0, 1, 20])
def test_a_failure_leaves_no_files(written, numbered_frames, tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        VideoWriter(tmp_path / "a.mp4", width=64, height=48, rate=Fraction(24)) as writer,
    ):
        for frame in numbered_frames(written):
            writer.write(frame)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_failure_to_open_or_close_leaves_no_files(make_video, numbered_frames, tmp_path):
    silent = make_video("silent.mp4", "-c:v", "mpeg4", frames=2)
    folder = tmp_path / "out"
    folder.mkdir()
    options = {"width": 64, "height": 48, "rate": Fraction(24)}
    with pytest.raises(NotAVideo, match="no decodable audio"):
        VideoWriter(folder / "a.mp4", audio=silent, **options)
    assert list(folder.iterdir()) == []

    sound = make_video("sound.mp4", "-c:a", "aac", frames="sine=duration=1")
    with pytest.raises(MediaNotFound):  # noqa: SIM117
        with VideoWriter(folder / "a.mp4", audio=sound, **options) as writer:
            sound.unlink()
            writer.write(numbered_frames(1)[0])
    assert list(folder.iterdir()) == []


def test_an_existing_file_survives_a_failure(numbered_frames, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the one before")
    with (
        pytest.raises(ZeroDivisionError),
        VideoWriter(path, width=64, height=48, rate=Fraction(24)) as writer,
    ):
        writer.write(numbered_frames(1)[0])
        raise ZeroDivisionError
    assert path.read_bytes() == b"the one before"


def test_an_unwritable_folder_is_refused(tmp_path):
    import os

    if os.geteuid() == 0:
        pytest.skip("root ignores file permissions")
    tmp_path.chmod(0o500)
    with pytest.raises(NotWritable) as caught:
        VideoWriter(tmp_path / "a.mp4", width=64, height=48, rate=Fraction(24))
    assert caught.value.hint


@pytest.mark.parametrize("offset", [0.0, 0.5, -0.5])
def test_audio_is_synchronised(offset, make_video, numbered_frames, tmp_path):
    """A beep at 1 s in the audio plays at 1 s + `audio_offset` in the video."""
    beep = "aevalsrc='if(between(t,1,1.1),0.8*sin(2*PI*1000*t),0)':s=48000:d=4"
    sound = make_video("sound.m4a", "-c:a", "aac", frames=beep)
    path = tmp_path / "a.mp4"
    rate = Fraction(25)
    with VideoWriter(
        path, width=64, height=48, rate=rate, audio=sound, audio_offset=offset
    ) as writer:
        for frame in numbered_frames(50):
            writer.write(frame)
    loud, last = [], 0.0
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            last = frame.time + frame.samples / frame.sample_rate
            if np.abs(frame.to_ndarray()).max() > 0.3:
                loud.append(frame.time)
    assert loud[0] == pytest.approx(1 + offset, abs=0.03)
    assert last == pytest.approx(2.0, abs=0.05)
    probed = probe(path)
    assert probed.audio is not None and probed.frames == 50


@pytest.mark.parametrize("codec", ["pcm_s16le", "flac", "libopus"])
def test_unsupported_audio_codecs_are_transcoded_to_aac(tmp_path, ffmpeg, codec):
    sound = tmp_path / "sound.mka"
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:duration=2"]
    subprocess.run([ffmpeg, "-v", "error", *tone, "-c:a", codec, sound], check=True)
    path = tmp_path / "film.mp4"
    with VideoWriter(path, width=64, height=48, rate=Fraction(25), audio=sound) as writer:
        for _ in range(25):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "aac"
        audio_seconds = sum(f.samples / f.sample_rate for f in container.decode(audio=0))
    assert abs(audio_seconds - 1) < 0.08  # ends with the video, up to AAC's frame length
