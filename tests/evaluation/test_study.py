"""Preference studies: blind for participants, exact for the evaluation."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.stats import norm

from v2v.errors import DiskFull, MediaNotFound, NotWritable, UsageError
from v2v.evaluation.compare.align import ComparedVideo
from v2v.evaluation.study.answers import read_answers, read_key
from v2v.evaluation.study.clips import spoiled
from v2v.evaluation.study.deal import deal
from v2v.evaluation.study.make import study
from v2v.evaluation.study.page import page
from v2v.evaluation.study.records import Key, Trial
from v2v.evaluation.study.results import Preference, evaluate_answers, wilson
from v2v.pages import read_template_file
from v2v.video.probe import probe
from v2v.video.read import read_tags
from v2v.video.stored import read_stored

W, H = 128, 96
METHODS = ("oldmodel", "newmodel")


@pytest.fixture
def film(make_video: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, **options: Any) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        return make_video(name, "-c:v", "ffv1", **({"size": (W, H), "frames": 16} | options))

    return make


@pytest.fixture
def made(film: Callable[..., Path], tmp_path: Path) -> Callable[..., Key]:
    """`made(checks=2)`: the key of a study of two methods and three contents."""

    def make(**options: Any) -> Key:
        for method in METHODS:
            for name in ("dance", "street", "talk"):
                film(f"{method}/{name}.mkv", frames=14)
        folders = [tmp_path / method for method in METHODS]
        done = study(folders, tmp_path / "page", pairs=True, **({"seed": 1} | options))
        return read_key(done.key)

    return make


Choose = Callable[[str, str], str]  # (left clip, right clip) -> the one chosen


def answers(key: Key, participant: str, choose: Choose, finished: str = "10:05") -> dict[str, Any]:
    """The answer file that the page saves for a participant who answers with `choose`."""
    trials = [
        {
            "trial": trial, "left": left, "right": right, "seconds": 3.25,
            "answer": "left" if choose(left, right) == left else "right",
        }
        for trial, left, right in deal(key.study, participant, key.trials)
    ]  # fmt: skip
    return {
        "kind": "v2v study answers", "version": 1, "study": key.study, "participant": participant,
        "started": "2025-01-01T10:00:00.000Z", "finished": f"2025-01-01T{finished}:00.000Z",
        "trials": trials,
    }  # fmt: skip


def prefers(key: Key, method: str) -> Choose:
    """An attentive participant who prefers one method."""

    def choose(left: str, right: str) -> str:
        for clip, other in ((left, right), (right, left)):
            if key.clips[other].spoiled:
                return clip
            if not key.clips[clip].spoiled and key.clips[clip].method == method:
                return clip
        raise AssertionError

    return choose


def save(path: Path, given: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(given))
    return path


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 1, 0.2065, 1.0),
        (60, 84, 0.60998, 0.79985),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_intervals_have_known_values(wins, n, low, high):
    assert wilson(wins, n) == pytest.approx((low, high), abs=6e-5)


def test_intervals_solve_their_defining_equation():
    """Their bounds are the proportions p from which wins / n is z standard deviations away."""
    for n in (3, 17, 200):
        for wins in range(n + 1):
            low, high = wilson(wins, n)
            assert 0 <= low <= wins / n <= high <= 1
            for p in {low, high} - {0.0, 1.0}:
                deviations = abs(wins / n - p) / (p * (1 - p) / n) ** 0.5
                assert deviations == pytest.approx(norm.ppf(0.975))
            assert wilson(n - wins, n) == pytest.approx((1 - high, 1 - low))


def test_preferences_are_described_in_a_sentence():
    assert Preference(("a", "b"), (24, 60)).sentence == (
        "b preferred to a in 71 percent of 84 answers, 95 percent interval 61 to 80"
    )
    assert Preference(("a", "b"), (8, 2)).sentence.endswith("49 to 94; this may be due to chance")
    assert Preference(("a", "b"), (0, 0)).sentence == "a and b: no answers"


# ---------------------------------------------------------------- order and sides


def trials(count: int) -> list[Trial]:
    return [Trial(id=f"t{i}", clips=(f"a{i}", f"b{i}")) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_sides_and_order_are_balanced(count):
    given, people = trials(count), 3000
    lefts: Counter[str] = Counter()
    positions: Counter[tuple[str, int]] = Counter()
    for person in range(people):
        dealt = deal("study", f"p{person}", given)
        assert sorted(t for t, _, _ in dealt) == sorted(t.id for t in given)
        firsts = sum(left.startswith("a") for _, left, _ in dealt)
        assert firsts in (count // 2, (count + 1) // 2), "balanced within a participant"
        for position, (trial, left, right) in enumerate(dealt):
            assert {left, right} == {f"a{trial[1:]}", f"b{trial[1:]}"}
            lefts[trial] += left.startswith("a")
            positions[trial, position] += 1
    for trial in given:  # within five standard deviations
        assert abs(lefts[trial.id] - people / 2) < 5 * (people / 4) ** 0.5
        for position in range(count):
            share = 1 / count
            spread = (people * share * (1 - share)) ** 0.5
            assert abs(positions[trial.id, position] - people * share) <= 5 * spread


def test_order_depends_only_on_study_and_participant():
    given = trials(12)
    assert deal("s", "anna", given) == deal("s", "anna", given)
    assert deal("s", "anna", given) != deal("s", "bert", given)
    assert deal("s", "anna", given) != deal("t", "anna", given)


# ---------------------------------------------------------------- creating a study


def test_the_page_is_complete_and_needs_no_network(made, tmp_path):
    key = made()
    home = tmp_path / "page"
    assert sorted(p.name for p in home.iterdir()) == ["clips", "index.html", "key.json"]
    text = (home / "index.html").read_text()
    assert "http" not in text and "//" not in re.sub(r"\s// .*", "", text)
    plan = json.loads(re.findall(r'id="plan">(.*?)</script>', text)[0])
    assert set(plan) == {"study", "question", "trials"}
    shown = {clip for trial in plan["trials"] for clip in trial["clips"]}
    assert {p.name for p in (home / "clips").iterdir()} == {f"{clip}.mp4" for clip in shown}
    assert shown == set(key.clips)
    assert plan["question"] == "Which looks more real?" and plan["study"] == key.study
    assert len(key.trials) == 3 + 2
    assert not list(tmp_path.glob(".*"))


def test_participants_cannot_identify_the_methods(made, tmp_path):
    key = made(seed=None)
    home = tmp_path / "page"
    text = (home / "index.html").read_text().lower()
    words = (*METHODS, "dance", "street", "talk", "spoiled", "key.json", 'check"', "mkv")
    for word in words:
        assert word not in text, word
    shapes = set()
    for file in (home / "clips").iterdir():
        assert re.fullmatch(r"[0-9a-f]{6}\.mp4", file.name)
        data = file.read_bytes().lower()
        assert not any(word.encode() in data for word in (*METHODS, "dance", "street"))
        seen = probe(file)
        shapes.add((seen.codec, seen.width, seen.height, seen.rate, seen.frames, seen.audio))
    assert shapes == {("h264", W, H, 25, 14, None)}, "all clips are encoded alike"
    assert len({trial.id for trial in key.trials} | set(key.clips)) == 5 + 8, "ids are unique"


def test_ids_are_random_unless_a_seed_is_given(made, tmp_path):
    first = made(seed=None)
    second = made(seed=None, overwrite=True)
    assert first.study != second.study and not set(first.clips) & set(second.clips)
    third, fourth = made(seed=3, overwrite=True), made(seed=3, overwrite=True)
    assert third == fourth


def test_trials_pair_methods_and_checks_pair_a_clip_with_its_spoiled_copy(made):
    key = made(checks=4)
    checks = [trial for trial in key.trials if key.is_check(trial)]
    assert (len(checks), len(key.trials)) == (4, 7)
    for trial in key.trials:
        one, other = (key.clips[clip] for clip in trial.clips)
        assert one.content == other.content
        if trial in checks:
            assert one.method == other.method and one.spoiled != other.spoiled
        else:
            assert {one.method, other.method} == set(METHODS)
    assert {key.clips[t.clips[0]].content for t in key.trials if t not in checks} == {
        "dance", "street", "talk",
    }  # fmt: skip


def test_clips_of_three_methods_are_synchronised(film, tmp_path, read_numbers):
    given = [
        film("a.mkv", frames=24, rate=24), film("b.mkv", frames=36, rate=30),
        film("c.mkv", frames=20, rate=24, size=(W * 2, H * 2)),
    ]  # fmt: skip
    done = study(given, tmp_path / "s", checks=0)
    key = read_key(done.key)
    assert (done.methods, done.pairs, done.checks) == (("a", "b", "c"), 3, 0)
    assert any("b has 30 fps" in note for note in done.notes)
    assert any("cut to the length of c" in note for note in done.notes)
    assert any("c is 256x192" in note for note in done.notes)
    for name, clip in key.clips.items():
        frames = np.stack(list(read_stored(tmp_path / "s" / "clips" / f"{name}.mp4")))
        assert frames.shape == (20, H, W, 3)
        numbers = read_numbers(frames)
        if clip.method == "b":
            assert all(-0.9 <= n / 30 * 24 - i <= 0.9 for i, n in enumerate(numbers))
        else:
            assert numbers == list(range(20))


def test_killed_and_concurrent_processes_leave_no_partial_study(film, tmp_path):
    from v2v.files import workplace

    clips = [film("a.mkv"), film("b.mkv")]
    held = workplace(tmp_path / ".s.partial", NotWritable("", hint=None))
    with held, pytest.raises(NotWritable, match="another process is writing"):
        study(clips, tmp_path / "s", seed=1)
    (tmp_path / ".s.partial" / "study" / "clips").mkdir(parents=True)  # from a killed process
    study(clips, tmp_path / "s", seed=1)
    before = (tmp_path / "s" / "key.json").read_bytes()
    study(clips, tmp_path / "s", seed=1, overwrite=True)
    assert (tmp_path / "s" / "key.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv", "s"]


def test_spoiled_clips_are_obviously_worse(numbered_frames, read_numbers):
    frames = list(numbered_frames(40, width=W, height=H))
    worse = list(spoiled(iter(frames), 5))
    assert len(worse) == 40
    blurred = [cv2.GaussianBlur(f, (0, 0), H / 24) for f in frames]
    order = [int(np.argmin([np.abs(w.astype(int) - b).mean() for b in blurred])) for w in worse]
    assert order != sorted(order)
    assert sorted(o // 12 for o in order) == [o // 12 for o in order], "memory stays small"
    sharp = np.mean([np.abs(np.diff(f.astype(int), axis=1)).max() for f in frames])
    assert np.mean([np.abs(np.diff(w.astype(int), axis=1)).max() for w in worse]) < sharp / 4


def test_synthetic_clips_stay_marked_without_identifying_them(film, tmp_path, monkeypatch):
    from v2v.pipelines.provenance import Provenance

    mark = Provenance(
        tool="v2v", pipeline="test", model="secret", model_sha256="1", trained_on=(), source="x",
        source_sha256="2",
    )  # fmt: skip
    real = ComparedVideo.open

    def marked(path: Path, label: str | None = None) -> ComparedVideo:
        clip = real(path, label)
        return replace(clip, mark=mark) if path.stem == "b" else clip

    monkeypatch.setattr(ComparedVideo, "open", marked)
    done = study([film("a.mkv"), film("b.mkv")], tmp_path / "s", checks=1)
    tags = {read_tags(file)["comment"] for file in (tmp_path / "s" / "clips").iterdir()}
    assert len(tags) == 1
    tag = json.loads(tags.pop())
    assert tag["synthetic"] == "undisclosed" and "some of its videos are synthetic" in tag["note"]
    assert {c.method: c.mark and c.mark.model for c in read_key(done.key).clips.values()} == {
        "a": None, "b": "secret",
    }  # fmt: skip


def test_a_question_cannot_break_the_page(made):
    key = made().model_copy(update={"question": "</script><b>{{ plan }}"})
    text = page(key)
    assert text.count("</script>") == 2 and "<b>" not in text
    plan = json.loads(re.findall(r'id="plan">(.*?)</script>', text)[0])
    assert plan["question"] == key.question


# ---------------------------------------------------------------- counting


def test_the_preferred_method_is_found_on_either_side(made, tmp_path):
    key = made()
    files, lefts = [], Counter[str]()
    for i in range(8):
        given = answers(key, f"p{i}", prefers(key, "newmodel" if i < 6 else "oldmodel"))
        lefts.update(answer["answer"] for answer in given["trials"])
        files.append(save(tmp_path / "answers" / f"{i}.json", given))
    assert min(lefts.values()) > 5, "both sides were chosen"
    result = evaluate_answers(files, tmp_path / "page" / "key.json")
    (pair,) = result.pairs
    assert (pair.methods, pair.wins, pair.n) == (METHODS, (6, 18), 24)
    assert pair.sentence.startswith("newmodel preferred to oldmodel in 75 percent of 24 answers")
    assert {name: found[0].wins for name, found in result.contents.items()} == {
        "dance": (2, 6), "street": (2, 6), "talk": (2, 6),
    }  # fmt: skip
    assert len(result.participants) == 8 and not result.excluded
    assert evaluate_answers([tmp_path / "answers"], tmp_path / "page") == result, (
        "folders are accepted, too"
    )
    found = result.as_json()["pairs"][0]
    assert found["share"] == {"oldmodel": 0.25, "newmodel": 0.75}
    assert found["interval"]["newmodel"] == [round(x, 4) for x in wilson(18, 24)]


def test_preferences_are_counted_per_content(made, tmp_path):
    key = made()

    def choose(left: str, right: str) -> str:
        preferred = "oldmodel" if key.clips[left].content == "talk" else "newmodel"
        return prefers(key, preferred)(left, right)

    file = save(tmp_path / "a.json", answers(key, "p", choose))
    result = evaluate_answers([file], tmp_path / "page")
    wins = {name: found[0].wins for name, found in result.contents.items()}
    assert wins == {"dance": (0, 1), "street": (0, 1), "talk": (1, 0)}


def test_participants_who_fail_a_check_are_excluded(made, tmp_path):
    key = made()
    good = save(tmp_path / "good.json", answers(key, "looks", prefers(key, "newmodel")))

    def careless(left: str, right: str) -> str:
        return right if key.clips[right].spoiled else left

    bad = save(tmp_path / "bad.json", answers(key, "careless", careless))
    result = evaluate_answers([good, bad], tmp_path / "page")
    assert result.participants == ("looks",) and result.pairs[0].wins == (0, 3)
    assert list(result.excluded) == [str(bad)]
    assert re.fullmatch(r"careless failed [12] of 2 attention checks", result.excluded[str(bad)])
    nobody = evaluate_answers([bad], tmp_path / "page")
    assert nobody.pairs[0].n == 0 and nobody.pairs[0].sentence.endswith("no answers")


def test_only_the_first_answers_of_a_participant_count(made, tmp_path):
    key = made()
    late = save(tmp_path / "1.json", answers(key, "p", prefers(key, "oldmodel"), "11:00"))
    early = save(tmp_path / "2.json", answers(key, "p", prefers(key, "newmodel"), "10:30"))
    result = evaluate_answers([late, early], tmp_path / "page")
    assert result.pairs[0].wins == (0, 3)
    assert result.excluded == {str(late): "p took part before; only the first answers count"}


def change(path: Sequence[Any], value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(given: dict[str, Any]) -> None:
        for step in path[:-1]:
            given = given[step]
        given[path[-1]] = value

    return apply


def swap_sides(given: dict[str, Any]) -> None:
    first = given["trials"][0]
    first["left"], first["right"] = first["right"], first["left"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (change(["study"], "other"), "another study"),
        (change(["participant"], "someone"), "what the page showed"),
        (swap_sides, "pair 1 is not what the page showed"),
        (lambda g: g["trials"].reverse(), "what the page showed"),
        (lambda g: g["trials"].pop(), "answers 4 of 5 pairs"),
        (lambda g: g["trials"].append(g["trials"][0]), "answers 6 of 5 pairs"),
        (change(["trials", 0, "trial"], "zzz"), "what the page showed"),
        (change(["trials", 0, "answer"], "both"), "trials.0.answer"),
        (change(["trials", 0, "seconds"], -1), "trials.0.seconds"),
        (change(["kind"], "v2v study key"), "is not an answer file"),
        (change(["more"], 1), "more"),
    ],
)
def test_changed_files_are_refused_with_a_reason(made, tmp_path, changed, words):
    key = made()
    given = answers(key, "p", prefers(key, "newmodel"))
    path = save(tmp_path / "r.json", given)
    assert read_answers(path, key).participant == "p"
    changed(given)
    save(path, given)
    with pytest.raises(UsageError) as caught:
        evaluate_answers([path], tmp_path / "page")
    assert words in caught.value.message and "r.json" in caught.value.message


def test_files_that_are_not_answers_or_a_key_are_refused(made, tmp_path):
    key = made()
    good = save(tmp_path / "r.json", answers(key, "p", prefers(key, "newmodel")))
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for wrong in ("text.json", "bytes.json", "none.json", "page/key.json"):
        with pytest.raises(UsageError):
            evaluate_answers([tmp_path / wrong], tmp_path / "page")
    for wrong in ("text.json", "none.json", "r.json"):
        with pytest.raises(UsageError):
            evaluate_answers([good], tmp_path / wrong)
    with pytest.raises(UsageError, match="no answer files given"):
        evaluate_answers([], tmp_path / "page")
    other = json.loads((tmp_path / "page" / "key.json").read_text())
    other["clips"].popitem()
    save(tmp_path / "key.json", other)
    with pytest.raises(UsageError, match="was changed"):
        evaluate_answers([good], tmp_path / "key.json")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"question": "  "}, "question is empty"),
        ({"checks": -1}, "checks="),
        ({"size": 3}, "size="),
        ({"labels": ["x"]}, "1 labels for 2"),
        ({"labels": ["x", "x"]}, "same name"),
        ({"start": 9.0}, "start="),
    ],
)
def test_invalid_options_are_refused(film, tmp_path, options, words):
    with pytest.raises(UsageError) as caught:
        study([film("a.mkv"), film("b.mkv")], tmp_path / "s", **options)
    assert words in caught.value.message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv"]


def test_unmatched_clips_are_noted_or_refused(film, tmp_path):
    film("one/x.mkv"), film("one/y.mkv"), film("two/x.mkv"), film("three/z.mkv")
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    done = study([one, two], tmp_path / "s", pairs=True, checks=0)
    assert done.pairs == 1 and done.methods == ("one", "two")
    assert done.notes == ("ignored because they are not in every folder: y",)
    with pytest.raises(UsageError, match="shares no clip name"):
        study([one, three], tmp_path / "t", pairs=True)
    with pytest.raises(MediaNotFound, match="no such folder"):
        study([one, tmp_path / "four"], tmp_path / "t", pairs=True)
    with pytest.raises(UsageError, match="at least two methods"):
        study([one / "x.mkv"], tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_only_a_study_is_replaced_and_only_with_overwrite(film, tmp_path):
    clips = [film("a.mkv"), film("b.mkv")]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(UsageError, match="contains other files"):
        study(clips, tmp_path / "mine", overwrite=True)
    with pytest.raises(NotWritable, match="is a file"):
        study(clips, clips[0])
    with pytest.raises(NotWritable, match="a file is in its place"):
        study(clips, clips[0] / "s")
    (tmp_path / "s").mkdir()
    first = study(clips, tmp_path / "s", checks=0).key.read_text()
    with pytest.raises(UsageError, match="already contains a study"):
        study(clips, tmp_path / "s")
    assert (tmp_path / "s" / "key.json").read_text() == first
    assert study(clips, tmp_path / "s", checks=0, overwrite=True).key.read_text() != first


def test_a_full_disk_leaves_the_existing_study(film, tmp_path, monkeypatch):
    clips = [film("a.mkv"), film("b.mkv")]
    study(clips, tmp_path / "s", checks=0)
    before = (tmp_path / "s" / "key.json").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise DiskFull("the disk is full")

    monkeypatch.setattr("v2v.evaluation.study.clips.write_video", full)
    for home in ("s", "new"):
        with pytest.raises(DiskFull):
            study(clips, tmp_path / home, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv", "s"]
    assert (tmp_path / "s" / "key.json").read_bytes() == before


# ---------------------------------------------------------------- the page's own logic

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def node(code: str) -> str:
    assert NODE is not None
    done = subprocess.run([NODE, "-"], input=code, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_node
def test_the_page_deals_like_python():
    people = [*(f"p{i}" for i in range(60)), "A-b_9", "x" * 40]
    script = read_template_file("v2v.evaluation.study", "deal.js")
    for count in (1, 2, 7):
        given = trials(count)
        code = f"""{script}
        const trials = {json.dumps([t.model_dump() for t in given])};
        const dealt = {json.dumps(people)}.map((p) => deal("f00d", p, trials));
        console.log(JSON.stringify(dealt.map((d) => d.map((x) => [x.trial, x.left, x.right]))));
        """
        dealt = [[tuple(x) for x in one] for one in json.loads(node(code))]
        assert dealt == [deal("f00d", person, given) for person in people]


# A minimal browser for the page: elements, and videos that play on command.
BROWSER = """
const elements = {}, documentListeners = {};
let ticks = [], file = null, clock = 0;
class Element {
  constructor() { this.listeners = {}; this.hidden = false; this.disabled = false; }
  addEventListener(name, f) { this.listeners[name] = f; }
  fire(name, event = {}) { this.listeners[name]({preventDefault() {}, ...event}); }
}
class Video extends Element {
  constructor() { super(); this.clear(); }
  clear() {
    this.paused = true; this.seeking = false; this.currentTime = 0; this.duration = NaN;
    this.readyState = 0; this.spans = [];
  }
  set src(value) { this.clear(); this.source = value; }
  load() { this.duration = 2; this.readyState = 4; }
  get ended() { return this.currentTime >= this.duration; }
  get played() {
    const at = (end) => (i) => this.spans[i][end];
    return {length: this.spans.length, start: at(0), end: at(1)};
  }
  play() { this.paused = false; return Promise.resolve(); }
  pause() { this.paused = true; }
  run(seconds) {
    if (this.paused || this.ended) return;
    const to = Math.min(this.currentTime + seconds, this.duration);
    this.spans.push([this.currentTime, to]);
    this.currentTime = to;
    if (this.ended) this.paused = true;
  }
}
for (const id of ["left-video", "right-video"]) elements[id] = new Video();
const globals = {
  document: {
    getElementById: (id) => elements[id] ??= new Element(),
    addEventListener: (name, f) => { documentListeners[name] = f; },
  },
  window: {addEventListener() {}},
  setInterval: (f) => { ticks.push(f); },
  performance: {now: () => clock},
  URL: {createObjectURL: (blob) => { file = blob; return "blob"; }},
  Blob: class { constructor(parts) { this.text = parts.join(""); } },
};
Object.defineProperties(globalThis, Object.fromEntries(
  Object.entries(globals).map(([k, value]) => [k, {value, configurable: true}])));
const [left, right] = [elements["left-video"], elements["right-video"]];
function wait(seconds) {
  for (let i = 0; i < seconds * 25; i++) {
    clock += 40; left.run(0.04); right.run(0.04); ticks.forEach((f) => f());
  }
}
function press(key) {
  documentListeners.keydown({key, target: {tagName: "BODY"}, preventDefault() {}});
}
function expect(what, message) { if (!what) throw new Error(message); }
"""
VISIT = """
part("code").value = "visitor_1";
part("begin").fire("submit");
expect(part("welcome").hidden && !part("trial").hidden, "the first pair must be shown");
for (let n = 0; n < COUNT; n++) {
  expect(part("place").textContent === (n + 1) + " of " + COUNT, "progress");
  press("ArrowLeft");
  expect(part("left").disabled, "answers must be disabled before playback");
  left.load();
  wait(1);
  expect(left.paused && left.currentTime === 0, "one video must wait for the other");
  right.load();
  wait(0.5);
  expect(!left.paused && !right.paused, "both videos must play");
  part("play").fire("click"); const at = left.currentTime; wait(0.5);
  expect(left.currentTime === at && right.currentTime === at, "both videos must pause");
  press(" ");
  part("seek").value = 0.95; part("seek").fire("input"); wait(0.5);
  press("ArrowLeft");
  expect(part("place").textContent === (n + 1) + " of " + COUNT, "seeking must not count");
  right.currentTime = 0.3; left.currentTime = 0.8; wait(0.1);
  expect(Math.abs(left.currentTime - right.currentTime) < 0.08, "the videos must be synchronised");
  wait(5);
  expect(left.currentTime < 2 && right.currentTime < 2, "the videos must restart");
  expect(!part("left").disabled && !part("right").disabled, "answers must be enabled");
  if (n % 3 === 0) press("ArrowLeft");
  else if (n % 3 === 1) press("ArrowRight");
  else part("right").fire("click");
}
expect(!part("thanks").hidden && part("trial").hidden, "the last section must be shown");
console.log(JSON.stringify({name: part("download").download, text: file.text}));
"""


@needs_node
def test_a_complete_visit_of_the_page(made, tmp_path):
    key = made()
    text = (tmp_path / "page" / "index.html").read_text()
    plan, script = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    for name in re.findall(r'part\("([a-z-]+)"\)', script):
        assert f'id="{name}"' in text, f"the page has no {name}"
    code = (
        f"{BROWSER}\nelements.plan = {{textContent: {json.dumps(plan)}}};\n"
        f"const COUNT = {len(key.trials)};\n{script}\n{VISIT}"
    )
    found = json.loads(node(code))
    assert found["name"] == "answers-visitor_1.json"
    path = tmp_path / found["name"]
    path.write_text(found["text"])
    given = read_answers(path, key)
    sides = [answer.answer for answer in given.trials]
    assert sides == ["left", "right", "right", "left", "right"]
    assert all(7.5 < answer.seconds < 7.7 for answer in given.trials)
    assert evaluate_answers([path], tmp_path / "page").study == key.study


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
    standalone.command(help=comparing.EXAMPLES_STUDY)(comparing.study)
    return lambda *arguments: CliRunner().invoke(standalone, [str(a) for a in arguments])


def test_the_command_creates_and_evaluates_a_study(app, film, tmp_path):
    for method in METHODS:
        for name in ("x", "y"):
            film(f"{method}/{name}.mkv")
    done = app("--pairs", *METHODS, "-o", "s", "--question", "Which is sharper?")
    assert done.exit_code == 0, done.output
    assert "s/index.html: 2 pairs and 2 attention checks; keep s/key.json" in done.stdout
    key = read_key(tmp_path / "s" / "key.json")
    assert key.question == "Which is sharper?"
    for i in range(3):
        save(tmp_path / "r" / f"{i}.json", answers(key, f"p{i}", prefers(key, "oldmodel")))
    careless = answers(key, "p9", lambda a, b: b if key.clips[b].spoiled else a)
    save(tmp_path / "r" / "9.json", careless)
    counted = app("--results", *sorted((tmp_path / "r").iterdir()), "--key", "s/key.json")
    assert counted.exit_code == 0, counted.output
    for part in ("p9 failed", "3 participants: Which is sharper?", "oldmodel preferred to newmodel"
                 " in 100 percent of 6 answers, 95 percent interval 61 to 100"):  # fmt: skip
        assert part in counted.stdout
    written = json.loads((tmp_path / "s" / "results.json").read_text())
    assert written["pairs"][0]["wins"] == {"oldmodel": 6, "newmodel": 0}
    again = app("--results", "r", "--key", "s", "--json")
    assert json.loads(again.stdout)["pairs"] == written["pairs"], "earlier results are replaced"
    (tmp_path / "other.txt").write_text("mine")
    refused = app("--results", "r", "--key", "s", "-o", "other.txt")
    assert isinstance(refused.exception, UsageError)
    assert isinstance(app("--results", "r").exception, UsageError)
    assert isinstance(app("a.mkv", "b.mkv", "--key", "s").exception, UsageError)
