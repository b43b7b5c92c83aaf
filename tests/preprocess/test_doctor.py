"""Tests the footage report on drawn footage with known truth and on real footage."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from v2v.config import PreprocessSettings, load_config
from v2v.errors import MediaNotFound, NotAVideo
from v2v.preprocess.build import preprocess
from v2v.preprocess.doctor import examine
from v2v.preprocess.footage import FootageReport
from v2v.progress import Silent
from v2v.samples import face, person

Frames = list[NDArray[np.uint8]]


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], rate: int = 10) -> Path:
    from v2v.video.write import VideoWriter

    frames = list(frames)
    height, width = frames[0].shape[:2]
    with VideoWriter(path, width=width, height=height, rate=Fraction(rate)) as video:
        for frame in frames:
            video.write(frame)
    return path


@pytest.fixture(scope="module")
def dance() -> Frames:
    return list(person.frames(count=24, fps=10.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def dancer(folder: Path, dance: Frames) -> FootageReport:
    return examine(write_video(folder / "dance.mp4", dance), Silent())


def verdicts(report: FootageReport) -> dict[str, str]:
    return {verdict.task: verdict.level for verdict in report.verdicts}


def test_facts_match_the_file(dancer):
    facts = dancer.facts
    assert (facts.kind, facts.frames, facts.fps) == ("video", 24, 10.0)
    assert (facts.width, facts.height, facts.rotation) == (384, 640, 0)
    assert facts.duration == pytest.approx(2.4)
    assert facts.audio is None and not facts.hdr and not facts.variable_rate and not facts.lost


def test_drawn_person_is_one_whole_body_with_a_still_camera(dancer):
    assert dancer.person is not None
    assert dancer.person.seen == 1 and dancer.person.whole > 0.9
    assert dancer.person.others == 0
    truth = np.ptp(person.joints(count=24, fps=10.0)[..., 1], axis=1).mean() / 640
    assert truth < dancer.person.height < 1.25 * truth, (
        "the height extends nose to ankles by up to a quarter"
    )
    assert dancer.person.height_px == pytest.approx(640 * dancer.person.height, abs=1)
    assert dancer.camera.state == "still"
    assert dancer.cuts == () and dancer.blurred == 0
    assert verdicts(dancer)["pose motion transfer"] == "poor", "2.4 s are too short"
    assert any("3 minutes are better than 2.4 s" in line for line in dancer.advice)


def test_missing_poses_are_listed(dancer):
    assert dancer.person is not None
    missing = dancer.person.missing
    assert {"turned to the left", "turned to the right", "seen from behind"} <= set(missing)
    assert "facing the camera" not in missing and "arms hanging" not in missing
    assert 0 < dancer.person.coverage < 0.7


def test_mirroring_keeps_the_arm_range(folder, dance):
    def upper_arms(frames: Frames, name: str) -> tuple[float, float]:
        report = examine(write_video(folder / name, frames), Silent())
        assert report.person is not None and report.person.arms is not None
        return report.person.arms

    straight = upper_arms(dance[:12], "straight.mp4")
    mirrored = upper_arms([np.ascontiguousarray(f[:, ::-1]) for f in dance[:12]], "mirrored.mp4")
    np.testing.assert_allclose(straight, mirrored, atol=8)


def test_crop_is_advised_for_a_small_person(folder, dance):
    around = (280, 320, 500, 500)
    small = [cv2.copyMakeBorder(f, *around, cv2.BORDER_REPLICATE) for f in dance[:8]]
    report = examine(write_video(folder / "small.mp4", small), Silent())
    assert report.person is not None and 0.2 < report.person.height < 0.45
    assert any("--crop person" in line for line in report.advice)


def test_cut_off_body_is_reported(folder, dance):
    report = examine(write_video(folder / "bust.mp4", [f[:400] for f in dance[:10]]), Silent())
    assert report.person is not None
    assert report.person.seen == 1 and report.person.whole == 0 and report.person.feet_cut > 0.9
    assert any(line.startswith("stand back: the feet are cut off") for line in report.advice)


def test_blurred_frames_are_counted(folder, dance):
    def blurred(frames: Frames, name: str) -> float:
        return examine(write_video(folder / name, frames), Silent()).blurred

    soft = [cv2.GaussianBlur(frame, (0, 0), 5) for frame in dance[:10]]
    assert blurred(soft, "soft.mp4") >= 0.9
    mixed = [*dance[:8], *soft[8:10]]
    assert blurred(mixed, "mixed.mp4") == pytest.approx(0.2, abs=0.01)


def test_cut_between_two_shots_is_found(folder, dance):
    other = [np.ascontiguousarray(255 - frame) for frame in dance[8:16]]
    report = examine(write_video(folder / "cut.mp4", [*dance[:8], *other]), Silent())
    assert report.cuts == (0.8,)
    assert report.camera.state == "still", "a cut is not camera motion"
    assert any("1 cut; fine" in line for line in report.advice)


def texture(height: int, width: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(1).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize(("step", "state"), [(0, "still"), (2, "moving"), (12, "moving")])
def test_panned_crop_is_a_moving_camera(folder, step, state):
    wide = texture(240, 640)
    frames = [wide[:, step * i : step * i + 320] for i in range(20)]
    report = examine(write_video(folder / f"pan{step}.mp4", frames), Silent())
    assert report.camera.state == state
    if step:
        assert report.camera.speed == pytest.approx(step * 10 / 320, rel=0.1)


def test_plain_wall_leaves_the_camera_unclear(folder):
    frames = [np.full((120, 160, 3), 180, np.uint8)] * 12
    report = examine(write_video(folder / "wall.mp4", frames), Silent())
    assert report.camera.state == "unclear"
    assert verdicts(report)["frame prediction"] == "poor", "nothing moves"


def test_footage_without_people_gets_a_report(folder):
    report = examine(write_video(folder / "nobody.mp4", [texture(240, 320)] * 8), Silent())
    assert report.person is None and report.face is None
    levels = verdicts(report)
    assert levels["pose motion transfer"] == levels["face re-enactment"] == "poor"
    assert any(line.startswith("nobody was found") for line in report.advice)


def test_drawn_face_is_found_in_all_frames(folder):
    truth = face.truth(count=24, fps=4.0)
    report = examine(
        write_video(folder / "face.mp4", face.frames(count=24, fps=4.0), rate=4), Silent()
    )
    found = report.face
    assert found is not None and found.seen == 1
    assert 0.4 * 512 < found.width_px < 0.7 * 512
    assert np.ptp(found.yaw) == pytest.approx(np.ptp(np.degrees(truth["yaw"])), rel=0.4)
    assert np.ptp(found.mouth) > 0.1
    assert found.eyes[0] < found.eyes[1]
    assert report.person is None or report.person.whole == 0
    assert verdicts(report)["pose motion transfer"] == "poor"


def test_store_report_matches_its_footage(folder, dance, dancer):
    settings = load_config(PreprocessSettings, "preprocess", overrides=["preview.enabled=false"])
    write_video(folder / "stored.mp4", dance)
    preprocess(folder / "stored.mp4", ["pose"], settings, output=folder / "store")
    report = examine(folder / "store", Silent())
    assert report.facts.kind == "store"
    assert (report.facts.frames, report.facts.width) == (24, 384)
    assert report.person is not None and dancer.person is not None
    assert report.person.seen == 1 and report.person.whole > 0.9
    assert report.person.height == pytest.approx(dancer.person.height, abs=0.03)
    assert report.camera.state == "still"


def test_folder_of_images_is_accepted(folder, dance):
    images = folder / "images"
    images.mkdir()
    for i, frame in enumerate(dance[:6]):
        cv2.imwrite(str(images / f"{i}.png"), frame[..., ::-1])
    report = examine(images, Silent())
    assert (report.facts.kind, report.facts.frames) == ("images", 6)
    assert report.person is not None and report.person.seen == 1


def test_bad_input_raises_own_errors(tmp_path):
    with pytest.raises(MediaNotFound):
        examine(tmp_path / "none.mp4", Silent())
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(NotAVideo):
        examine(tmp_path / "text.mp4", Silent())


def test_report_prints_and_converts_to_json(dancer):
    data = json.loads(json.dumps(dancer.as_json(), allow_nan=False))
    assert data["person"]["seen"] == 1 and len(data["verdicts"]) == 3
    out = io.StringIO()
    dancer.render(Console(file=out, width=100))
    for word in ("dance.mp4", "good for", "what to do", "still", "nobody else"):
        assert word in out.getvalue()


def test_real_dancer(clips):
    report = examine(clips / "pose/dancer.mp4", Silent())
    assert report.facts.duration == pytest.approx(12.0)
    assert report.camera.state == "still" and report.cuts == ()
    assert report.person is not None and report.person.seen == 1 and report.person.others == 0
    assert report.person.whole > 0.5
    assert {"turned to the left", "turned to the right"} <= set(report.person.missing)


def test_real_crowd(clips):
    report = examine(clips / "pose/street_crowd.avi", Silent())
    assert report.camera.state == "moving" and report.cuts == ()
    assert report.person is not None and report.person.others > 0.5


def test_real_small_person(clips):
    report = examine(clips / "pose/actor.avi", Silent())
    assert report.person is not None and report.person.height < 0.45
    assert report.camera.state == "still"
    assert any("--crop person" in line for line in report.advice)


def test_real_face(clips):
    report = examine(clips / "face/talker_b.mp4", Silent())
    assert report.face is not None and report.face.seen == 1
    assert report.person is None or report.person.whole == 0
    assert report.facts.audio is not None


def test_real_street(clips):
    report = examine(clips / "street/images", Silent())
    assert report.camera.state == "moving" and report.person is None and report.face is None
