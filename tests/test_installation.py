"""Each check reports what is installed; a missing part gives a finding, not a traceback."""

from __future__ import annotations

import builtins
import collections
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from v2v import installation
from v2v.installation import Check, check_installation, render
from v2v.wording import command_line


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def make_missing(monkeypatch: pytest.MonkeyPatch, module: str, message: str) -> None:
    """Make `import module` fail with `message`, as a missing system library does."""
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == module:
            raise ImportError(message)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.fixture(scope="module")
def here() -> dict[str, Check]:
    return by_name(check_installation())


def test_this_installation_can_preprocess(here):
    failed = [check for check in here.values() if check.state == "fail" and check.name != "disk"]
    assert not failed
    assert {"python", "torch", "opencv", "mediapipe", "codecs", "decord", "ffmpeg"} <= set(here)
    assert here["mediapipe"].found.startswith("0.10.21")
    assert "decodes what v2v writes" in here["decord"].found


def test_every_finding_that_is_not_ok_has_advice(here):
    assert all(check.advice for check in here.values() if check.state != "ok")


def test_importing_the_module_loads_nothing_heavy():
    heavy = "{'torch', 'cv2', 'mediapipe', 'av', 'decord', 'numpy', 'v2v.preprocess'}"
    code = f"import sys, v2v.installation; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_missing_libgl_names_its_package(monkeypatch):
    make_missing(monkeypatch, "cv2", "libGL.so.1: cannot open shared object file: No such file")
    check = installation._run_check("opencv", installation._opencv)
    assert isinstance(check, Check) and check.state == "fail"
    assert "libGL.so.1" in check.found
    assert check.advice is not None and "sudo apt install libgl1" in check.advice


@pytest.mark.parametrize(
    ("module", "name", "package"),
    [
        ("torch", "torch", "torch"),
        ("av", "codecs", "av"),
        ("decord", "decord", "decord2"),
        ("mediapipe", "mediapipe", "mediapipe==0.10.21"),
    ],
)
def test_a_missing_library_fails_only_its_check_and_names_its_package(
    monkeypatch, module, name, package
):
    make_missing(monkeypatch, module, f"No module named {module!r}")
    check = installation._run_check(name, getattr(installation, f"_{name}"))
    assert isinstance(check, Check) and check.state == "fail"
    assert check.advice is not None and check.advice.endswith(package)


def test_ffmpeg_is_optional(monkeypatch):
    make_missing(monkeypatch, "imageio_ffmpeg", "No module named 'imageio_ffmpeg'")
    check = installation._ffmpeg()
    assert check.state == "warn" and check.advice is not None and "v2v[metrics]" in check.advice


def test_two_builds_of_opencv_give_a_warning(monkeypatch):
    both = ("opencv-python", "opencv-contrib-python")
    monkeypatch.setattr(installation, "_version", lambda name: "4.11" if name in both else None)
    check = installation._opencv()
    assert check.state == "warn" and all(name in check.found for name in both)
    assert check.advice is not None and "pip uninstall" in check.advice


def test_a_wheel_without_its_models_fails(monkeypatch):
    monkeypatch.setattr(installation, "MODELS", ("pose_landmark/none.tflite",))
    check = installation._mediapipe()
    assert check.state == "fail" and "none.tflite" in check.found


def test_missing_codecs_are_named(monkeypatch):
    has = installation._has_codec
    monkeypatch.setattr(installation, "_has_codec", lambda n, m: n != "libx264" and has(n, m))
    assert installation._codecs().state == "fail"
    assert "libx264 encoder" in installation._codecs().found
    monkeypatch.setattr(installation, "_has_codec", lambda n, m: n != "av1" and has(n, m))
    assert installation._codecs().state == "warn" and "av1" in installation._codecs().found


def test_an_unknown_codec_is_reported_as_missing():
    assert installation._has_codec("h264", "r")
    assert not installation._has_codec("nonesuch", "r")


def test_missing_weights_name_their_path_and_an_alternative(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with command_line():
        checks = by_name(installation._weights())
    assert set(checks) == {
        f"weights: {n}" for n in ("raft-large", "raft-small", "deeplab", "lraspp", "vgg19")
    }
    for check in checks.values():
        assert check.state == "warn" and str(tmp_path) in check.found
        assert check.advice is not None and "-s " in check.advice


@pytest.mark.parametrize(("free", "state"), [(200e9, "ok"), (5e9, "warn"), (0.1e9, "fail")])
def test_a_full_disk_is_reported(monkeypatch, free, state):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda _: usage(1e12, 0, free))
    assert installation._disk().state == state


def test_a_folder_that_is_not_writable_is_reported(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert installation._folder().state == "ok"
    assert not list(Path(tmp_path).iterdir()), "the check leaves a file behind"

    def refuse(**_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(installation.tempfile, "TemporaryFile", refuse)  # root can write anywhere
    assert installation._folder().state == "fail"


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10, 9), "fail"), ((3, 12, 1), "ok"), ((3, 13, 0), "fail")]
)
def test_the_python_version_is_checked(monkeypatch, version, state):
    monkeypatch.setattr(installation.sys, "version_info", version)
    assert installation._python().state == state


def test_checks_print(here):
    out = io.StringIO()
    render(list(here.values()), Console(file=out, width=100))
    assert all(name in out.getvalue() for name in here)
