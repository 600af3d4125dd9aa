# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are complete or not there; damage is noticed and the one before is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ardiff_engine.errors import CheckpointError
from ardiff_engine.files import TEMPORARY_PREFIX, remove_leftovers
from ardiff_engine.training import checkpoint as module
from ardiff_engine.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from ardiff_engine.training.log import TrainingLog, read_log


def _save(folder: Path, step: int, keep: int = 3) -> Path:
    return save_checkpoint(
        folder, step, {"model": {"w": torch.full((2, 2), float(step))}, "empty": {}}, {"n": [step, "x"]}, keep
    )


def test_round_trip_and_last_n_kept(tmp_path: Path) -> None:
    for step in (1, 20, 3, 400):
        _save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000020", "step-00000400"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.step == 400 and newest.state == {"n": [400, "x"]}
    assert (
        torch.equal(newest.tensors["model"]["w"], torch.full((2, 2), 400.0)) and newest.tensors["empty"] == {}
    )


def test_nothing_is_pickled(tmp_path: Path) -> None:
    assert {path.suffix for path in _save(tmp_path, 1).iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "checksums.json", "empty.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty", "swap", "folder", "pipe"])
def test_damage_to_any_file_is_noticed_and_said(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, last = _save(tmp_path, 1), _save(tmp_path, 2)
    file = last / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-2] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:-3])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "swap":
        other = (first / name).read_bytes()
        file.write_bytes(other if other != bytes(data) else b"other")
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
        elif damage == "pipe":
            os.mkfifo(file)
    with pytest.raises(CheckpointError):
        load_checkpoint(last)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert "step-00000002" in caplog.text


def test_every_bit_of_the_state_is_covered(tmp_path: Path) -> None:
    last = _save(tmp_path, 7)
    for name in ("state.json", "checksums.json"):
        whole = (last / name).read_bytes()
        for position in range(len(whole)):
            for bit in (1, 4):
                (last / name).write_bytes(
                    whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :]
                )
                try:
                    found = load_checkpoint(last)
                except CheckpointError:
                    continue
                # White space between the checksums may change; nothing else.
                assert (
                    name == "checksums.json" and found.step == 7 and whole[position : position + 1].isspace()
                )
        (last / name).write_bytes(whole)
    assert load_checkpoint(last).step == 7


def test_a_renamed_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    last = _save(tmp_path, 7)
    last.rename(tmp_path / "step-00000097")
    with pytest.raises(CheckpointError, match="step 97"):
        load_checkpoint(tmp_path / "step-00000097")
    (_save(tmp_path, 8) / "extra").touch()
    with pytest.raises(CheckpointError, match="lists"):
        load_checkpoint(tmp_path / "step-00000008")


def test_the_one_just_written_is_never_pruned(tmp_path: Path) -> None:
    """After 200 was found damaged, a run goes on from 100 and saves 150."""
    _save(tmp_path, 100)
    (_save(tmp_path, 200) / "state.json").write_text("{")
    _save(tmp_path, 150, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000150", "step-00000200"]
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 150
    _save(tmp_path, 200, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000200"]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        _save(tmp_path, step)
    (tmp_path / "step-notes").mkdir()
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 100_000_000


def test_failure_while_writing_leaves_the_old_ones_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        _save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_half_written_folders_are_ignored_and_removed(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    (tmp_path / f"{TEMPORARY_PREFIX}0123-0" / "step-00000009").mkdir(parents=True)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") is None


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        (_save(tmp_path, step) / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="2 are damaged.*step-00000002.*start anew"):
        newest_checkpoint(tmp_path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from ardiff_engine.errors import CheckpointError
from ardiff_engine.files import TEMPORARY_PREFIX, remove_leftovers
from ardiff_engine.training.checkpoint import save_checkpoint
from ardiff_engine.training.log import TrainingLog
folder = Path(sys.argv[1])
save_checkpoint(folder / "checkpoints", 1, {"model": {"w": torch.zeros(4)}}, {}, 3)
log = TrainingLog(folder / "log.jsonl", None)
log.add(1, loss=1.0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
for act in (
    lambda: save_checkpoint(folder / "checkpoints", 2, {"model": {"w": torch.zeros(9000)}}, {}, 3),
    lambda: log.add(2, text="x" * 9000),
):
    try:
        act()
    except CheckpointError as error:
        print("typed:", error)
"""


def test_a_full_disk_is_a_typed_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("typed: writing") == 2, result.stdout + result.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    found = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None and found.step == 1
    assert [entry["step"] for entry in read_log(tmp_path / "log.jsonl")] == [1]


def test_a_log_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="file"):
        TrainingLog(tmp_path / "file" / "log.jsonl", None)
    log = TrainingLog(tmp_path / "log.jsonl", None)
    log.path = tmp_path
    with pytest.raises(CheckpointError, match="writing"):
        log.add(1, loss=1.0)
