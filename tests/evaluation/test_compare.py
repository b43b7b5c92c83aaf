"""Comparison videos: synchronised panels, correct differences and enlarged regions."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from v2v.errors import DiskFull, MediaNotFound, NotWritable, UnknownName, UsageError
from v2v.evaluation.compare.align import ComparedVideo, align, open_all
from v2v.evaluation.compare.compare import compare
from v2v.evaluation.compare.compose import DIMMED, composed
from v2v.evaluation.compare.layout import Layout, label_font, panel_height, shortened
from v2v.evaluation.compare.provenance import Composite
from v2v.evaluation.compare.view import View, parse_zoom
from v2v.pipelines.provenance import Provenance, read_provenance
from v2v.video.probe import probe
from v2v.video.read import read_tags, read_upright
from v2v.video.stored import read_stored
from v2v.video.write import VideoWriter, concatenate

LOSSLESS = ("-c:v", "ffv1")
W, H = 128, 96


def read(path: Path) -> np.ndarray:
    return np.stack(list(read_stored(path)))


def panel(frames: np.ndarray, layout: Layout, block: str, index: int) -> np.ndarray:
    x, y, width, height = layout.place(block, index)
    return frames[:, y : y + height, x : x + width]


def layout_of(
    count: int, *, gain: float | None = None, region: Any = None, size: tuple[int, int] = (W, H)
) -> Layout:
    return Layout(tuple("abcdefghi"[:count]), *size, gain, region)


def grey(value: int, count: int = 6, width: int = W, height: int = H) -> np.ndarray:
    return np.full((count, height, width, 3), value, np.uint8)


@pytest.fixture
def film(make_video: Callable[..., Path]) -> Callable[..., Path]:
    """`film("a.mkv", frames=..., rate=...)`: a lossless clip."""

    def make(name: str, **options: Any) -> Path:
        options.setdefault("size", (W, H))
        return make_video(name, *LOSSLESS, **options)

    return make


def mark_of(model: str, source: str = "dance.mp4") -> Provenance:
    return Provenance(
        tool="v2v 0", pipeline="motion transfer", model=model, model_sha256="1" * 64,
        trained_on=("me.mp4",), source=source, source_sha256="2" * 64,
    )  # fmt: skip


@pytest.fixture
def rendered(tmp_path: Path) -> Callable[..., Path]:
    """`rendered("a.mp4", "model")`: a clip marked as synthetic."""

    def make(name: str, model: str) -> Path:
        part, path = tmp_path / f"{name}.part", tmp_path / name
        with VideoWriter(part, width=W, height=H, rate=Fraction(25)) as video:
            for frame in grey(99):
                video.write(frame)
        concatenate([part], path, container="mp4", rate=Fraction(25), tags=mark_of(model).tags())
        part.unlink()
        return path

    return make


# ---------------------------------------------------------------- synchronisation


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_panels_show_the_same_frame(film, tmp_path, read_numbers, count):
    clips = [film(f"{i}.mkv", frames=20) for i in range(count)]
    done = compare(clips, tmp_path / "out.mkv", codec="ffv1", size=H)
    frames, layout = read(done.video), layout_of(count)
    assert (done.width, done.height) == layout.size == frames.shape[2:0:-1]
    assert (done.frames, done.rate, done.notes) == (20, 25, ())
    for index in range(count):
        assert read_numbers(panel(frames, layout, "clip", index)) == list(range(20))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".mkv"] * (count + 1)


def test_panels_do_not_overlap():
    for count in range(2, 10):
        layout = layout_of(count, gain=4, region=(0.1, 0.1, 0.2, 0.4))
        taken = np.zeros(layout.size[::-1], int)
        for block, _ in layout.blocks:
            for index in range(count):
                x, y, width, height = layout.place(block, index)
                assert x >= 0 and y >= layout.strip and not (x % 2 or y % 2)
                taken[y - layout.strip : y + height, x : x + width] += 1
        assert taken.max() == 1
        assert all(side % 2 == 0 for side in layout.size)


@pytest.mark.parametrize(("first", "second"), [(24, 30), (30, 24), (25, 50), (24, 24)])
def test_other_frame_rates_stay_synchronised(film, tmp_path, read_numbers, first, second):
    clips = [film("a.mkv", frames=first * 2, rate=first), film("b.mkv", frames=second * 2,
             rate=second)]  # fmt: skip
    done = compare(clips, tmp_path / "out.mkv", codec="ffv1", size=H)
    frames, layout = read(done.video), layout_of(2)
    assert (done.rate, done.frames, probe(done.video).rate) == (first, first * 2, first)
    assert read_numbers(panel(frames, layout, "clip", 0)) == list(range(first * 2))
    for index, shown in enumerate(read_numbers(panel(frames, layout, "clip", 1))):
        offset = index / first - shown / second
        assert -0.5 / first - 1e-9 <= offset <= 1 / second + 0.5 / first + 1e-9
    expected = f"b has {second} fps; shown at {first} fps like a"
    assert any(expected in note for note in done.notes) == (first != second)


def test_the_comparison_ends_with_the_shortest_clip_and_notes_it(film, tmp_path, read_numbers):
    clips = [film("a.mkv", frames=20), film("b.mkv", frames=12)]
    done = compare(clips, tmp_path / "out.mkv", codec="ffv1", size=H)
    assert done.frames == 12
    assert done.notes == (
        "the lengths differ (a 0.80 s, b 0.48 s): all are cut to the length of b",
    )


def test_with_longest_ended_clips_freeze_dimmed(film, tmp_path, read_numbers):
    clips = [film("a.mkv", frames=20), film("b.mkv", frames=12)]
    done = compare(clips, tmp_path / "out.mkv", codec="ffv1", size=H, longest=True, difference=True)
    frames, layout = read(done.video), layout_of(2, gain=4)
    assert done.frames == 20 and "clips that end early freeze, dimmed" in done.notes[0]
    assert read_numbers(panel(frames, layout, "clip", 0)) == list(range(20))
    second = panel(frames, layout, "clip", 1)
    assert read_numbers(second[:12]) == list(range(12))
    dimmed = second[11].astype(float) * DIMMED
    assert np.abs(second[12:] - dimmed).max() <= 1
    assert not panel(frames, layout, "difference", 1)[12:].any()


def test_a_range_selects_the_same_frames_of_all_clips(film, tmp_path, read_numbers):
    clips = [film("a.mkv", frames=48, rate=24), film("b.mkv", frames=60, rate=30)]
    whole = compare(clips, tmp_path / "whole.mkv", codec="ffv1", size=H)
    part = compare(clips, tmp_path / "part.mkv", codec="ffv1", size=H, start=0.5, end=1.25)
    assert np.array_equal(read(part.video), read(whole.video)[12:30])


def test_a_rotated_clip_is_shown_upright(film, make_video, run_ffmpeg, tmp_path, read_numbers):
    upright = film("a.mkv", frames=6)
    turned = make_video("t.mp4", "-c:v", "libx264", "-crf", 5, "-vf", "transpose=2", size=(W, H))
    tagged = tmp_path / "tagged.mp4"
    run_ffmpeg("-display_rotation", 270, "-i", turned, "-c", "copy", tagged)
    seen = probe(tagged)
    assert seen.rotation == 90 and (seen.upright_width, seen.upright_height) == (W, H)
    done = compare([upright, tagged], tmp_path / "out.mkv", codec="ffv1", size=H)
    assert read_numbers(panel(read(done.video), layout_of(2), "clip", 1)) == list(range(6))


def test_image_folders_are_accepted_as_clips(film, tmp_path, read_numbers, numbered_frames):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i, frame in enumerate(numbered_frames(6, width=W, height=H)):
        Image.fromarray(frame).save(tmp_path / "images" / f"{i:03}.png")
    done = compare(
        [film("a.mkv", frames=6), tmp_path / "images"], tmp_path / "out.mkv", codec="ffv1", size=H
    )
    assert done.labels == ("a", "images")
    assert read_numbers(panel(read(done.video), layout_of(2), "clip", 1)) == list(range(6))


def test_undecodable_frames_are_noted(film, make_video, tmp_path, read_numbers):
    path = make_video(
        "b.mkv", "-c:v", "libx264", "-g", 4, "-bf", 0, "-crf", 10, frames=24, size=(W, H)
    )
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        start, length = packets[9].pos, packets[9].size
    data = bytearray(path.read_bytes())
    middle = start + length // 2
    data[middle : middle + 40] = bytes(range(40))
    path.write_bytes(data)
    done = compare([film("a.mkv", frames=24), path], tmp_path / "o.mkv", codec="ffv1", size=H)
    notes = [note for note in done.notes if "of b could not be decoded" in note]
    assert done.frames == 24 and len(notes) == 1
    shown = read_numbers(panel(read(done.video), layout_of(2), "clip", 1))
    assert shown[:9] == list(range(9)) and shown[12:] == list(range(12, 24))


# ---------------------------------------------------------------- pictures


def test_a_panel_of_the_clip_s_size_equals_the_clip(film, tmp_path):
    clips = [film("a.mkv", frames=6), film("b.mkv", frames=6)]
    done = compare(clips, tmp_path / "out.mkv", codec="ffv1", size=H)
    shown = panel(read(done.video), layout_of(2), "clip", 1)
    original = np.stack(list(align(open_all(clips)).pictures(1)))
    assert np.array_equal(shown, original)


def test_other_sizes_are_fitted_without_distortion(film, tmp_path, read_numbers):
    wide = film("wide.mkv", frames=6, size=(W * 2, H))  # twice as wide: bars above and below
    large = film("large.mkv", frames=6, size=(W * 2, H * 2))
    done = compare(
        [film("a.mkv", frames=6), wide, large], tmp_path / "out.mkv", codec="ffv1", size=H,
        difference=True,
    )  # fmt: skip
    frames, layout = read(done.video), layout_of(3, gain=4)
    assert read_numbers(panel(frames, layout, "clip", 2)) == list(range(6))
    barred = panel(frames, layout, "clip", 1)
    assert read_numbers(barred[:, H // 4 : 3 * H // 4]) == list(range(6))
    for block in ("clip", "difference"):
        bars = panel(frames, layout, block, 1)
        assert not bars[:, : H // 4].any() and not bars[:, 3 * H // 4 :].any()
        assert bars[:, 5 * H // 8].any()
    assert any("wide is 256x96" in note and "black bars" in note for note in done.notes)
    assert any("large is 256x192, shown at 128x96" in note for note in done.notes)


def test_a_frame_is_centred_in_its_panel():
    view = View.whole((100, 50), 100, 100)
    assert view.inner == (0, 25, 100, 75)
    assert View.whole((50, 100), 100, 100).inner == (25, 0, 75, 100)
    assert View.whole((128, 228), 128, 224).inner == (0, 0, 128, 224), (
        "nearly the same aspect ratio"
    )
    picture = np.arange(50 * 100 * 3, dtype=np.uint32).reshape(50, 100, 3).astype(np.uint8)
    assert np.array_equal(view(picture)[25:75], picture)


@pytest.mark.parametrize("scale", [2, 4])
def test_scaling_preserves_relative_positions(scale):
    """The centre of mass of a blob keeps its relative position in larger and smaller panels."""
    xs, ys = np.meshgrid(np.arange(128) + 0.5, np.arange(96) + 0.5)
    blob = 255 * np.exp(-((xs - 40.3) ** 2 + (ys - 61.7) ** 2) / 100)
    picture = np.repeat(blob[..., None], 3, axis=2).round().astype(np.uint8)
    for width, height in ((128 * scale, 96 * scale), (128 // scale, 96 // scale)):
        shown = View.whole((128, 96), width, height)(picture)[..., 0].astype(float)
        x = (shown.sum(0) * (np.arange(width) + 0.5)).sum() / shown.sum() / width
        y = (shown.sum(1) * (np.arange(height) + 0.5)).sum() / shown.sum() / height
        assert (x * 128, y * 96) == pytest.approx((40.3, 61.7), abs=0.1)


def test_identical_clips_have_a_black_difference(film, tmp_path):
    clips = [film("a.mkv", frames=6), film("b.mkv", frames=6)]
    done = compare(clips, tmp_path / "out.mkv", codec="ffv1", size=H, difference=True)
    assert not panel(read(done.video), layout_of(2, gain=4), "difference", 1).any()
    assert "brightened 4 times" in done.notes[-1]


@pytest.mark.parametrize(("offset", "gain", "value"), [(10, 4, 40), (-7, 8, 56), (60, 8, 255)])
def test_a_known_difference_has_its_value(film, tmp_path, offset, gain, value):
    a = film("a.mkv", frames=grey(100))
    b = film("b.mkv", frames=grey(100 + offset))
    done = compare(
        [a, b], tmp_path / "out.mkv", codec="ffv1", size=H, difference=True, amplify=gain
    )
    shown = panel(read(done.video), layout_of(2, gain=gain), "difference", 1).astype(int)
    assert np.abs(shown - value).max() <= gain, "the clips are rounded to one level"


@pytest.mark.parametrize("zoom", ["0.5,0.25,0.25,0.25", "64,24,32,24"])
def test_zoom_shows_the_given_region(film, tmp_path, zoom):
    frames = grey(40)
    frames[:, 24:48, 64:96] = 200
    frames[:, 30:36, 64:72] = 120  # a marker inside the region
    large = frames.repeat(2, axis=1).repeat(2, axis=2)
    clips = [film("a.mkv", frames=frames), film("b.mkv", frames=large)]
    done = compare(clips, tmp_path / "out.mkv", codec="ffv1", size=H, zoom=zoom)
    region = parse_zoom(zoom, (W, H))
    assert region == pytest.approx((0.5, 0.25, 0.25, 0.25))
    layout = layout_of(2, region=region)
    assert layout.zoomed == (W, H)
    whole = read(done.video)
    for index in range(2):
        shown = panel(whole, layout, "zoom", index)[0].astype(int)
        assert np.abs(shown[60:90, 50:120] - 200).max() <= 6
        assert np.abs(shown[28:44, 4:26] - 120).max() <= 6
        assert shown[4:-4, 4:-4].min() > 90, "pixels from outside the region"


def test_a_region_keeps_its_aspect_ratio():
    layout = layout_of(2, region=(0, 0, 0.5, 0.25))
    assert layout.zoomed == (W, H // 2)
    assert layout_of(2, region=(0, 0, 0.1, 0.5)).zoomed == (26, H)


def test_labels_are_unique_drawn_and_shortened(film, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    clips = [film("one/x.mkv", frames=3), film("two/x.mkv", frames=3), film("y.mkv", frames=3)]
    done = compare(clips, tmp_path / "o.mkv", codec="ffv1", size=H)
    assert done.labels == ("one/x", "two/x", "y")
    other = compare(clips, tmp_path / "p.mkv", codec="ffv1", size=H, labels=["p", "q", "Größe"])
    assert other.labels == ("p", "q", "Größe")
    strip = Layout(other.labels, W, H).strip
    one, two = read(done.video)[0, :strip], read(other.video)[0, :strip]
    assert one.max() > 200 and not np.array_equal(one, two)
    font = label_font(13)
    assert shortened("short", font, 100) == "short"
    cut = shortened("a-very-long-name-of-a-file", font, 100)
    assert "…" in cut and font.getlength(cut) <= 100 and cut[0] + cut[-1] == "ae"


def test_default_sizes_fit_a_screen():
    sheet = layout_of(9, gain=4, region=(0, 0, 0.5, 0.5))
    found = panel_height(None, sheet, (3840, 2160))
    assert found.size[0] <= 3840 and found.size[1] <= 2160
    assert found.width / found.height == pytest.approx(16 / 9, rel=0.02)
    assert panel_height(None, layout_of(2), (128, 224)).height == 224
    assert panel_height(None, layout_of(2), (64, 48)).height == 144, "labels need room"
    with pytest.raises(UsageError, match="at most 8192"):
        panel_height(4000, sheet, (3840, 2160))


# ---------------------------------------------------------------- sound and provenance


@pytest.mark.parametrize(("chosen", "sounds"), [(None, False), (0, False), (2, True)])
def test_sound_of_the_chosen_clip_stays_synchronised(film, make_video, tmp_path, chosen, sounds):
    """A beep at 1 s of the clip is at 0.5 s of the result if the range starts at 0.5 s."""
    beep = "aevalsrc='if(between(t,1,1.1),0.8*sin(2*PI*1000*t),0)':s=48000:d=2"
    loud = make_video(
        "b.mp4", "-c:v", "libx264", "-c:a", "aac", frames=50, size=(W, H),
        inputs=("-f", "lavfi", "-i", beep),
    )  # fmt: skip
    done = compare(
        [film("a.mkv", frames=50), loud], tmp_path / "out.mp4", size=H, start=0.5, sound=chosen
    )
    seen = probe(done.video)
    assert (seen.audio is not None) == sounds
    if sounds:
        with av.open(str(done.video)) as container:
            loud_times = [
                f.time for f in container.decode(audio=0) if np.abs(f.to_ndarray()).max() > 0.3
            ]
        assert loud_times[0] == pytest.approx(0.5, abs=0.04)


def test_a_comparison_with_synthetic_clips_is_marked(film, rendered, tmp_path):
    clips = [film("real.mkv"), rendered("a.mp4", "small"), rendered("b.mp4", "base")]
    done = compare(clips, tmp_path / "out.mp4", size=H)
    tag = json.loads(read_tags(done.video)["comment"])
    assert tag["synthetic"] is True and tag["pipeline"] == "comparison"
    assert tag["tool"].startswith("v2v ") and "a, b" in tag["note"]
    assert [p["label"] for p in tag["panels"]] == ["real", "a", "b"]
    assert [p["mark"] and p["mark"]["model"] for p in tag["panels"]] == [None, "small", "base"]
    mark = read_provenance(done.video)  # `v2v info` reads the same tag
    assert mark is not None and mark.model == "small, base" and mark.source == "dance.mp4"
    again = compare([done.video, clips[0]], tmp_path / "again.mp4", size=H)
    assert again.synthetic == ("out",) and read_provenance(again.video) is not None


def test_a_comparison_of_footage_is_not_marked_as_synthetic(film, tmp_path):
    done = compare([film("a.mkv"), film("b.mkv")], tmp_path / "out.mp4", size=H)
    assert done.synthetic == () and read_provenance(done.video) is None
    assert Composite.of_clips(open_all([tmp_path / "a.mkv"])) is None


@pytest.mark.parametrize(
    ("codec", "name"), [("h264", "o.mp4"), ("hevc", "o.mkv"), ("vp9", "o.webm"), ("hevc", "o.mov")]
)
def test_all_codecs_keep_the_provenance(film, rendered, tmp_path, codec, name):
    clips = [film("a.mkv"), rendered("b.mp4", "small")]
    done = compare(clips, tmp_path / name, size=H, codec=codec, crf=10)
    seen = probe(done.video)
    assert (seen.codec, seen.frames, seen.rate) == (codec, 6, 25)
    assert read_provenance(done.video) is not None


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"zoom": "1,2,3"}, UsageError, "X,Y,W,H"),
        ({"zoom": "0.8,0,0.5,0.5"}, UsageError, "beyond the frame"),
        ({"zoom": "100,10,50,20"}, UsageError, "up to 128,96"),
        ({"zoom": "0.1,0.1,0.001,0.1"}, UsageError, "too small"),
        ({"zoom": "nan,0,1,1"}, UsageError, "beyond the frame"),
        ({"start": 5.0}, UsageError, "a.mkv"),
        ({"start": 0.4, "end": 0.2}, UsageError, "empty"),
        ({"labels": ["one"]}, UsageError, "1 labels for 2"),
        ({"sound": 3}, UsageError, "1 to 2"),
        ({"sound": 2}, UsageError, "has no sound"),
        ({"size": 5}, UsageError, "16 to 4096"),
        ({"codec": "h263"}, UnknownName, "h263"),
        ({"crf": 60}, UsageError, "0 (best) to 51"),
        ({"difference": True, "amplify": 0}, UsageError, "amplify="),
    ],
)
def test_invalid_options_are_refused(film, tmp_path, options, kind, words):
    clips = [film("a.mkv"), film("b.mkv")]
    with pytest.raises(kind) as caught:
        compare(clips, tmp_path / "out.mp4", **options)
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv"]


def test_existing_files_are_kept_without_overwrite(film, tmp_path):
    clips = [film("a.mkv"), film("b.mkv")]
    existing = tmp_path / "existing.mp4"
    existing.write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists already"):
        compare(clips, existing)
    with pytest.raises(UsageError, match="one of the clips"):
        compare([clips[0], existing], existing, overwrite=True)
    with pytest.raises(NotWritable, match="is a folder"):
        compare(clips, _folder(tmp_path / "f.mp4"))
    with pytest.raises(NotWritable, match="a file is in its place"):
        compare(clips, existing / "out.mp4")
    assert existing.read_bytes() == b"precious"
    compare(clips, existing, overwrite=True, size=H)
    assert probe(existing).frames == 12


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_too_few_too_many_or_missing_clips_are_refused(film, tmp_path):
    clip = film("a.mkv")
    for clips in ([clip], [clip] * 10):
        with pytest.raises(UsageError, match="cannot compare"):
            compare(clips, tmp_path / "out.mp4")
    with pytest.raises(MediaNotFound):
        compare([clip, tmp_path / "none.mp4"], tmp_path / "out.mp4")


def test_a_full_disk_leaves_no_partial_file(film, tmp_path, monkeypatch):
    clips = [film("a.mkv"), film("b.mkv")]
    existing = tmp_path / "out.mp4"
    existing.write_bytes(b"old")
    write, written = VideoWriter.write, 0

    def filling(self: Any, frame: np.ndarray) -> None:
        nonlocal written
        written += 1
        if written == 5:
            raise DiskFull("the disk is full")
        write(self, frame)

    monkeypatch.setattr(VideoWriter, "write", filling)
    with pytest.raises(DiskFull):
        compare(clips, existing, overwrite=True)
    assert existing.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv", "out.mp4"]


def test_a_second_process_gets_a_clear_error(film, tmp_path):
    from v2v.progress import Silent

    clips, seen = [film("a.mkv", frames=6), film("b.mkv", frames=6)], []

    class Meanwhile(Silent):
        def advance(self, stage: str, amount: int = 1) -> None:
            if not seen:
                seen.append(stage)
                with pytest.raises(NotWritable, match="another process is writing"):
                    compare(clips, tmp_path / "o.mp4")

    (tmp_path / ".o.mp4.partial").mkdir()
    (tmp_path / ".o.mp4.partial" / "part").write_bytes(b"of a process that was killed")
    done = compare(clips, tmp_path / "o.mp4", report=Meanwhile())
    assert seen and len(read(done.video)) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv", "o.mp4"]


def test_frames_are_decoded_lazily(film, monkeypatch):
    clips = [ComparedVideo.open(film(n, frames=200)) for n in ("a.mkv", "b.mkv")]
    decoded = []

    def watched(*arguments: Any, **options: Any) -> Any:
        for placed in read_upright(*arguments, **options):
            decoded.append(placed.index)
            yield placed

    monkeypatch.setattr("v2v.evaluation.compare.align.read_upright", watched)
    frames = composed(align(clips), layout_of(2))
    for _ in range(10):
        next(frames)
    frames.close()
    assert max(decoded) < 20


# ---------------------------------------------------------------- the command


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command on its own, independent of its registration."""
    import typer
    from typer.testing import CliRunner

    from v2v.cli import comparing

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("V2V_DEBUG", "1")
    standalone = typer.Typer()
    standalone.command(help=comparing.EXAMPLES_COMPARE)(comparing.compare)
    return lambda *arguments: CliRunner().invoke(standalone, [str(a) for a in arguments])


def test_the_command_reports_its_result(app, film, tmp_path):
    clips = [film("a.mkv", frames=6), film("b.mkv", frames=9)]
    done = app(*clips, "--difference", "--zoom", "0,0,0.5,0.5")
    assert done.exit_code == 0, done.output
    for part in ("comparison.mp4: 6 frames", "cut to the length of a", "brightened 4 times"):
        assert part in done.stdout
    result = app(*clips, "-o", "x.mkv", "--codec", "ffv1", "--json", "--label", "p", "--label", "q")
    found = json.loads(result.stdout)
    assert found["video"] == "x.mkv" and found["labels"] == ["p", "q"] and found["notes"]
    assert app(*clips, "--quiet", "--overwrite").stdout == ""
    assert isinstance(app(*clips).exception, UsageError)
