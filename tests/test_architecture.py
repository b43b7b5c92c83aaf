"""The import order of the layers, checked in the source code.

Only imports that run with the module count: not those inside functions (which may break the order,
as the command line does to start fast) nor those for type checkers.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("v2v", "preprocess", "pipelines", "samples", "configs")  # installed as v2v and v2v.*

# Lowest first; a module imports from its own layer or lower ones. The longest matching name counts.
LAYERS = (
    ("v2v.wording", "v2v.errors", "v2v.types"),
    (
        "v2v",
        "v2v.prefetch",
        "v2v.config",
        "v2v.defaults",
        "v2v.files",
        "v2v.listing",
        "v2v.images",
        "v2v.pages",
        "v2v.figures",
        "v2v.timecode",
        "v2v.records",
        "v2v.saved",
        "v2v.tensors",
        "v2v.homography",
        "v2v.pixels",
        "v2v.warp",
        "v2v.weights",
        "v2v.progress",
        "v2v.runtime",
    ),
    ("v2v.video",),  # files and pictures, no signals
    ("v2v.installation",),
    ("v2v.signals",),
    ("v2v.data", "v2v.models", "v2v.losses"),
    ("v2v.checkpoint", "v2v.resume"),
    ("v2v.training", "v2v.prediction", "v2v.evaluation.measures"),
    ("v2v.preprocess", "v2v.samples", "v2v.configs"),
    ("v2v.pipelines",),
    ("v2v.evaluation",),
    ("v2v.api",),
    ("v2v.cli", "v2v.__main__"),
)
LAYER = {name: height for height, names in enumerate(LAYERS) for name in names}
SEPARATE = ("v2v.models", "v2v.losses")  # in one layer, but they do not import each other


@cache
def modules() -> dict[str, Path]:
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name if folder == "v2v" else f"v2v.{name}"] = path
    return found


def imported(source: str, name: str, *, is_package: bool, everywhere: bool = False) -> set[str]:
    """Dotted names that a module imports; `from a import b` gives both `a` and `a.b`."""

    def statements(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from statements(node.orelse)
            elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                children = list(ast.iter_child_nodes(node))
                yield from statements([c for c in children if isinstance(c, ast.stmt)])
                for handler in children:
                    if isinstance(handler, ast.ExceptHandler):
                        yield from statements(handler.body)

    names: set[str] = set()
    for node in statements(ast.parse(source).body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        if node.level:
            parts = name.split(".") if is_package else name.split(".")[:-1]
            parts = parts[: len(parts) - node.level + 1]
            base = ".".join([*parts, *([node.module] if node.module else [])])
        names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def imports_of(name: str, *, everywhere: bool = False) -> set[str]:
    path = modules()[name]
    return imported(
        path.read_text("utf-8"), name, is_package=path.stem == "__init__", everywhere=everywhere
    )


def own(names: set[str]) -> set[str]:
    return names & modules().keys()


def layer(name: str) -> int:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        height = LAYER.get(".".join(parts[:end]))
        if height is not None and (end > 1 or parts[0] != "v2v" or len(parts) == 1):
            return height
    pytest.fail(f"{name} is in no layer: add it to LAYERS in {Path(__file__).name}")


def within(name: str, packages: tuple[str, ...]) -> str | None:
    return next((p for p in packages if name == p or name.startswith(p + ".")), None)


def upward(name: str, imports: set[str]) -> list[str]:
    """Those of `imports` that break the order."""
    wrong = [other for other in imports if layer(other) > layer(name)]
    here = within(name, SEPARATE)
    wrong += [o for o in imports if here and within(o, SEPARATE) not in (None, here)]
    return sorted(wrong)


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_from_its_layer_or_below(name: str) -> None:
    wrong = upward(name, own(imports_of(name)) - {name})
    assert not wrong, f"{name} imports from a higher layer: {', '.join(wrong)}"


def in_order(imports: dict[str, set[str]]) -> list[str]:
    """The modules, each after those that it imports. Raises `graphlib.CycleError`."""
    graph = {}
    for name, others in imports.items():
        package = name.rpartition(".")[0]
        # Inside a package, `from package import module` needs only the module, not the names that
        # the package imports from its modules.
        sibling = any(other.startswith(package + ".") for other in others)
        graph[name] = others - {name} - ({package} if sibling else set())
    return list(graphlib.TopologicalSorter(graph).static_order())


def test_imports_have_no_cycle() -> None:
    try:
        order = in_order({name: own(imports_of(name)) for name in modules()})
    except graphlib.CycleError as error:
        pytest.fail("cycle: " + " <- ".join(error.args[1]))
    below = [
        "v2v.errors",
        "v2v.video.media",
        "v2v.video.stored",
        "v2v.signals.flow",
        "v2v.preprocess.flow",
    ]
    assert sorted(below, key=order.index) == below


STAGES = ("v2v.preprocess", "v2v.samples", "v2v.configs", "v2v.pipelines")
USERS = ("v2v.cli", "v2v.__main__", "v2v.evaluation")  # they run the stages


@pytest.mark.parametrize("name", [n for n in modules() if within(n, STAGES + USERS) is None])
def test_the_library_does_not_import_its_users(name: str) -> None:
    """Training and reading must work without extractors, samples and MediaPipe."""
    upper = (*STAGES, *USERS, "mediapipe", "decord", "typer", "gradio", "ray")
    wrong = [other for other in imports_of(name) if within(other, upper)]
    assert not wrong, f"{name} imports {', '.join(wrong)} at module level"


@pytest.mark.parametrize("name", [n for n in modules() if within(n, ("v2v.cli",)) is None])
def test_only_main_imports_the_command_line(name: str) -> None:
    if name != "v2v.__main__":
        assert not [o for o in imports_of(name, everywhere=True) if within(o, ("v2v.cli",))]


def test_one_module_imports_mediapipe() -> None:
    found = {n for n in modules() if "mediapipe" in imports_of(n, everywhere=True)}
    assert found == {"v2v.preprocess.mediapipe_backend", "v2v.installation"}  # v2v doctor


BUILT_IN = tuple(f"v2v.signals.{n}" for n in ("pose", "face", "segmentation", "flow", "camera"))
GENERIC = ("v2v.data", "v2v.models", "v2v.losses", "v2v.training", "v2v.checkpoint")


@pytest.mark.parametrize("name", [n for n in modules() if within(n, GENERIC)])
def test_data_and_training_ask_for_traits_and_know_no_signal(name: str) -> None:
    """So that installed signals get what built-in ones get; see `v2v.signals.traits`."""
    wrong = [o for o in imports_of(name, everywhere=True) if within(o, BUILT_IN)]
    assert not wrong, f"{name} imports {', '.join(wrong)}"


@pytest.mark.parametrize(
    "name", ["v2v", "v2v.cli", "v2v.data.store", "v2v.signals", "v2v.config", "v2v.video.read"]
)
def test_an_import_loads_no_heavy_libraries(name: str) -> None:
    """The same, checked in a new interpreter."""
    heavy = ["mediapipe", "decord", "v2v.preprocess", "v2v.samples"]
    heavy += ["torch", "cv2", "av", "numpy"] if name in ("v2v", "v2v.cli") else []
    code = f"import sys, {name}; print(*sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"import {name} loads {done.stdout}"


# ---------------------------------------------------------------- the checks themselves


def test_only_imports_that_run_with_the_module_count() -> None:
    source = """
from __future__ import annotations
import a.b
from c import d
from . import e
from .f import g
if TYPE_CHECKING:
    import h
else:
    import i
try:
    import j
except ImportError:
    import k
class K:
    import l
def f():
    import m
if x:
    import n
"""
    names = imported(source, "v2v.pkg.mod", is_package=False)
    top = {n.split(".")[0] for n in names if not n.startswith("v2v")} - {"__future__"}
    assert top == {"a", "c", "i", "j", "k", "l", "n"}
    assert {"v2v.pkg.e", "v2v.pkg.f", "v2v.pkg.f.g", "c.d"} <= names
    assert "m" in imported(source, "v2v.pkg.mod", is_package=False, everywhere=True)


def test_an_import_from_a_higher_layer_is_found() -> None:
    assert upward("v2v.errors", {"v2v.config"}) == ["v2v.config"]
    assert upward("v2v.video.read", {"v2v.signals.flow", "v2v.errors"}) == ["v2v.signals.flow"]
    assert upward("v2v.models.generator", {"v2v.losses.temporal"}) == ["v2v.losses.temporal"]
    assert upward("v2v.preprocess.flow", {"v2v.cli"}) == ["v2v.cli"]
    assert not upward("v2v.preprocess.flow", {"v2v.data.store", "v2v.preprocess.pose", "v2v.warp"})


def test_a_cycle_is_found() -> None:
    with pytest.raises(graphlib.CycleError):
        in_order({"p": {"p.a"}, "p.a": {"p.b"}, "p.b": {"p", "p.a"}})
    with pytest.raises(graphlib.CycleError):
        in_order({"p": {"p.a"}, "p.a": {"p"}})
    assert in_order({"p": {"p.a"}, "p.a": {"p", "p.b"}, "p.b": set()}) == ["p.b", "p.a", "p"]
