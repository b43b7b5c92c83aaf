"""The error hierarchy matches its documentation, and errors keep their hint when pickled."""

from __future__ import annotations

import errno
import pickle
import re
from pathlib import Path

import pytest

from v2v import errors
from v2v.errors import (
    ConfigError,
    DiskFull,
    NotWritable,
    UnknownName,
    UsageError,
    V2VError,
    WeightsUnavailable,
    writing,
)


def documented() -> dict[str, str]:
    """Name of each class in the docstring's tree -> name of its base."""
    tree: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+)", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        assert depth <= len(path), f"{line!r} has no parent"
        path[depth:] = [found[2]]
        tree[found[2]] = path[depth - 1] if depth else "Exception"
    return tree


def defined() -> dict[str, type[V2VError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, V2VError)
    }


def test_the_hierarchy_is_as_documented() -> None:
    assert len(documented()) > 15
    assert {name: kind.__bases__[0].__name__ for name, kind in defined().items()} == documented()
    assert all(len(kind.__bases__) == 1 for kind in defined().values())


@pytest.mark.parametrize("kind", defined().values())
def test_exit_codes(kind: type[V2VError]) -> None:
    assert kind("m").exit_code == (2 if issubclass(kind, UsageError) else 1)


@pytest.mark.parametrize("kind", defined().values())
@pytest.mark.parametrize("hint", [None, "do this"])
def test_message_and_hint_survive_pickling(kind: type[V2VError], hint: str | None) -> None:
    copied = pickle.loads(pickle.dumps(kind("what is wrong", hint=hint)))
    assert type(copied) is kind
    assert (str(copied), copied.message, copied.hint) == ("what is wrong", "what is wrong", hint)


def test_an_unknown_name_lists_the_valid_ones_and_suggests_the_nearest() -> None:
    error = UnknownName.among("signal", "pos", ["pose", "face"])
    assert error.message == "unknown signal 'pos'"
    assert error.hint == "did you mean 'pose'? valid: face, pose"
    assert UnknownName.among("signal", "zzz", ["pose", "face"]).hint == "valid: face, pose"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EACCES, NotWritable),
        (errno.EPERM, NotWritable),
        (errno.EROFS, NotWritable),
    ],
)
def test_system_errors_on_writing_become_v2v_errors(code: int, kind: type[V2VError]) -> None:
    with pytest.raises(kind, match="/some/file") as caught, writing(Path("/some/file")):
        raise OSError(code, "refused")
    assert caught.value.hint
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_pass_through() -> None:
    with pytest.raises(FileNotFoundError), writing(Path("x")):
        raise FileNotFoundError(errno.ENOENT, "no")
    with pytest.raises(ConfigError), writing(Path("x")):
        raise ConfigError("ours already")


def test_a_full_disk_in_the_codec_library_is_recognised() -> None:
    av_error = pytest.importorskip("av.error")
    with pytest.raises(DiskFull), writing(Path("x")):
        raise av_error.OSError(errno.ENOSPC, "No space left on device", "x")


def test_the_base_is_public() -> None:
    import v2v

    assert v2v.V2VError is V2VError
    assert issubclass(WeightsUnavailable, v2v.V2VError)
