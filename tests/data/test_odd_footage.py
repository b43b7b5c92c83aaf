"""Footage as recorders, editors and strangers leave it: odd clocks, names, pictures and sound."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from v2v.data.probe import Probe, probe
from v2v.data.video import (
    PixelReader,
    Sound,
    VideoWriter,
    copy_audio,
    plan_frames,
    plan_geometry,
    read_upright,
)
from v2v.errors import NotAVideo, UsageError, V2VError

X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast", "-crf", 12)
SINE = ("-f", "lavfi", "-i", "sine=duration=1")


def frames_of(seen: Probe, first: int = 0) -> np.ndarray:
    """What a store would hold, RGB uint8 [T, H, W, 3]; nothing may be lost."""
    pixels, plan = PixelReader(), plan_frames(seen)
    placed = list(read_upright(seen, plan, plan_geometry(seen), first=first))
    assert not any(p.lost for p in placed)
    return np.stack([pixels(p.frame) for p in placed])


# ---------------------------------------------------------------- clocks


def test_a_repeated_timestamp_moves_one_frame_only(make_video, read_numbers):
    path = make_video("a.webm", "-c:v", "libvpx", "-b:v", "2M", frames=20)
    data = path.read_bytes()
    block = b"\x81" + (400).to_bytes(2, "big")  # of track 1, at 400 ms
    assert data.count(block) == 1
    path.write_bytes(data.replace(block, b"\x81" + (360).to_bytes(2, "big")))
    seen = probe(path)
    assert (seen.rate, seen.frames, seen.timestamps_known) == (25, 20, True)
    assert read_numbers(frames_of(seen)) == list(range(20))
    assert "1 frame has a timestamp" in seen.notes[0]
    for first in (9, 10, 11):
        assert read_numbers(frames_of(seen, first)) == list(range(first, 20))


@pytest.mark.parametrize("offset", [60, 0, 5])
def test_a_transport_stream_whose_clock_is_set(offset, make_video, numbered_frames, read_numbers):
    audio = ("-c:a", "aac", "-shortest")
    one = make_video("1.ts", *X264, *audio, frames=numbered_frames(25), inputs=SINE)
    options = ("-output_ts_offset", offset, *X264, *audio)
    two = make_video("2.ts", *options, frames=numbered_frames(25, first=25), inputs=SINE)
    both = one.with_name("both.ts")
    both.write_bytes(one.read_bytes() + two.read_bytes())
    seen = probe(both)
    assert (seen.rate, len(plan_frames(seen))) == (25, 50)
    assert read_numbers(frames_of(seen)) == list(range(50))
    assert any("clock jumps" in note for note in seen.notes)
    # The sound lies under its pictures on either side of the jump.
    assert seen.audio is not None
    copied = copy_audio(both, both.parent, audio=seen.audio, start=0.0, end=2.0)
    assert copied is not None
    with av.open(str(copied[0])) as container:
        times = [float(p.pts * p.time_base) for p in container.demux(audio=0) if p.size]
    assert 1.8 < max(times) < 2.2 and max(np.diff(times)) < 0.1


def test_timestamps_in_the_order_of_decoding_lose_no_frame(make_video, read_numbers):
    plain = make_video("a.mp4", *X264[:-4], "-bf", 2, frames=30)
    path = plain.with_name("order.mkv")
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        video = source.streams.video[0]
        stream = out.add_stream_from_template(video)
        for number, packet in enumerate(p for p in source.demux(video) if p.size):
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            out.mux(packet)
    assert read_numbers(frames_of(probe(path))) == list(range(30))


def test_a_pause_that_nobody_filmed_is_not_planned(make_video):
    path = make_video("a.mkv", *X264, "-bf", 0, "-vf", "setpts=N/25/TB+gte(N\\,6)*3000000/TB")
    seen = probe(path)
    assert len(plan_frames(seen)) == 12 and any("jumps" in note for note in seen.notes)


def test_more_frames_than_can_be_kept_are_refused(make_video):
    path = make_video("a.mkv", *X264, "-bf", 0, "-vf", "setpts=N*500/TB")  # one in 500 seconds
    seen = probe(path)
    assert (seen.rate, seen.variable_rate) == (1, True)
    with pytest.raises(UsageError, match=r"become .* frames"):
        plan_frames(seen, fps=Fraction(1000))


@pytest.mark.parametrize(("rate", "aspect"), [("999999999:1", "1:1"), ("1:999999999", "9999:1")])
def test_a_header_that_cannot_be_believed(rate, aspect, tmp_path):
    path = tmp_path / "a.y4m"
    head = f"YUV4MPEG2 W64 H48 F{rate} Ip A{aspect} C420jpeg\n".encode()
    path.write_bytes(head + (b"FRAME\n" + bytes(64 * 48 * 3 // 2)) * 5)
    seen = probe(path)
    assert (seen.rate, seen.frames, seen.upright_width) == (25, 5, 64)
    assert "25 are assumed" in " ".join(seen.notes)
    assert frames_of(seen).shape == (5, 48, 64, 3)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    ["2022-01-26T20:57:04Z.mp4", "file:x.mp4", "http:x.mp4", "concat:a.mp4|b.mp4", "pipe:0",
     "subfile,,start,0,end,9,,:x.mp4", "data:x.mp4", "%03d.mp4", "-x.mp4", "http:/x/a.mp4",
     os.fsdecode(b"\xff.mp4")],
)  # fmt: skip
def test_a_path_is_a_local_file(name, make_video, numbered_frames, read_numbers, monkeypatch):
    plain = make_video("plain.mp4", *X264, frames=3)
    monkeypatch.chdir(plain.parent)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(Path(name), width=64, height=48, rate=Fraction(25), crf=12) as writer:
        for frame in numbered_frames(5):
            writer.write(frame)
    assert read_numbers(frames_of(probe(name))) == list(range(5))


def test_what_names_other_files_is_refused(make_video, tmp_path):
    video = make_video("a.ts", *X264, frames=3)
    playlists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{video}\n#EXT-X-ENDLIST\n",
        "b.mp4": f"ffconcat version 1.0\nfile '{video}'\n",
        "c.mp4": "v=0\nc=IN IP4 127.0.0.1\nm=video 1234 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "d.mp4": "<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(NotAVideo, match="names other files"):
            probe(tmp_path / name)
    with pytest.raises(NotAVideo, match="not a regular file"):
        probe("/dev/null")


# ---------------------------------------------------------------- pictures


def test_interlaced_footage_is_made_whole(make_video):
    # A bar that moves 4 pixels a field: a frame's even and odd rows show it in two places.
    fields = np.full((48, 48, 96, 3), 40, np.uint8)
    for number, field in enumerate(fields):
        field[:, 8 + number : 24 + number] = 220
    combed = np.repeat(fields[0::2], 1, axis=0)
    combed[:, 1::2] = fields[1::2, 1::2]
    options = ("-c:v", "libx264", "-qp", 4, "-flags", "+ildct+ilme", "-x264-params", "tff=1")
    path = make_video("a.mkv", *options, "-pix_fmt", "yuv422p", frames=combed)
    seen = probe(path)
    assert seen.interlaced and "interlaced" in seen.notes[0]
    frames = frames_of(seen).astype(int)
    assert len(frames) == 24
    assert np.abs(combed[:, 0:46:2].astype(int) - combed[:, 1:47:2]).mean() > 3
    assert np.abs(frames[1:-1, 2:44:2] - frames[1:-1, 3:45:2]).mean() < 1
    for first in (5, 6):  # a run that goes on sees the very frames of one that was not stopped
        assert np.array_equal(frames_of(seen, first), frames[first:])


def test_wide_gamut_becomes_ordinary_colour(make_video):
    colours = np.array([(255, 255, 255), (128, 128, 128), (224, 172, 140), (200, 60, 60)])
    to_2020 = np.array(  # from linear BT.709 (ITU-R BT.2087)
        [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    )
    wide = 255 * ((colours / 255) ** 2.4 @ to_2020.T) ** (1 / 2.4)
    frames = np.repeat(np.round(wide).astype(np.uint8), 16, axis=0)[None, None].repeat(32, 1)
    tags = "setparams=color_primaries=bt2020:color_trc=bt709:colorspace=bt2020nc"
    path = make_video(
        "a.mkv", "-c:v", "libx264", "-qp", 1, "-pix_fmt", "yuv444p10le",
        "-vf", f"scale=out_color_matrix=bt2020:out_range=tv,{tags}", frames=frames.repeat(3, 0),
    )  # fmt: skip
    seen = probe(path)
    assert seen.wide_gamut and not seen.hdr and "wide-gamut" in seen.notes[0]
    shown = frames_of(seen)[1, 16, 8::16].astype(int)
    assert np.abs(shown - colours).max() <= 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mov", ("-c:v", "prores_ks", "-profile:v", 4, "-pix_fmt", "yuva444p10le")),
        ("a.mov", ("-c:v", "qtrle", "-pix_fmt", "argb")),
        ("a.webm", ("-c:v", "libvpx-vp9", "-b:v", 0, "-crf", 4, "-pix_fmt", "yuva420p")),
        ("a.webm", ("-c:v", "libvpx", "-b:v", "2M", "-pix_fmt", "yuva420p", "-auto-alt-ref", 0)),
    ],
)
def test_what_is_transparent_is_black(name, options, run_ffmpeg, tmp_path):
    frames = np.zeros((3, 48, 64, 4), np.uint8)
    frames[..., 1] = 200  # green, hidden outside of
    frames[:, 12:36, 16:48] = (200, 40, 40, 255)  # an opaque box
    raw = ("-f", "rawvideo", "-pix_fmt", "rgba", "-s", "64x48", "-r", 25, "-i", "-")
    run_ffmpeg(*raw, *options, tmp_path / name, stdin=frames.tobytes())
    seen = probe(tmp_path / name)
    shown = frames_of(seen)[1].astype(int)
    assert "transparent" in seen.notes[0]
    assert shown[:8].max() < 8 and shown[40:].max() < 8
    assert np.abs(shown[18:30, 24:40] - (200, 40, 40)).max() < 12


def test_damage_is_decoded_alike_on_one_core_and_on_all(make_video):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("cores cannot be chosen here")
    path = make_video("a.mp4", *X264[:-4], "-g", 12, "-bf", 2, frames=60)
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 3, len(data) * 2 // 3, 331):
        data[place] ^= 64
    path.write_bytes(data)

    def decoded() -> list[tuple[bool, bytes]]:
        seen = probe(path)
        placed = read_upright(seen, plan_frames(seen), plan_geometry(seen))
        return [(p.lost, PixelReader()(p.frame).tobytes()) for p in placed]

    everywhere, cores = decoded(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert decoded() == everywhere
    finally:
        os.sched_setaffinity(0, cores)
    assert any(lost for lost, _ in everywhere) and not all(lost for lost, _ in everywhere)


# ---------------------------------------------------------------- sound


@pytest.mark.parametrize("rate", [5512, 11024, 22222, 96000])
def test_sound_of_any_rate_is_heard(rate, make_video, numbered_frames, tmp_path):
    sine = ("-f", "lavfi", "-i", f"sine=frequency=440:sample_rate={rate}:duration=1")
    path = make_video("a.avi", "-c:v", "mjpeg", "-c:a", "pcm_u8", inputs=sine, frames=25)
    out = tmp_path / "out.mp4"
    with VideoWriter(out, width=64, height=48, rate=Fraction(25), audio=path) as writer:
        for frame in numbered_frames(25):
            writer.write(frame)
    with av.open(str(out)) as container:
        pieces = [f.to_ndarray()[0] for f in container.decode(audio=0)]
        heard, heard_rate = np.concatenate(pieces), container.streams.audio[0].sample_rate
    assert len(heard) / heard_rate == pytest.approx(1, abs=0.1)
    spectrum = np.abs(np.fft.rfft(heard[: heard_rate // 2] * np.hanning(heard_rate // 2)))
    assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=6)


def test_an_unknown_sound_track_is_passed_over(make_video, tmp_path):
    two = ("-map", 0, "-map", 1, "-map", 2, "-c:a:0", "pcm_s16be", "-c:a:1", "aac")
    path = make_video("a.mov", *X264, *two, inputs=(*SINE, *SINE), frames=25)
    path.write_bytes(path.read_bytes().replace(b"twos", b"zz9?"))
    seen = probe(path)
    assert seen.audio is not None and seen.audio.codec == "aac"
    assert "unknown codec" in " ".join(seen.notes)
    copied = copy_audio(path, tmp_path, audio=seen.audio, start=0.0, end=1.0)
    assert copied is not None and copied[0].suffix == ".m4a"
    with VideoWriter(tmp_path / "o.mp4", width=64, height=48, rate=Fraction(25), audio=path) as out:
        out.write(np.zeros((48, 64, 3), np.uint8))
    assert Sound(path, 0.0).jumps == ()


@pytest.mark.parametrize("damaged", [1, 3, 1000])
def test_sound_that_a_container_refuses_is_left_out(damaged, make_video, numbered_frames, tmp_path):
    options = ("-c:v", "mpeg2video", "-c:a", "aac")
    path = make_video("a.ts", *options, inputs=SINE, frames=numbered_frames(25))
    # Every AAC frame of a transport stream has a header that an mp4 needs to know.
    path.write_bytes(path.read_bytes().replace(b"\xff\xf1\x50", b"\xff\xf1\xff", damaged))
    seen = probe(path)
    copied = None
    if seen.audio is not None:
        copied = copy_audio(path, tmp_path, audio=seen.audio, start=0.0, end=1.0)
    assert copied is not None or damaged == 1000
    out = tmp_path / "out.mp4"
    sound = copied[0] if copied else None
    with VideoWriter(out, width=64, height=48, rate=Fraction(25), audio=sound) as writer:
        for frame in numbered_frames(25):
            writer.write(frame)
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 25


# ---------------------------------------------------------------- damage of any kind


@pytest.fixture(scope="module")
def sound_files(run_ffmpeg, tmp_path_factory, numbered_frames) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sound")
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", 25, "-i", "-")
    kinds: dict[str, tuple[object, ...]] = {
        "a.mp4": (*X264, "-c:a", "aac"),
        "a.mkv": (*X264, "-c:a", "flac"),
        "a.avi": ("-c:v", "mpeg4", "-c:a", "mp3"),
        "a.ts": ("-c:v", "mpeg2video", "-c:a", "mp2"),
        "b.ts": ("-c:v", "mpeg2video", "-c:a", "aac"),
    }
    for name, options in kinds.items():
        run_ffmpeg(*raw, *SINE, *options, folder / name, stdin=numbered_frames(6).tobytes())
    made = {name: (folder / name).read_bytes() for name in kinds}
    made["a.y4m"] = b"YUV4MPEG2 W64 H48 F25:1 C420\n" + (b"FRAME\n" + bytes(64 * 72)) * 3
    return made


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_any_damage_is_read_or_refused(data, sound_files, tmp_path):
    name = data.draw(st.sampled_from(sorted(sound_files)))
    raw = bytearray(sound_files[name])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(raw) - 1))
        what = data.draw(st.sampled_from(["flip", "huge", "zero", "drop", "cut"]))
        if what == "flip":
            raw[place] ^= 1 << data.draw(st.integers(0, 7))
        elif what in ("huge", "zero"):
            raw[place : place + 4] = (b"\xff" if what == "huge" else b"\0") * 4
        elif what == "drop":
            del raw[place : place + 16]
        elif place > 100:
            del raw[place:]
        if not raw:
            raw = bytearray(b"\0")
    path = tmp_path / name
    path.write_bytes(raw)
    try:
        seen = probe(path)
        assert seen.frames > 0 and seen.upright_width > 0 and 0.1 <= seen.rate <= 1000
        plan = plan_frames(seen)
        for placed in read_upright(seen, plan, plan_geometry(seen)):
            if placed.index > 30:
                break
        sound = None
        if seen.audio is not None:
            sound = copy_audio(path, path.parent, audio=seen.audio, start=0.0, end=1.0)
        heard = None if sound is None else sound[0]
        out = path.with_name("out.mp4")
        with VideoWriter(out, width=64, height=48, rate=Fraction(25), audio=heard) as writer:
            for _ in range(6):
                writer.write(np.zeros((48, 64, 3), np.uint8))
    except V2VError as error:
        assert error.message
