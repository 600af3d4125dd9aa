# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are complete or not there; damage is noticed and the one before is used."""

from __future__ import annotations

import json
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
