# SPDX-License-Identifier: Apache-2.0
"""Pickle-based weights are converted without running what is inside."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ardiff_engine import files
from ardiff_engine.errors import CheckpointError, UnsafeCheckpointError
from ardiff_engine.weights import convert


class Payload:
    """Runs a command when a trusting reader opens it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_flattens_and_clones(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    state = OrderedDict(a=base, b=base[2:4], nested={"c": base.reshape(2, 3).T, 7: torch.ones(1).bfloat16()})
    torch.save({"model": {"state_dict": state}, "optimizer": {"lr": torch.zeros(1)}}, tmp_path / "x.pt")
    done = convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    read = load_file(tmp_path / "x.safetensors")
    assert done.path == tmp_path / "x.safetensors" and done.tensors == 4 and done.skipped == ("optimizer",)
    assert torch.equal(read["a"], base) and torch.equal(read["b"], base[2:4])
    assert torch.equal(read["nested.c"], base.reshape(2, 3).T)
    assert read["nested.7"].dtype == torch.bfloat16


def test_plain_dictionary_and_skipped_entries(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2)), "epoch": 3, "name": "run"}, tmp_path / "x.bin")
    done = convert(tmp_path / "x.bin", tmp_path / "y.safetensors")
    assert done.skipped == ("epoch", "name")
    assert torch.equal(load_file(done.path)["w"], torch.ones(2))


def save_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def save_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [save_zip, save_pickle])
def test_code_is_refused_and_not_run(tmp_path: Path, save: object) -> None:
    marker = tmp_path / "ran"
    save({"w": torch.ones(1), "bad": Payload(marker)}, tmp_path / "x.pt")  # type: ignore[operator]
    with pytest.raises(UnsafeCheckpointError, match="was not opened") as refused:
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert "weights_only" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1}, "no tensors"),
        ([torch.ones(1)], "list"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "a.b"),
    ],
)
def test_other_contents(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")


def test_damaged_file(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(100)}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt"]


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    (tmp_path / "x.safetensors").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == b"old"


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="file to convert"):
        convert(tmp_path / "none.pt", tmp_path / "x.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="ending in .safetensors"):
        convert(tmp_path / "x.pt", tmp_path / "y.pt")
    (tmp_path / "same.safetensors").write_bytes((tmp_path / "x.pt").read_bytes())
    with pytest.raises(CheckpointError, match="the file to convert"):
        convert(tmp_path / "same.safetensors", tmp_path / "same.safetensors")


def test_the_refused_object_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "options": argparse.Namespace(lr=1)}, tmp_path / "x.pt")
    with pytest.raises(UnsafeCheckpointError, match="Python object argparse.Namespace") as refused:
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert "safe_globals" not in str(refused.value)


def test_a_missing_target_folder_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="folder that does not exist.*Make .*none"):
        convert(tmp_path / "x.pt", tmp_path / "none" / "x.safetensors")


def test_timeout(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="timeout_seconds"):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors", timeout_seconds=0.01)
