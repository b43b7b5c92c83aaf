"""Locks whose file is deleted, partial output of killed processes, seals that detect damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from v2v.errors import NotWritable
from v2v.files import LOCK, FolderLock, Seal, discard, remove_at_once, replacing_file, workplace

BUSY = NotWritable("another process is at work", hint=None)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---------------------------------------------------------------- locks


def test_only_one_process_holds_a_lock(tmp_path: Path) -> None:
    first, second = (FolderLock(tmp_path / "a", BUSY) for _ in range(2))
    first.acquire()
    with pytest.raises(NotWritable, match="at work"):
        second.acquire()
    first.release()
    second.acquire()
    second.remove()
    assert not (tmp_path / "a").exists()


def test_a_lock_stays_exclusive_when_its_file_is_removed_during_acquire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes the folder just before the second process locks its opened file."""
    folder = tmp_path / "a"
    first, second, third = (FolderLock(folder, BUSY) for _ in range(3))
    first.acquire()
    original_acquire, triggered = FileLock.acquire, []

    def acquire(self: FileLock, *arguments: object, **options: object) -> object:
        if self is second._lock and not triggered:
            triggered.append(1)
            with open(folder / LOCK):  # keeps the inode from being reused
                first.remove()
                folder.mkdir()
                (folder / LOCK).touch()
        return original_acquire(self, *arguments, **options)

    monkeypatch.setattr(FileLock, "acquire", acquire)
    second.acquire()
    with pytest.raises(NotWritable):
        third.acquire()


def test_concurrent_processes_never_share_a_folder(tmp_path: Path) -> None:
    """Each process creates the folder, writes a private file, and removes the folder."""
    code = """
import sys, time
from pathlib import Path
from v2v.errors import NotWritable
from v2v.files import workplace
held, end = 0, time.monotonic() + 1.0
while time.monotonic() < end:
    try:
        with workplace(Path(sys.argv[1]), NotWritable("busy", hint=None)) as folder:
            (folder / "mine").touch(exist_ok=False)
            assert len(list(folder.iterdir())) == 2
            held += 1
    except NotWritable:
        pass
print(held)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "w")], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [error for _, error in outputs] == ["", "", ""]
    assert all(int(held) > 0 for held, _ in outputs)
    assert not (tmp_path / "w").exists()


# ---------------------------------------------------------------- unfinished work


def test_a_workplace_starts_empty_and_is_removed_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / ".out.partial"
    (folder / "old").mkdir(parents=True)  # left by a killed process
    (folder / "old" / "half").write_bytes(b"half")
    with workplace(folder, BUSY):
        assert names(folder) == [LOCK]
        (folder / "new").write_bytes(b"new")
        with pytest.raises(NotWritable, match="at work"), workplace(folder, BUSY):
            pass
        discard(folder)
        assert names(folder) == [LOCK, "new"], "discard must keep a folder in use"
    assert names(tmp_path) == []


def test_discard_removes_an_unused_folder(tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / LOCK).touch()
    (tmp_path / "left" / "half").write_bytes(b"half")
    discard(tmp_path / "left")
    discard(tmp_path / "never")
    assert names(tmp_path) == []


def test_a_file_is_replaced_atomically_or_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    (tmp_path / ".a.txt.partial").write_text("half")  # left by an earlier version
    with pytest.raises(RuntimeError), replacing_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]
    with replacing_file(path) as partial:
        partial.write_text("new")
        with pytest.raises(NotWritable, match="another process is writing"), replacing_file(path):
            pass
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]
    with pytest.raises(NotWritable, match="in its place"), replacing_file(path / "b" / "c.txt"):
        pass


def test_a_folder_is_renamed_before_its_files_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").touch()

    def killed(path: Path) -> None:
        assert path.name == ".run.partial"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_at_once(tmp_path / "run")
    assert names(tmp_path) == [".run.partial"]
    remove_at_once(tmp_path / "run")
    assert names(tmp_path) == []


# ---------------------------------------------------------------- seals


def test_a_seal_detects_every_change(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.bin", tmp_path / "maps"
    file.write_bytes(b"0123456789")
    folder.mkdir()
    (folder / "0.mkv").write_bytes(b"zero")
    (folder / "1.mkv").write_bytes(b"one")
    seal = Seal(tmp_path / ".seal")
    assert not seal.holds([file])
    seal.write([file, folder])
    assert seal.holds([file, folder]) and seal.holds([file])
    assert not seal.holds([tmp_path / "b.bin"])
    (folder / "1.mkv").write_bytes(b"two")
    assert not seal.holds([folder]) and seal.holds([file])
    (folder / "1.mkv").unlink()
    assert not seal.holds([folder])
    file.write_bytes(b"0123456780")  # same length as before
    assert not seal.holds([file])


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b"null", b'{"a.bin": 3}', b'{"a.bin": [4, null]}', b"[" * 100_000],
    ids=["empty", "not text", "list", "null", "number", "no hash", "nested"],
)
def test_a_damaged_seal_is_never_valid(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(b"file")
    (tmp_path / ".seal").write_bytes(content)
    assert not Seal(tmp_path / ".seal").holds([tmp_path / "a.bin"])
