"""The registry of metrics, and metrics of installed packages."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from v2v.errors import MissingLibrary
from v2v.evaluation import metrics as package
from v2v.evaluation.evaluate import evaluate
from v2v.evaluation.frame_scores import Tools, Video, measure
from v2v.evaluation.metrics import FrameStatistic, Network, all_metrics

DOCUMENT = Path(__file__).parents[2] / "CONTRIBUTING.md"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install("my_x", code)`: a package on the import path whose module `metric` has this code."""

    def make(name: str, code: str) -> None:
        site = tmp_path / name
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[v2v.metrics]\n{name} = {name}.metric\n")
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("")
        (site / name / "metric.py").write_text(code)
        monkeypatch.syspath_prepend(site)
        for module in (name, f"{name}.metric"):  # of another test's package
            monkeypatch.delitem(sys.modules, module, raising=False)
        all_metrics.cache_clear()

    yield make
    all_metrics.cache_clear()


def documented() -> str:
    text = DOCUMENT.read_text("utf-8")
    entry = re.search(r'\[project\.entry-points\."v2v\.metrics"\]\n(.*)\n', text)
    assert entry is not None and entry[1] == 'contrast = "my_contrast.metric"'
    code = re.search(r"`my_contrast/metric\.py`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    return code[1]


def test_a_metric_of_an_installed_package_is_in_the_report(
    install: Install,
    make_model: Callable[..., Path],
    make_store: Callable[..., Path],
    skeletons: Callable[..., np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("my_contrast", documented())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    model, store = make_model("b"), make_store("other", pose=skeletons(12))
    found = evaluate(model, [store], against=["frozen", "copy"], drift=0, detectors={})
    record = json.loads((found.folder / "report.json").read_text())
    assert record["measures"]["contrast"]["better"] == "one"
    rows = record["rows"]
    assert rows["real"]["measures"]["contrast"]["mean"] == pytest.approx(1, abs=0.02)
    assert abs(rows["b"]["measures"]["contrast"]["mean"] - 1) > 0.02
    assert len(record["courses"][0]["b"]["contrast"]) == 12
    assert "contrast" in [name for names in record["against"]["copy"].values() for name in names]
    page = (found.folder / "report.html").read_text()
    assert "<tr><td>contrast\n" in page
    assert "<b>contrast</b> (1 equals the real video)" in page


def test_a_known_contrast(install: Install) -> None:
    install("my_contrast", documented())
    real = np.random.default_rng(0).integers(60, 200, (5, 48, 64, 3), np.uint8)
    half = (real // 2 + 60).astype(np.uint8)
    videos = {"half": Video(iter(half))}
    scores = measure(Video(iter(real)), videos, count=5, tools=Tools())["half"]
    np.testing.assert_allclose(scores["contrast"], 0.5, atol=0.01)


BROKEN = "raise RuntimeError('no licence')"
TAKEN = """
from v2v.evaluation.metrics import FrameStatistic, Metric
METRICS = (Metric("psnr", "my PSNR", "higher", "mine", FrameStatistic(lambda pair: None)),)
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (BROKEN, "my_metric.metric cannot be loaded: RuntimeError.*no licence"),
        ("", "cannot be loaded: AttributeError"),
        (TAKEN, "my_metric.metric redefines the metric psnr"),
    ],
)
def test_a_faulty_package_is_named(install: Install, code: str, message: str) -> None:
    install("my_metric", code)
    with pytest.raises(MissingLibrary, match=message):
        all_metrics()


def test_built_in_metrics_come_in_the_order_of_the_report() -> None:
    own = {path.stem for path in Path(package.__file__).parent.glob("[!_]*.py")}
    assert own == set(package.ORDER)
    assert list(all_metrics())[:5] == ["psnr", "ssim", "ms_ssim", "lpips", "vmaf"]
    assert [m.name for m in all_metrics().values() if m.better == "real"] == [
        "warping_error", "frame_difference",
    ]  # fmt: skip


def test_what_a_statistic_lacks() -> None:
    network = Network("lpips", lambda device: None)
    everything = FrameStatistic(
        lambda pair: np.zeros(1), pixels=16, network=network, detections=("labels",), person=True
    )

    def lacking(tools: Tools, *detections: str, height: int = 64) -> str | None:
        return tools.lacking(everything, detections, height, 64)

    full = Tools({"lpips": object()}, person=1)
    assert lacking(full, "labels") is None
    assert lacking(full, "labels", height=15) == "pixels"
    assert lacking(Tools(person=1), "labels") == "lpips"
    assert lacking(full) == "labels"
    assert lacking(Tools({"lpips": object()}), "labels") == "person"
