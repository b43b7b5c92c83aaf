"""The front door: what `import v2v` offers, without the command line."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import v2v
from v2v.data.store import ClipStore
from v2v.errors import ConfigError, MediaNotFound, NothingFound, UnknownName, UsageError
from v2v.progress import Silent, Terminal, is_watched, reporting, with_progress


@pytest.fixture
def clip(make_video, tmp_path, monkeypatch):
    """A video of 12 numbered frames of 64x48, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return make_video("a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p")


def test_all_public_names_are_offered_and_documented():
    for name in v2v.__all__:
        value = getattr(v2v, name)
        assert name in dir(v2v)
        assert name == "__version__" or value.__doc__, f"{name} has no docstring"
    assert v2v.errors.V2VError is v2v.V2VError and v2v.progress.Silent is Silent
    text = pydoc.plain(pydoc.render_doc(v2v))
    assert "build_store(" in text and "class MotionTransfer" in text
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        v2v.trian  # noqa: B018


def test_each_function_shows_an_example_and_its_errors():
    for name in ("build_store", "build_stores", "train", "train_predictor", "evaluate"):
        assert ">>> " in getattr(v2v, name).__doc__
        assert "Raises" in getattr(v2v, name).__doc__


def test_the_import_is_quick():
    code = "import time; t = time.perf_counter(); import v2v; print(time.perf_counter() - t)"
    seconds = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    )
    assert seconds < 0.3


# ---------------------------------------------------------------- stores


def test_a_store_is_built_and_reused(clip):
    store = v2v.build_store(clip, signals="flow", size=32, settings={"preview.enabled": False})
    assert isinstance(store, ClipStore) and store.folder == Path("data/a")
    assert (len(store), store.signals) == (12, ("flow",))
    assert store.record.frames.height == 32
    assert not (store.folder / "preview.mp4").exists()
    made = (store.folder / "flow.mkv").stat().st_mtime_ns
    again = v2v.build_store(str(clip), signals=["flow"], size=32)
    assert (again.folder / "flow.mkv").stat().st_mtime_ns == made
    assert v2v.build_store(store, signals="flow").folder == store.folder


def test_size_and_range(clip):
    store = v2v.build_store(clip, signals="flow", output="b", size=(64, 32), start=0.08, end="0.4")
    frames = store.record.frames
    assert (frames.width, frames.height, frames.count) == (64, 32, 8)


def test_several_clips_give_several_stores(clip, make_video):
    make_video("b.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    stores = v2v.build_stores(["*.mp4"], signals="flow", output="all")
    assert [store.folder for store in stores] == [Path("all/a"), Path("all/b")]
    with pytest.raises(UsageError, match="contains 2 clips"):
        v2v.build_store(clip.parent, signals="flow")


def test_a_failed_signal_raises_after_the_others_are_saved(clip):
    with pytest.raises(NothingFound):
        v2v.build_store(clip, signals="pose,flow")
    assert v2v.open_store("data/a").signals == ("flow",)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"signals": "posee"}, UnknownName),
        ({"crop": "head"}, UnknownName),
        ({"settings": {"pose.maxgap": 1}}, ConfigError),
        ({"settings": {"pose.max_gap": "wide"}}, ConfigError),
        ({"size": 7}, UsageError),
        ({"fps": "fast"}, ConfigError),
        ({"labels": "labels"}, ConfigError),
    ],
)
def test_wrong_arguments_are_refused(clip, options, kind):
    with pytest.raises(kind):
        v2v.build_store(clip, **({"signals": "flow"} | options))
    assert not list(Path().glob("data/*"))


def test_missing_footage():
    with pytest.raises(MediaNotFound):
        v2v.build_store("none.mp4")


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "dance"}, "unknown task"),
        ({"steps": 1, "minutes": 1}, "both given"),
        ({"name": "a", "output": "b"}, "both given"),
        ({"name": "../a"}, "cannot name a folder"),
        ({"settings": {"generator.presett": "base"}}, "generator.presett"),
    ],
)
def test_wrong_settings_of_a_training_are_refused(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        v2v.train("data/a", **options)
    assert not list(tmp_path.iterdir())


def test_settings_by_key_win_over_defaults():
    from v2v.api import train_settings

    changed = train_settings(
        "face", minutes=5,
        settings={"generator.scales": 2, "schedule.lengths": [1, 2], "loop.precision": "32",
                  "losses.discriminators": {"face": 0.25}},
    )  # fmt: skip
    assert changed.task == "face" and changed.data.signals == ("face",)
    assert changed.generator.scales == 2 and changed.schedule.lengths == (1, 2)
    discriminators = changed.losses.discriminators
    assert (discriminators.image, discriminators.face) == (1.0, 0.25)
    assert train_settings("pose", settings={"generator.scales": None}).generator.scales is None


# ---------------------------------------------------------------- progress


def test_without_a_terminal_nothing_is_printed(clip, capfd):
    v2v.build_store(clip, signals="flow")
    assert capfd.readouterr() == ("", "")


def test_a_terminal_or_a_notebook_shows_bars(monkeypatch):
    assert not is_watched()
    for place in ("rich.console.Console.is_terminal", "rich.console._is_jupyter"):
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda: True)
            assert is_watched()
    with reporting() as report:
        assert isinstance(report, Silent)
    monkeypatch.setattr("v2v.progress.is_watched", lambda: True)
    with reporting() as report:
        assert isinstance(report, Terminal)


def test_a_given_report_receives_the_stages(clip):
    class Stages(Silent):
        def start(self, stage: str, total: int, done: int = 0) -> None:
            stages.append(stage)

    stages: list[str] = []
    v2v.build_store(clip, signals="flow", report=Stages())
    assert "flow" in stages


def test_a_call_inside_another_uses_its_report():
    @with_progress
    def inner(*, report=None):
        return report

    @with_progress
    def outer(*, report=None):
        return report, inner()

    own = Silent()
    assert outer(report=own) == (own, own)
    first, second = outer()
    assert first is second and inner() is not first
