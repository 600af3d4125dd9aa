# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are complete or not there; damage is noticed and the one before is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ardiff_engine.errors import CheckpointError
from ardiff_engine.training import checkpoint as module
from ardiff_engine.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    remove_unfinished,
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


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "state", "not_json"])
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 1)
    last = _save(tmp_path, 2)
    file = last / "model.safetensors"
    if damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "remove":
        file.unlink()
    elif damage == "state":
        (last / "state.json").write_text(json.dumps({"step": 2}))
    else:
        (last / "state.json").write_text("{")
    with pytest.raises(CheckpointError):
        load_checkpoint(last)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1


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
    (tmp_path / ".unfinished-1-step-00000009").mkdir()
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") is None


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        (_save(tmp_path, step) / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="2, all damaged.*step-00000002.*start anew"):
        newest_checkpoint(tmp_path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from ardiff_engine.errors import CheckpointError
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
