"""The tree of errors is as drawn, and errors keep what they know on their way."""

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


def drawn() -> dict[str, str]:
    """Name of each class in the docstring's tree and of the one it hangs on."""
    tree: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+)", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        assert depth <= len(path), f"{line!r} hangs on nothing"
        path[depth:] = [found[2]]
        tree[found[2]] = path[depth - 1] if depth else "Exception"
    return tree


def defined() -> dict[str, type[V2VError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, V2VError)
    }


def test_the_tree_is_as_drawn() -> None:
    assert len(drawn()) > 15
    assert {name: kind.__bases__[0].__name__ for name, kind in defined().items()} == drawn()
    assert all(len(kind.__bases__) == 1 for kind in defined().values())


@pytest.mark.parametrize("kind", defined().values())
def test_exit_codes(kind: type[V2VError]) -> None:
    assert kind("m").exit_code == (2 if issubclass(kind, UsageError) else 1)


@pytest.mark.parametrize("kind", defined().values())
@pytest.mark.parametrize("hint", [None, "do this"])
def test_message_and_hint_survive_pickling(kind: type[V2VError], hint: str | None) -> None:
    sent = pickle.loads(pickle.dumps(kind("what is wrong", hint=hint)))
    assert type(sent) is kind
    assert (str(sent), sent.message, sent.hint) == ("what is wrong", "what is wrong", hint)


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
def test_refusals_to_write_become_ours(code: int, kind: type[V2VError]) -> None:
    with pytest.raises(kind, match="/some/file") as caught, writing(Path("/some/file")):
        raise OSError(code, "refused")
    assert caught.value.hint
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_pass_through() -> None:
    with pytest.raises(FileNotFoundError), writing(Path("x")):
        raise FileNotFoundError(errno.ENOENT, "no")
    with pytest.raises(ConfigError), writing(Path("x")):
        raise ConfigError("ours already")


def test_a_codec_library_s_full_disk_is_one_too() -> None:
    av_error = pytest.importorskip("av.error")
    with pytest.raises(DiskFull), writing(Path("x")):
        raise av_error.OSError(errno.ENOSPC, "No space left on device", "x")


def test_the_base_is_public() -> None:
    import v2v

    assert v2v.V2VError is V2VError
    assert issubclass(WeightsUnavailable, v2v.V2VError)
