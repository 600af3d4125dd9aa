# SPDX-License-Identifier: Apache-2.0
"""A write either happens whole or leaves everything as it was."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ardiff_engine.errors import CheckpointError
from ardiff_engine.weights import atomic
from ardiff_engine.weights.atomic import remove_stale, staged, write_atomic


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replaces_content(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    write_atomic(target, lambda file: file.write(b"old"))
    write_atomic(target, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"new" and names(tmp_path) == ["a.bin"]


def test_flushes_file_before_rename_and_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", record_fsync)
    monkeypatch.setattr(atomic.os, "replace", record_replace)
    write_atomic(tmp_path / "a", lambda file: file.write(b"x"))
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "writer"])
def test_full_disk_keeps_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    if failing != "writer":
        monkeypatch.setattr(atomic.os, failing, full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        write_atomic(target, full_disk if failing == "writer" else lambda file: file.write(b"new"))
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


def test_missing_folder_is_typed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        write_atomic(tmp_path / "none" / "a", lambda file: file.write(b"x"))


def test_killed_writer_leaves_old_content(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    program = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(atomic.__file__).parents[2])!r})\n"
        "from ardiff_engine.weights import write_atomic\n"
        "def slow(file):\n"
        "    file.write(b'new'); file.flush(); print('half', flush=True); time.sleep(60)\n"
        f"write_atomic({str(target)!r}, slow)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert target.read_bytes() == b"old" and len(names(tmp_path)) == 2
    assert len(remove_stale(tmp_path)) == 1
    assert names(tmp_path) == ["a.bin"]


def test_remove_stale_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / ".hidden.tmp").write_bytes(b"x")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert remove_stale(tmp_path) == [] and len(names(tmp_path)) == 2
