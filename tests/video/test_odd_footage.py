"""Footage with unusual or damaged timestamps, names, pictures and audio."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from v2v.errors import NotAVideo, UsageError, V2VError
from v2v.video.audio import Sound, copy_audio
from v2v.video.plan import plan_frames, plan_geometry
from v2v.video.probe import Probe, probe
from v2v.video.read import read_upright
from v2v.video.stored import PixelReader
from v2v.video.write import VideoWriter

X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast", "-crf", 12)
SINE = ("-f", "lavfi", "-i", "sine=duration=1")


def frames_of(footage: Probe, first: int = 0) -> np.ndarray:
    """The frames a store would contain, RGB uint8 [T, H, W, 3]; fails if one is lost."""
    pixels, plan = PixelReader(), plan_frames(footage)
    placed = list(read_upright(footage, plan, plan_geometry(footage), first=first))
    assert not any(p.lost for p in placed)
    return np.stack([pixels(p.frame) for p in placed])


# ---------------------------------------------------------------- timestamps


def test_a_repeated_timestamp_affects_one_frame_only(make_video, read_numbers):
    path = make_video("a.webm", "-c:v", "libvpx", "-b:v", "2M", frames=20)
    data = path.read_bytes()
    block = b"\x81" + (400).to_bytes(2, "big")  # track 1, at 400 ms
    assert data.count(block) == 1
    path.write_bytes(data.replace(block, b"\x81" + (360).to_bytes(2, "big")))
    footage = probe(path)
    assert (footage.rate, footage.frames, footage.timestamps_known) == (25, 20, True)
    assert read_numbers(frames_of(footage)) == list(range(20))
    assert "1 frame has an implausible timestamp" in footage.notes[0]
    for first in (9, 10, 11):
        assert read_numbers(frames_of(footage, first)) == list(range(first, 20))


@pytest.mark.parametrize("offset", [60, 0, 5])
def test_a_transport_stream_with_a_clock_jump(offset, make_video, numbered_frames, read_numbers):
    audio = ("-c:a", "aac", "-shortest")
    one = make_video("1.ts", *X264, *audio, frames=numbered_frames(25), inputs=SINE)
    options = ("-output_ts_offset", offset, *X264, *audio)
    two = make_video("2.ts", *options, frames=numbered_frames(25, first=25), inputs=SINE)
    both = one.with_name("both.ts")
    both.write_bytes(one.read_bytes() + two.read_bytes())
    footage = probe(both)
    assert (footage.rate, len(plan_frames(footage))) == (25, 50)
    assert read_numbers(frames_of(footage)) == list(range(50))
    assert any("clock jumps" in note for note in footage.notes)
    # Audio stays synchronised on both sides of the jump.
    assert footage.audio is not None
    copied = copy_audio(both, both.parent, audio=footage.audio, start=0.0, end=2.0)
    assert copied is not None
    with av.open(str(copied[0])) as container:
        times = [float(p.pts * p.time_base) for p in container.demux(audio=0) if p.size]
    assert 1.8 < max(times) < 2.2 and max(np.diff(times)) < 0.1


def test_timestamps_in_decoding_order_lose_no_frame(make_video, read_numbers):
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


def test_an_implausibly_long_pause_is_removed(make_video):
    path = make_video("a.mkv", *X264, "-bf", 0, "-vf", "setpts=N/25/TB+gte(N\\,6)*3000000/TB")
    footage = probe(path)
    assert len(plan_frames(footage)) == 12 and any("jumps" in note for note in footage.notes)


def test_too_many_output_frames_are_refused(make_video):
    path = make_video("a.mkv", *X264, "-bf", 0, "-vf", "setpts=N*500/TB")  # a frame per 500 s
    footage = probe(path)
    assert (footage.rate, footage.variable_rate) == (1, True)
    with pytest.raises(UsageError, match=r"would have .* frames"):
        plan_frames(footage, fps=Fraction(1000))


@pytest.mark.parametrize(("rate", "aspect"), [("999999999:1", "1:1"), ("1:999999999", "9999:1")])
def test_an_implausible_header_is_ignored(rate, aspect, tmp_path):
    path = tmp_path / "a.y4m"
    head = f"YUV4MPEG2 W64 H48 F{rate} Ip A{aspect} C420jpeg\n".encode()
    path.write_bytes(head + (b"FRAME\n" + bytes(64 * 48 * 3 // 2)) * 5)
    footage = probe(path)
    assert (footage.rate, footage.frames, footage.upright_width) == (25, 5, 64)
    assert "25 are assumed" in " ".join(footage.notes)
    assert frames_of(footage).shape == (5, 48, 64, 3)


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


def test_files_that_reference_other_files_are_refused(make_video, tmp_path):
    video = make_video("a.ts", *X264, frames=3)
    playlists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{video}\n#EXT-X-ENDLIST\n",
        "b.mp4": f"ffconcat version 1.0\nfile '{video}'\n",
        "c.mp4": "v=0\nc=IN IP4 127.0.0.1\nm=video 1234 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "d.mp4": "<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(NotAVideo, match="references other files"):
            probe(tmp_path / name)
    with pytest.raises(NotAVideo, match="not a regular file"):
        probe("/dev/null")


# ---------------------------------------------------------------- pictures


def test_interlaced_footage_is_deinterlaced(make_video):
    # A bar that moves 4 pixels per field: even and odd rows show it at different positions.
    fields = np.full((48, 48, 96, 3), 40, np.uint8)
    for number, field in enumerate(fields):
        field[:, 8 + number : 24 + number] = 220
    combed = np.repeat(fields[0::2], 1, axis=0)
    combed[:, 1::2] = fields[1::2, 1::2]
    options = ("-c:v", "libx264", "-qp", 4, "-flags", "+ildct+ilme", "-x264-params", "tff=1")
    path = make_video("a.mkv", *options, "-pix_fmt", "yuv422p", frames=combed)
    footage = probe(path)
    assert footage.interlaced and "interlaced" in footage.notes[0]
    frames = frames_of(footage).astype(int)
    assert len(frames) == 24
    assert np.abs(combed[:, 0:46:2].astype(int) - combed[:, 1:47:2]).mean() > 3
    assert np.abs(frames[1:-1, 2:44:2] - frames[1:-1, 3:45:2]).mean() < 1
    for first in (5, 6):  # a resumed run reads the same frames as an uninterrupted one
        assert np.array_equal(frames_of(footage, first), frames[first:])


def test_wide_gamut_is_converted_to_bt709(make_video):
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
    footage = probe(path)
    assert footage.wide_gamut and not footage.hdr and "wide-gamut" in footage.notes[0]
    shown = frames_of(footage)[1, 16, 8::16].astype(int)
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
def test_transparent_areas_become_black(name, options, run_ffmpeg, tmp_path):
    frames = np.zeros((3, 48, 64, 4), np.uint8)
    frames[..., 1] = 200  # transparent green around
    frames[:, 12:36, 16:48] = (200, 40, 40, 255)  # an opaque box
    raw = ("-f", "rawvideo", "-pix_fmt", "rgba", "-s", "64x48", "-r", 25, "-i", "-")
    run_ffmpeg(*raw, *options, tmp_path / name, stdin=frames.tobytes())
    footage = probe(tmp_path / name)
    shown = frames_of(footage)[1].astype(int)
    assert "transparent" in footage.notes[0]
    assert shown[:8].max() < 8 and shown[40:].max() < 8
    assert np.abs(shown[18:30, 24:40] - (200, 40, 40)).max() < 12


def test_damage_is_decoded_identically_on_one_and_on_all_cores(make_video):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this platform cannot set the CPU affinity")
    path = make_video("a.mp4", *X264[:-4], "-g", 12, "-bf", 2, frames=60)
    data = bytearray(path.read_bytes())
    for position in range(len(data) // 3, len(data) * 2 // 3, 331):
        data[position] ^= 64
    path.write_bytes(data)

    def decode() -> list[tuple[bool, bytes]]:
        footage = probe(path)
        decoded_frames = read_upright(footage, plan_frames(footage), plan_geometry(footage))
        return [(p.lost, PixelReader()(p.frame).tobytes()) for p in decoded_frames]

    on_all_cores, cores = decode(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert decode() == on_all_cores
    finally:
        os.sched_setaffinity(0, cores)
    assert any(lost for lost, _ in on_all_cores) and not all(lost for lost, _ in on_all_cores)


# ---------------------------------------------------------------- audio


@pytest.mark.parametrize("rate", [5512, 11024, 22222, 96000])
def test_audio_of_any_sample_rate_is_kept(rate, make_video, numbered_frames, tmp_path):
    sine = ("-f", "lavfi", "-i", f"sine=frequency=440:sample_rate={rate}:duration=1")
    path = make_video("a.avi", "-c:v", "mjpeg", "-c:a", "pcm_u8", inputs=sine, frames=25)
    out = tmp_path / "out.mp4"
    with VideoWriter(out, width=64, height=48, rate=Fraction(25), audio=path) as writer:
        for frame in numbered_frames(25):
            writer.write(frame)
    with av.open(str(out)) as container:
        pieces = [f.to_ndarray()[0] for f in container.decode(audio=0)]
        samples, sample_rate = np.concatenate(pieces), container.streams.audio[0].sample_rate
    assert len(samples) / sample_rate == pytest.approx(1, abs=0.1)
    spectrum = np.abs(np.fft.rfft(samples[: sample_rate // 2] * np.hanning(sample_rate // 2)))
    assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=6)


def test_an_audio_track_with_an_unknown_codec_is_skipped(make_video, tmp_path):
    two = ("-map", 0, "-map", 1, "-map", 2, "-c:a:0", "pcm_s16be", "-c:a:1", "aac")
    path = make_video("a.mov", *X264, *two, inputs=(*SINE, *SINE), frames=25)
    path.write_bytes(path.read_bytes().replace(b"twos", b"zz9?"))
    footage = probe(path)
    assert footage.audio is not None and footage.audio.codec == "aac"
    assert "unknown codec" in " ".join(footage.notes)
    copied = copy_audio(path, tmp_path, audio=footage.audio, start=0.0, end=1.0)
    assert copied is not None and copied[0].suffix == ".m4a"
    with VideoWriter(tmp_path / "o.mp4", width=64, height=48, rate=Fraction(25), audio=path) as out:
        out.write(np.zeros((48, 64, 3), np.uint8))
    assert Sound(path, 0.0).jumps == ()


@pytest.mark.parametrize("damaged", [1, 3, 1000])
def test_audio_that_the_container_rejects_is_dropped(
    damaged, make_video, numbered_frames, tmp_path
):
    options = ("-c:v", "mpeg2video", "-c:a", "aac")
    path = make_video("a.ts", *options, inputs=SINE, frames=numbered_frames(25))
    # In a transport stream every AAC frame has a header, which mp4 needs to be valid.
    path.write_bytes(path.read_bytes().replace(b"\xff\xf1\x50", b"\xff\xf1\xff", damaged))
    footage = probe(path)
    copied = None
    if footage.audio is not None:
        copied = copy_audio(path, tmp_path, audio=footage.audio, start=0.0, end=1.0)
    assert copied is not None or damaged == 1000
    out = tmp_path / "out.mp4"
    sound = copied[0] if copied else None
    with VideoWriter(out, width=64, height=48, rate=Fraction(25), audio=sound) as writer:
        for frame in numbered_frames(25):
            writer.write(frame)
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 25


# ---------------------------------------------------------------- random damage


@pytest.fixture(scope="module")
def intact_files(run_ffmpeg, tmp_path_factory, numbered_frames) -> dict[str, bytes]:
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
    contents = {name: (folder / name).read_bytes() for name in kinds}
    contents["a.y4m"] = b"YUV4MPEG2 W64 H48 F25:1 C420\n" + (b"FRAME\n" + bytes(64 * 72)) * 3
    return contents


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_damaged_files_are_read_or_refused(data, intact_files, tmp_path):
    name = data.draw(st.sampled_from(sorted(intact_files)))
    raw = bytearray(intact_files[name])
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(raw) - 1))
        damage = data.draw(st.sampled_from(["flip", "huge", "zero", "drop", "cut"]))
        if damage == "flip":
            raw[position] ^= 1 << data.draw(st.integers(0, 7))
        elif damage in ("huge", "zero"):
            raw[position : position + 4] = (b"\xff" if damage == "huge" else b"\0") * 4
        elif damage == "drop":
            del raw[position : position + 16]
        elif position > 100:
            del raw[position:]
        if not raw:
            raw = bytearray(b"\0")
    path = tmp_path / name
    path.write_bytes(raw)
    try:
        footage = probe(path)
        assert footage.frames > 0 and footage.upright_width > 0 and 0.1 <= footage.rate <= 1000
        plan = plan_frames(footage)
        for placed in read_upright(footage, plan, plan_geometry(footage)):
            if placed.index > 30:
                break
        sound = None
        if footage.audio is not None:
            sound = copy_audio(path, path.parent, audio=footage.audio, start=0.0, end=1.0)
        audio = None if sound is None else sound[0]
        out = path.with_name("out.mp4")
        with VideoWriter(out, width=64, height=48, rate=Fraction(25), audio=audio) as writer:
            for _ in range(6):
                writer.write(np.zeros((48, 64, 3), np.uint8))
    except V2VError as error:
        assert error.message
