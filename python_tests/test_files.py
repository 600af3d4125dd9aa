# SPDX-License-Identifier: Apache-2.0
"""A write either happens whole or leaves everything as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.processes import started

from ardiff_engine import files
from ardiff_engine.errors import CheckpointError, MediaError
from ardiff_engine.files import TEMPORARY_PREFIX, make_folder, remove_leftovers, staged, write_atomic


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replaces_content(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    write_atomic(target, lambda file: file.write(b"old"))
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new" and names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_replaces_a_folder(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for content in ("old", "new"):
        with staged(tmp_path / "set") as (folder,):
            folder.mkdir()
            (folder / content).write_text(content)
    assert names(tmp_path) == ["set"] and names(tmp_path / "set") == ["new"]


def test_an_exchange_that_fails_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").touch()
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    rename, calls = os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        full_disk() if len(calls) == 2 else rename(source, target)

    monkeypatch.setattr(files.os, "rename", second_fails)
    with pytest.raises(CheckpointError), staged(tmp_path / "set") as (folder,):
        folder.mkdir()
    assert names(tmp_path) == ["set"] and names(tmp_path / "set") == ["old"]


def test_flushes_file_before_rename_and_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", record_fsync)
    monkeypatch.setattr(files.os, "replace", record_replace)
    write_atomic(tmp_path / "a", b"x")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "writer"])
def test_full_disk_keeps_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    if failing != "writer":
        monkeypatch.setattr(files.os, failing, full_disk)
    with pytest.raises(MediaError, match="No space left"):
        write_atomic(target, full_disk if failing == "writer" else b"new", error=MediaError)
    monkeypatch.undo()
    assert target.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_second_file_failing_keeps_the_first(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(CheckpointError), staged(tmp_path / "a", tmp_path / "b") as (a, _):
        a.write_bytes(b"new")
        full_disk()
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_other_errors_pass_through(tmp_path: Path, error: type[BaseException]) -> None:
    def writer(file: object) -> None:
        raise error

    with pytest.raises(error):
        write_atomic(tmp_path / "a", writer)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["none/a", "a\0b", "\ud800", "x" * 256, "file/a", "fifo", "."])
def test_an_impossible_target_is_typed_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CheckpointError, match="writing"):
        write_atomic(tmp_path / name, b"x")
    assert names(tmp_path) == ["fifo", "file"] and (tmp_path / "fifo").is_fifo()


@pytest.mark.parametrize("name", ["file/a", "a\0b", "\ud800", "x" * 256, "file"])
def test_an_impossible_folder_is_typed(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match="writing"):
        make_folder(tmp_path / name, error=MediaError)


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("x" * 255), b"x")
    assert names(tmp_path) == ["x" * 255]


WRITER = """
import sys
from ardiff_engine.files import write_atomic
def slow(file):
    file.write(b"new"); file.flush(); print("half", flush=True); sys.stdin.readline()
write_atomic(sys.argv[1], slow)
"""


@contextlib.contextmanager
def start_writer(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started([sys.executable, "-c", WRITER, target], **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        yield process


def test_what_a_killed_writer_left_is_removed_at_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with start_writer(target) as process:
        process.send_signal(signal.SIGKILL)
    assert target.read_bytes() == b"old" and len(names(tmp_path)) == 2
    write_atomic(tmp_path / "other", b"x")
    assert [name for name in names(tmp_path) if name.startswith(TEMPORARY_PREFIX)]
    write_atomic(target, b"newer")
    assert names(tmp_path) == ["a.bin", "other"] and target.read_bytes() == b"newer"


def test_leftovers_of_a_folder_are_removed(tmp_path: Path) -> None:
    with start_writer(tmp_path / "killed") as process:
        process.send_signal(signal.SIGKILL)
    with start_writer(tmp_path / "living") as process:
        remove_leftovers(tmp_path)
        assert len(names(tmp_path)) == 1
        process.communicate(b"\n")
    assert names(tmp_path) == ["living"]


def test_a_writer_that_lives_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with start_writer(target) as process:
        write_atomic(target, b"first")
        assert len(names(tmp_path)) == 2
        process.communicate(b"\n")
    assert names(tmp_path) == ["a.bin"] and target.read_bytes() == b"new"
