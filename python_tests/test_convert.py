# SPDX-License-Identifier: Apache-2.0
"""Pickle-based weights are converted without running what is inside."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from effort import ALL
from safetensors.torch import load_file

from ardiff_engine import files
from ardiff_engine.errors import CheckpointError, UnsafeCheckpointError
from ardiff_engine.weights import convert, convert_worker

module = sys.modules["ardiff_engine.weights.convert"]


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
    assert done.path == tmp_path / "x.safetensors" and done.tensors == 4
    assert done.left_out == {"optimizer": "it lies beside 'model', which holds the model"}
    assert torch.equal(read["a"], base) and torch.equal(read["b"], base[2:4])
    assert torch.equal(read["nested.c"], base.reshape(2, 3).T)
    assert read["nested.7"].dtype == torch.bfloat16


@pytest.fixture
def reader_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader runs in this process: one of its own, as in `make test-all`, takes seconds."""

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked = json.loads(command[-1])
        report = convert_worker.reported(asked["source"], asked["target"], asked["bytes"])
        return subprocess.CompletedProcess(command, 0, json.dumps(report), "")

    if not ALL:
        monkeypatch.setattr(module.subprocess, "run", run)


@pytest.mark.usefixtures("reader_here")
def test_plain_dictionary_and_skipped_entries(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2)), "epoch": 3, "name": "run"}, tmp_path / "x.bin")
    done = convert(tmp_path / "x.bin", tmp_path / "y.safetensors")
    assert done.left_out == {"epoch": "it is no tensor (int)", "name": "it is no tensor (str)"}
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
    with pytest.raises(ValueError, match=message):
        convert_worker.convert(str(tmp_path / "x.pt"), str(tmp_path / "x.safetensors"), 1 << 20)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.usefixtures("reader_here")
def test_what_the_reader_refuses_is_a_typed_error(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="tensors"):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")


@pytest.mark.usefixtures("reader_here")
def test_damaged_file(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(100)}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt"]


@pytest.mark.usefixtures("reader_here")
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
    with pytest.raises(CheckpointError, match="none.pt"):
        convert(tmp_path / "none.pt", tmp_path / "x.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="ending in .safetensors"):
        convert(tmp_path / "x.pt", tmp_path / "y.pt")
    (tmp_path / "same.safetensors").write_bytes((tmp_path / "x.pt").read_bytes())
    with pytest.raises(CheckpointError, match="the file to convert"):
        convert(tmp_path / "same.safetensors", tmp_path / "same.safetensors")


@pytest.mark.usefixtures("reader_here")
def test_the_refused_object_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "options": argparse.Namespace(lr=1)}, tmp_path / "x.pt")
    with pytest.raises(UnsafeCheckpointError, match="argparse.Namespace") as refused:
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert "safe_globals" not in str(refused.value)


def test_a_missing_target_folder_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="folder"):
        convert(tmp_path / "x.pt", tmp_path / "none" / "x.safetensors")


def leaf() -> dict[str, object]:
    return {"w": torch.ones(2)}


def itself(kind: type[dict]) -> dict:
    content = kind(leaf())
    content["inner"] = content
    return content


def through_a_list() -> dict:
    content = leaf()
    content["list"] = [content, ([content],)]
    return content


def through_another() -> dict:
    one, other = leaf(), leaf()
    one["other"], other["one"] = other, one
    return one


def wrapped_in_itself(name: str) -> dict:
    content: dict = leaf()
    content[name] = content
    return content


def shared_to_depth(depth: int, width: int = 2) -> dict:
    content = leaf()
    for _ in range(depth):
        content = {f"child{index}": content for index in range(width)}
    return content


def nested_to_depth(depth: int) -> dict:
    content = leaf()
    for _ in range(depth):
        content = {"x": content}
    return content


LARGE_WORK = {
    "expanded": lambda: {"w": torch.ones(1).expand(800_000_000)},
    "expanded in a nest": lambda: {"a": {"b": {"w": torch.ones(4, 1).expand(4, 200_000_000)}}},
    "overlapping": lambda: {"w": torch.ones(4096).as_strided((1000,) * 4, (1, 1, 1, 1))},
    "one storage often": lambda: {f"w{n}": SHARED for n in range(1000)},
    "an expanded parameter": lambda: {"w": torch.nn.Parameter(torch.ones(1).expand(10**9))},
}
SHARED = torch.ones(100_000)


def read(content: object, folder: Path) -> dict[str, object]:
    """The report of the reader, in this process: starting one of its own takes seconds."""
    torch.save(content, folder / "x.pt")
    size = (folder / "x.pt").stat().st_size
    most = module.WRITTEN_BYTES + module.WRITTEN_FACTOR * size
    return convert_worker.reported(str(folder / "x.pt"), str(folder / "x.safetensors"), most)


@pytest.mark.parametrize("kind", LARGE_WORK)
def test_a_small_file_makes_no_large_work(tmp_path: Path, kind: str) -> None:
    assert "the same memory" in str(read(LARGE_WORK[kind](), tmp_path)["error"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt"]


@pytest.mark.parametrize(
    ("content", "tensors"),
    [
        (itself(dict), {"w"}),
        (itself(OrderedDict), {"w"}),
        (through_a_list(), {"w"}),
        (through_another(), {"w", "other.w"}),
        (shared_to_depth(30), {".".join(["child0"] * 30 + ["w"])}),
        (shared_to_depth(30, width=100), {".".join(["child0"] * 30 + ["w"])}),
    ],
)
def test_every_dictionary_is_entered_once(tmp_path: Path, content: dict, tensors: set[str]) -> None:
    assert read(content, tmp_path)["left_out"]
    assert set(load_file(tmp_path / "x.safetensors")) == tensors


@pytest.mark.parametrize(
    ("content", "noun"),
    [
        (wrapped_in_itself("model"), "itself"),
        (wrapped_in_itself("state_dict"), "itself"),
        (nested_to_depth(40), "nested"),
        (nested_to_depth(200), "nested"),
        ({"n" * 2000: torch.ones(1)}, "name"),
    ],
)
def test_what_has_no_end_or_no_name_is_refused(tmp_path: Path, content: dict, noun: str) -> None:
    assert noun in str(read(content, tmp_path)["error"])


def test_every_entry_that_is_left_out_is_named_with_its_reason(tmp_path: Path) -> None:
    content: dict[str, dict] = {
        "model": {
            "w": torch.ones(2),
            "sparse": torch.eye(2).to_sparse(),
            "complex": torch.ones(1, dtype=torch.complex64),
            "list": [torch.ones(1)],
            (1, 2): torch.ones(1),
        },
        "scale": torch.ones(1),
    }
    content["model"]["twin"] = content["model"]["nest"] = {"v": torch.zeros(1)}
    report = read(content, tmp_path)
    assert set(load_file(tmp_path / "x.safetensors")) == {"w", "twin.v"}
    assert dict(report["left_out"]) == {  # type: ignore[call-overload]
        "scale": "it lies beside 'model', which holds the model",
        "sparse": "it is a sparse tensor",
        "complex": "its dtype is complex64",
        "list": "it is no tensor (list)",
        "(tuple)": "its key is no text or number",
        "nest": "it is the same dictionary as twin",
    }


def test_a_negated_view_keeps_its_sign(tmp_path: Path) -> None:
    negated = torch.tensor([3 - 4j]).conj().imag
    assert negated.is_neg()
    assert read({"w": negated}, tmp_path)["tensors"] == 1
    assert load_file(tmp_path / "x.safetensors")["w"].tolist() == [4.0]


@pytest.mark.parametrize("name", ["none.pt", "folder.pt", "pipe.pt", "a\0.pt", "x" * 300])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(CheckpointError):
        convert(tmp_path / name, tmp_path / "x.safetensors")


@pytest.mark.usefixtures("reader_here")
def test_a_compressed_file_is_unpacked(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.namelist():
            small.writestr(entry, plain.read(entry))
    convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], torch.arange(1000.0))
