"""Files are there whole or not at all, on systems that open no folders too."""

from __future__ import annotations

import ast
import errno
import os
import stat
from pathlib import Path

import pytest

import pof
from pof._support.files import append, naming, replacing, write_text

POSIX_ONLY = {"fcntl", "grp", "posix", "pwd", "resource", "termios"}


def test_a_failing_body_leaves_the_target(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("old")
    with pytest.raises(RuntimeError, match="body"), replacing(tmp_path / "t") as partial:
        partial.write_text("half")
        raise RuntimeError("body")
    assert (tmp_path / "t").read_text() == "old"
    assert os.listdir(tmp_path) == ["t"]


def test_content_is_on_disk_before_the_rename_and_the_rename_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = [], os.fsync

    def record(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "t").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with replacing(tmp_path / "t") as partial:
        partial.write_text("new")
    assert synced == [(False, False), (True, True)]


def test_where_folders_cannot_be_opened_the_content_alone_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, whose ``os`` has no O_DIRECTORY, and whose fsync needs a descriptor that can be written to."""
    opened, open_ = [], os.open

    def record(path: Path, flags: int) -> int:
        assert not path.is_dir() and flags & os.O_RDWR
        opened.append(path.name)
        return open_(path, flags)

    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(os, "open", record)
    with replacing(tmp_path / "t") as partial:
        partial.write_text("new")
    assert (tmp_path / "t").read_text() == "new" and opened == [f".t.{os.getpid()}.partial"]


def test_the_package_imports_nothing_that_windows_lacks() -> None:
    for path in Path(pof.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not POSIX_ONLY.intersection(names), f"{path}:{getattr(node, 'lineno', 0)}"


def test_append_makes_the_file_and_names_it_in_errors(tmp_path: Path) -> None:
    append(tmp_path / "rows", b"a")
    append(tmp_path / "rows", b"b")
    assert (tmp_path / "rows").read_bytes() == b"ab"
    with pytest.raises(OSError, match="cannot write: Is a directory") as caught:
        append(tmp_path, b"a")
    assert caught.value.filename == str(tmp_path)


def test_a_full_disk_is_named_with_the_remedy(tmp_path: Path) -> None:
    message = "cannot write: No space left; free some space or choose another folder; gone"
    with pytest.raises(OSError, match=message), naming(tmp_path, "gone"):
        raise OSError(errno.ENOSPC, "No space left")


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("old")
    (tmp_path / "t").chmod(0o600)
    with replacing(tmp_path / "t") as partial:
        partial.write_text("new")
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o600


def test_a_name_that_is_no_utf8_does_not_keep_a_page_from_being_written(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "caf\udce9, ä")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "caf\\udce9, ä"
