"""Signals are loaded by name, built-in ones and those of installed packages."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import iter_modules
from textwrap import dedent
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from numpy.typing import NDArray

import v2v.signals
from v2v.errors import StoreDamaged, UnknownName
from v2v.preprocess.extractor import load_extractor
from v2v.signals import Signal, find, load_signal, signal_names
from v2v.signals.arrays import check_arrays, read_arrays
from v2v.signals.registry import SHARED
from v2v.signals.segmentation import CITYSCAPES
from v2v.signals.traits import CameraSignal, FlowSignal, LabelSignal, PointSignal, ReferenceSignal

BUILT_IN = ("pose", "face", "segmentation", "flow", "camera")


def test_all_built_in_signals_load() -> None:
    assert signal_names()[: len(BUILT_IN)] == BUILT_IN
    for name in BUILT_IN:
        signal = load_signal(name)
        assert isinstance(signal, Signal) and signal.name == name
        assert load_extractor(name).signal == name


def test_every_module_defines_a_signal_or_is_shared() -> None:
    modules = {m.name for m in iter_modules(v2v.signals.__path__) if not m.name.startswith("_")}
    assert modules == set(BUILT_IN) | SHARED


def test_signals_are_found_by_trait() -> None:
    expected: dict[type[Signal], str] = {
        PointSignal: "pose", ReferenceSignal: "pose", LabelSignal: "segmentation",
        FlowSignal: "flow", CameraSignal: "camera",
    }  # fmt: skip
    for trait, name in expected.items():
        found = find(trait, ("not installed", *BUILT_IN))
        assert found is not None and found.name == name
    first = find(ReferenceSignal, ("segmentation", "face", "pose"))
    assert first is not None and (first.name, first.warped_by) == ("face", "dense")
    assert find(LabelSignal, ("pose", "flow")) is None


@pytest.mark.parametrize("cityscapes", [True, False])
def test_the_foreground_is_what_moves_or_the_person(cityscapes: bool) -> None:
    classes = list(CITYSCAPES) if cityscapes else ["background", "person", "car"]
    labels = find(LabelSignal, BUILT_IN)
    assert labels is not None
    table = labels.foreground({"classes": classes})
    names = {classes[i] for i in np.flatnonzero(table)}
    assert ("car" in names) == cityscapes and "person" in names and table.shape == (256,)
    assert labels.person({"classes": classes}) == classes.index("person")
    assert labels.person({"classes": ["road"]}) is None


@pytest.mark.parametrize("load", [load_signal, load_extractor])
@pytest.mark.parametrize(
    ("name", "near"), [("poes", "pose"), ("_base", None), ("traits", None), ("v2v", None)]
)
def test_the_error_for_an_unknown_signal_lists_the_valid_names(
    load: object, name: str, near: str | None
) -> None:
    with pytest.raises(UnknownName, match=f"unknown signal '{name}'") as caught:
        load(name)  # type: ignore[operator]
    hint = caught.value.hint or ""
    assert all(valid in hint for valid in (*BUILT_IN, "all"))
    assert (f"did you mean '{near}'?" in hint) == (near is not None)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"text"])
def test_errors_name_unreadable_arrays(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "pose.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreDamaged, match=r"pose\.npz"):
        read_arrays(path, ("points",), 0, 1)


def test_missing_or_pickled_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pose.npz"
    np.savez(path, other=np.zeros(3), pickled=np.array([{"a": 1}], object))
    for name in ("points", "pickled"):
        with pytest.raises(StoreDamaged, match=r"pose\.npz"):
            read_arrays(path, (name,), 0, 3)
    assert read_arrays(path, ("other",), 0, 3)["other"].shape == (3,)


LAYOUT = {"points": ("float32", (75, 3)), "filled": ("bool", (75,))}
ARRAYS: dict[str, Callable[[NDArray[Any]], dict[str, Any]]] = {
    "shorter": lambda points: {"points": points[:5]},
    "longer": lambda points: {"points": np.concatenate([points, points])},
    "flat": lambda points: {"points": points.reshape(-1)},
    "fewer points": lambda points: {"points": points[:, :74]},
    "double precision": lambda points: {"points": points.astype(np.float64)},
    "text": lambda points: {"points": points.astype("U5")},
    "scalar": lambda points: {"points": np.float32(1)},
    "infinite": lambda points: {"points": np.full_like(points, np.inf)},
    "scores beyond 1": lambda points: {"points": points + 1},
    "scores below 0": lambda points: {"points": points - 1},
    "objects": lambda points: {"points": np.full(10, None, object)},
    "other names": lambda points: {"others": points},
}


def points() -> NDArray[Any]:
    made = np.random.default_rng(0).random((10, 75, 3), np.float32)
    made[3] = np.nan  # no person detected
    return made


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_of_another_layout_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "pose.npz"
    np.savez(path, filled=np.zeros((10, 75), np.bool_), **ARRAYS[case](points()))
    with pytest.raises(StoreDamaged, match=r"pose\.npz"):
        check_arrays(path, LAYOUT, 10)
        read_arrays(path, LAYOUT, 2, 8)


def test_missing_points_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pose.npz"
    np.savez(path, points=points(), filled=np.zeros((10, 75), np.bool_))
    check_arrays(path, LAYOUT, 10)
    assert np.array_equal(read_arrays(path, LAYOUT, 2, 5)["points"], points()[2:5], equal_nan=True)


def test_a_header_that_claims_terabytes_allocates_nothing(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 75, 3), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    with ZipFile(tmp_path / "pose.npz", "w") as archive:
        for name in LAYOUT:
            archive.writestr(
                f"{name}.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header
            )
    for read in (
        lambda: check_arrays(tmp_path / "pose.npz", LAYOUT, 999999999),
        lambda: read_arrays(tmp_path / "pose.npz", LAYOUT, 0, 3),
    ):
        with pytest.raises(StoreDamaged, match=r"pose\.npz"):
            read()


# ---------------------------------------------------------------- an installed package

SIGNAL = '''
"""Mean brightness of each frame."""
from dataclasses import dataclass, replace
import numpy as np
import torch
from v2v.signals import Signal, Track
from v2v.signals.arrays import check_arrays, read_arrays

@dataclass(frozen=True)
class LightTrack(Track):
    light: np.ndarray
    width: int
    height: int
    def __len__(self): return len(self.light)
    def __getitem__(self, index): return replace(self, light=self.light[index])
    def scaled(self, width, height): return replace(self, width=width, height=height)
    def cropped(self, x, y, width, height): return self.scaled(width, height)
    def flipped(self): return self
    def draw(self, height=None, width=None):
        shape = (len(self), height or self.height, width or self.width, 3)
        return np.broadcast_to(self.light[:, None, None, None], shape).astype(np.uint8)
    def tensor(self, height=None, width=None):
        return torch.from_numpy(self.draw(height, width)[..., 0].copy())[:, None] / 127.5 - 1

class Light(Signal):
    name = "light"
    files = ("light.npz",)
    def read(self, folder, spec, start, stop, *, width, height):
        light = read_arrays(folder / "light.npz", ("light",), start, stop)["light"]
        return LightTrack(light, width, height)
    def channels(self, spec): return 1

SIGNAL = Light()
'''

EXTRACTOR = """
from v2v.preprocess.extractor import ArrayExtractor, Finished, write_arrays

class Extractor(ArrayExtractor):
    signal = "light"
    backend = "numpy"
    version = "1"
    def step(self, index, frame, previous, cut):
        return {"light": frame.mean() * self.settings.of("light")["gain"]}
    def finish(self, parts, folder, shots):
        write_arrays(folder / "light.npz", self.load_parts(parts))
        return Finished(("light.npz",), {"shape": "light [T]"}, 1.0)
"""

USE = """
import sys
from fractions import Fraction
from collections.abc import Callable
from pathlib import Path
import numpy as np
from v2v.preprocess.build import preprocess
from v2v.config import PreprocessSettings, load_config
from v2v.data.store import ClipStore
from v2v.video.write import VideoWriter
from v2v.signals import signal_names

assert signal_names() == ("pose", "face", "segmentation", "flow", "camera", "light"), signal_names()
folder = Path(sys.argv[1])
with VideoWriter(folder / "dark.mp4", width=64, height=48, rate=Fraction(25)) as video:
    for t in range(5):
        video.write(np.full((48, 64, 3), 40 + 20 * t, np.uint8))
settings = load_config(PreprocessSettings, "preprocess", overrides=["plugins.light.gain=2"])
outcome = preprocess(folder / "dark.mp4", ["light", "flow"], settings, output=folder / "dark")
assert sorted(outcome.made) == ["flow", "light"] and not outcome.failed, outcome
store = ClipStore.open(folder / "dark")
light = store.track("light")
print(*light.light.round(1))
assert np.abs(light.light - 2 * (40 + 20 * np.arange(5))).max() < 6
assert store.record.signals["light"].settings == {"gain": 2}
window = store.window(1, 3, size=32)
assert window.signals["light"].shape == (3, 1, 32, 32)
assert abs(float(window.signals["light"][0].mean()) - (120 / 127.5 - 1)) < 0.05
assert (folder / "dark" / "preview.mp4").stat().st_size > 0
assert preprocess(folder / "dark", ["light"], settings).kept == ["light"]
"""


def test_a_signal_from_an_installed_package(tmp_path: Path) -> None:
    """It is found by its entry points, extracted, stored, drawn in the preview and read again."""
    site = tmp_path / "site"
    package, info = site / "v2v_light", site / "v2v_light-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "signal.py").write_text(SIGNAL)
    (package / "extract.py").write_text(EXTRACTOR)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: v2v-light\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        dedent(
            """
            [v2v.signals]
            light = v2v_light.signal
            [v2v.extractors]
            light = v2v_light.extract
            """
        )
    )
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{USE}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == 5
