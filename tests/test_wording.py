"""Messages speak of options to the command line and of arguments to callers in Python."""

from __future__ import annotations

import pickle
import threading
import traceback

import pytest

from v2v.errors import UnknownName, UsageError
from v2v.progress import Silent
from v2v.wording import command_line, for_python

CASES = {
    # arguments, with and without a value
    "--fps 24 is out of range": "fps=24 is out of range",
    "--fps is only for a folder of maps": "fps= is only for a folder of maps",
    "--size 512x768 is invalid": "size=(512, 768) is invalid",
    "--crop person: no person in 5 frames": 'crop="person": no person in 5 frames',
    "use --camera-path still; or not": 'use camera="still"; or not',
    "give them with --labels DIR": "give them with labels=DIR",
    "--style car=9: there is no such": 'style="car=9": there is no such',
    "unknown --crop 'head'": "unknown crop='head'",
    '--name "../x" cannot name a folder': 'name="../x" cannot name a folder',
    "give a folder, such as -o study": 'give a folder, such as output="study"',
    "extract both: --signal flow,camera": 'extract both: signals=["flow", "camera"]',
    "for example --replace 'sky=road'; x": 'for example replace={"sky": "road"}; x',
    "--start and --end are seconds, --end after --start":
        "start= and end= are seconds, end= after start=",
    "choose another --output, or --name": "choose another output=, or name=",
    # flags
    "replace it with --overwrite": "replace it with overwrite=True",
    "replace it with --overwrite, or not": "replace it with overwrite=True, or not",
    # settings
    "use -s pose.max_gap=0.5": 'use settings={"pose.max_gap": 0.5}',
    "with -s a.b=c.": 'with settings={"a.b": "c"}.',
    "use -s a.b=3 -s a.c=[1,2]": 'use settings={"a.b": 3, "a.c": [1, 2]}',
    "(-s a.b=true), -s a.c=null": '(settings={"a.b": True}), settings={"a.c": None}',
    "-s optimiser.rate=1e-4, or": 'settings={"optimiser.rate": 1e-4}, or',
    "-s s.classes=[sky,road,...], or": 'settings={"s.classes": ["sky", "road", ...]}, or',
    # commands stay
    "add it with: v2v preprocess data/a --signal pose": None,
    "run `v2v preprocess a --overwrite` on it": None,
    "train one: v2v train --task predict --data CLIP -s a.b=c": None,
    "download it: curl -L --create-dirs -o a b": None,
    "choose a range with --start; v2v doctor shows it": "choose a range with start=; v2v doctor"
        " shows it",
    "v2v preprocess a --signal x, or use --overwrite": "v2v preprocess a --signal x, or use"
        " overwrite=True",
    "curl -o a b   or do without: -s a.b=c": 'curl -o a b   or do without: settings={"a.b": "c"}',
    # no options
    "data/my-clip--2.mp4 is a well-known file - or not": None,
    "frames 3--5": None,
}  # fmt: skip


@pytest.mark.parametrize(("written", "expected"), CASES.items())
def test_messages_in_python(written, expected):
    assert for_python(written) == (written if expected is None else expected)


def test_errors_follow_the_caller():
    def make():
        return UsageError("--fps 24 is too low", hint="rebuild it with --overwrite")

    with command_line():
        option = make()
        assert UnknownName.among("--crop", "x", ["none"]).message == "unknown --crop 'x'"
    argument = make()
    assert (option.message, option.hint) == ("--fps 24 is too low", "rebuild it with --overwrite")
    assert (str(argument), argument.hint) == ("fps=24 is too low", "rebuild it with overwrite=True")
    assert str(option) == option.message
    # A traceback shows the hint.
    shown = "".join(traceback.format_exception(argument))
    assert "fps=24 is too low\ntry: rebuild it with overwrite=True" in shown


def test_an_error_of_a_worker_process_follows_the_process_that_receives_it():
    sent = pickle.dumps(UsageError("--fps 24 is too low", hint="use --overwrite"))
    with command_line():
        assert pickle.loads(sent).hint == "use --overwrite"
    assert pickle.loads(sent).hint == "use overwrite=True"


def test_threads_of_a_command_speak_of_options():
    found = []
    with command_line():
        thread = threading.Thread(target=lambda: found.append(UsageError("--fps is wrong")))
        thread.start()
        thread.join()
    assert found[0].message == "--fps is wrong"


def test_notes_follow_the_caller(caplog):
    caplog.set_level("INFO", "v2v")
    Silent().note("disable it: -s a.b=off")
    assert caplog.messages == ['disable it: settings={"a.b": "off"}']
