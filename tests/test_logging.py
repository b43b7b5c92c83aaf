"""The logger "v2v": stages, notes, warnings and failures, without a handler of the library."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import v2v
from v2v.errors import MediaNotFound
from v2v.progress import Logged, Silent, reporting


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "v2v")
    return caplog


def test_a_stage_is_logged_with_count_and_seconds(log):
    report = Silent()
    report.start("pose", 10, 4)
    for _ in range(6):
        report.advance("pose")
    report.finish("pose")
    first, last = log.records
    assert first.getMessage() == "pose: started, 4 of 10 done"
    assert last.getMessage().startswith("pose: finished, 10 of 10 in 0.0 s")
    assert (last.stage, last.count, last.total) == ("pose", 10, 10) and last.seconds >= 0
    assert {record.levelname for record in log.records} == {"INFO"}


def test_any_reporter_of_a_caller_is_logged(log):
    class Own:
        def __init__(self):
            self.calls = []

        def __getattr__(self, name):
            return lambda *values: self.calls.append((name, *values))

    own = Own()
    with reporting(own) as report:
        assert isinstance(report, Logged)
        report.start("a", 1)
        report.advance("a")
        report.describe("a", "text")
        report.finish("a")
        report.note("look")
    assert own.calls == [
        ("start", "a", 1, 0), ("advance", "a", 1), ("describe", "a", "text"), ("finish", "a"),
        ("note", "look"),
    ]  # fmt: skip
    assert log.messages[-1] == "look" and len(log.messages) == 3


def test_a_build_logs_stages_and_warnings(log, make_video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    v2v.build_store(make_video("a.mp4", "-c:v", "libx264"), signals="flow")
    assert any(message.startswith("flow: finished, 12 of 12 in ") for message in log.messages)
    warnings = [r.getMessage() for r in log.records if r.levelno == logging.WARNING]
    assert any("too few to train" in warning for warning in warnings)


def test_a_failure_is_logged_once(log):
    with pytest.raises(MediaNotFound):
        v2v.build_store("none.mp4")
    failures = [record for record in log.records if record.levelno == logging.ERROR]
    assert len(failures) == 1 and "MediaNotFound: no such file: none.mp4" in log.messages[-1]


def test_nothing_is_printed_unless_the_application_asks():
    code = (
        "import logging, v2v.progress; r = v2v.progress.Silent(); r.note('quiet');"
        "v2v.progress.logger.warning('quiet');"
        "logging.basicConfig(level='INFO'); r.note('loud')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "INFO:v2v:loud\n" and done.stdout == ""
