"""The wheel installs a single package and works with foreign packages of any name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOREIGN = (
    "configs",
    "pipelines",
    "preprocess",
    "samples",
)  # names that other projects install, too


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools includes the files of an existing `build/` folder."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("v2v", *FOREIGN):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "copy")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(folder), str(folder / "copy")], check=True, timeout=300)
    (found,) = folder.glob("v2v-*.whl")
    return found


@pytest.mark.slow
def test_everything_is_in_one_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"v2v"}
    for folder in ("v2v", *FOREIGN):
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).glob("*.yaml")]:
            name = path.relative_to(ROOT).as_posix()
            assert (name if folder == "v2v" else f"v2v/{name}") in names


@pytest.mark.slow
def test_a_checkout_that_is_not_installed_is_complete(wheel: Path) -> None:
    """All modules come from the checkout, even if another version is installed."""
    copy = wheel.parent / "copy"
    code = (
        "import v2v.preprocess, v2v.configs; print(v2v.preprocess.__file__, v2v.configs.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(path.startswith(str(copy)) for path in done.stdout.split())


@pytest.mark.slow
def test_it_renders_with_foreign_packages_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(site)]
    subprocess.run([*command, str(wheel)], check=True, timeout=300)
    for name in FOREIGN:
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise SystemExit('a foreign package')")
    environment = os.environ | {"PYTHONPATH": str(site)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True,
            text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import v2v.preprocess as p; print(p.__file__)").startswith(str(site))
    run("-m", "v2v", "demo", "--seconds", "2", "--minutes", "0.1", "--output", "demo")
    assert "synthetic" in run("-m", "v2v", "info", "demo/demo.mp4")
