"""`probe`: stream properties, timestamps and frame rates read from the packets."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2v.errors import MediaNotFound, NotAVideo
from v2v.listing import natural_key
from v2v.video.probe import image_files, probe
from v2v.video.timing import STANDARD_RATES, rate_of

X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast")


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 25, Fraction(30000, 1001), 30, 60, 12])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mov"])
def test_rate_frame_count_and_duration(name, rate, make_video):
    info = probe(make_video(name, *X264, frames=40, rate=rate))
    assert (info.rate, info.variable_rate, info.frames) == (rate, False, 40)
    assert info.duration == pytest.approx(40 / rate, abs=2e-3)
    assert info.times[0] == 0 and (np.diff(info.times) > 0).all()


def test_size_codec_and_audio(make_video):
    sine = ("-f", "lavfi", "-i", "sine=r=44100:duration=1")
    info = probe(make_video("a.mp4", *X264, "-c:a", "aac", "-ac", 2, inputs=sine))
    assert (info.codec, info.pixel_format, info.width, info.height) == ("h264", "yuv420p", 64, 48)
    assert (info.orientation, info.pixel_aspect, info.rotation) == ((1, 0, 0, 1), 1, 0)
    assert info.audio is not None
    assert (info.audio.codec, info.audio.sample_rate, info.audio.channels) == ("aac", 44100, 2)
    assert info.audio.duration == pytest.approx(1, abs=0.05)


def test_the_audio_stream_may_come_first(make_video):
    sine = ("-f", "lavfi", "-i", "sine=duration=1")
    info = probe(make_video("a.mkv", *X264, "-map", 1, "-map", 0, inputs=sine, frames=5))
    assert info.frames == 5 and info.audio is not None


def test_cover_art_is_not_the_video_stream(make_video, run_ffmpeg, tmp_path):
    cover = make_video("cover.png", "-frames:v", 1, size=(32, 32), frames=1)
    plain = make_video("plain.mp4", *X264, frames=5)
    both = ("-map", 0, "-map", 1, "-c", "copy", "-disposition:v:0", "attached_pic")
    run_ffmpeg("-i", cover, "-i", plain, *both, tmp_path / "a.mp4")
    info = probe(tmp_path / "a.mp4")
    assert (info.codec, info.width, info.frames) == ("h264", 64, 5)


def test_an_avi_with_b_frames_has_no_timestamps(make_video):
    info = probe(make_video("a.avi", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", 2, frames=20))
    assert not info.timestamps_known
    assert np.array_equal(np.diff(info.pts), np.ones(19))
    plain = probe(make_video("b.avi", "-c:v", "mpeg4", "-bf", 0, frames=20))
    assert plain.timestamps_known


def test_a_stream_without_a_decodable_frame_is_refused(make_video):
    path = make_video("a.mkv", *X264, frames=3)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in packets:
        data[position : position + size + 8] = bytes(min(size + 8, len(data) - position))
    path.write_bytes(data)
    with pytest.raises(NotAVideo) as caught:
        probe(path)
    assert caught.value.hint


def test_a_missing_file_and_a_missing_folder(tmp_path):
    with pytest.raises(MediaNotFound, match="no such file"):
        probe(tmp_path / "a.mp4")
    with pytest.raises(MediaNotFound) as caught:
        probe(tmp_path / "nowhere" / "a.mp4")
    assert "nowhere does not exist" in str(caught.value.hint)


def test_images_are_sorted_in_numeric_order(tmp_path):
    names = ["2.png", "10.PNG", "1.jpg", "b1.png", "a12.png", "a2.png"]
    for name in [*names, "notes.txt", "12"]:
        (tmp_path / name).touch()
    expected = ["1.jpg", "2.png", "10.PNG", "a2.png", "a12.png", "b1.png"]
    assert [f.name for f in image_files(tmp_path)] == expected


@given(st.lists(st.text("ab019._", min_size=1), max_size=8, unique=True), st.randoms())
def test_any_names_can_be_sorted(names, random):
    """The sort key never compares a number with a string."""
    ordered = sorted((Path(n) for n in names), key=natural_key)
    random.shuffle(names)
    reordered = sorted((Path(n) for n in names), key=natural_key)
    assert [natural_key(p) for p in reordered] == [natural_key(p) for p in ordered]


# ---------------------------------------------------------------- frame rate

CLOCKS = [Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 12800)]


@given(
    rate=st.sampled_from([r for r in STANDARD_RATES if r <= 120]),
    clock=st.sampled_from(CLOCKS),
    count=st.integers(3, 500),
    start=st.integers(-5000, 5000),
)
def test_a_constant_rate_is_detected_for_any_time_base(rate, clock, count, start):
    ticks = [start + round(k / rate / clock) for k in range(count)]
    assert rate_of(np.array(ticks), clock, rate) == (rate, False)


@given(
    rate=st.sampled_from([Fraction(r) for r in (12, 15, 24, 25, 30, 50, 60)]),
    clock=st.sampled_from(CLOCKS),
    pauses=st.lists(st.tuples(st.integers(8, 40), st.integers(3, 90)), min_size=2, max_size=10),
)
def test_pauses_do_not_change_the_rate(rate, clock, pauses):
    """Screen recordings store a frame only when something moves."""
    indices, now = [], 0
    for moving, still in pauses:
        indices += range(now, now + moving)
        now += moving + still
    ticks = np.array([round(k / rate / clock) for k in indices])
    found, variable = rate_of(ticks, clock, rate * len(indices) / now)
    assert variable
    assert float(found) == pytest.approx(float(rate), rel=0.011)


@given(st.lists(st.integers(1, 100_000), min_size=2, max_size=30), st.sampled_from(CLOCKS))
def test_any_timestamps_yield_a_positive_rate(steps, clock):
    ticks = np.cumsum([0, *steps])
    found, _ = rate_of(ticks, clock, Fraction(25))
    assert found > 0
