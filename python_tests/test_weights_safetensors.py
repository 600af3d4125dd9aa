# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile files end in CheckpointError; what we write is what the safetensors library reads."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.peak_memory import alone, counted
from safetensors.torch import load_file, save_file

from ardiff_engine.errors import CheckpointError, OutOfMemoryError, UnsafeCheckpointError
from ardiff_engine.weights.safetensors_file import SafetensorsFile, write_safetensors

CPU = torch.device("cpu")


def container(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "empty file": b"",
    "seven bytes": b"\0" * 7,
    "no header": struct.pack("<Q", 0),
    "header of 2**63 bytes": container({}, length=2**63),
    "header of 2**64-1 bytes": container({}, length=2**64 - 1),
    "header of 200 MB": container({}, length=200_000_000),
    "header longer than the file": container({"a": tensor([1], 0, 4)}, b"\0" * 4, length=5000),
    "header is no JSON": container(b"{nonsense"),
    "header is a list": container([1, 2]),
    "header is not UTF-8": container(b'{"\xff": 1}'),
    "deep JSON": container(b"[" * 100_000),
    "offsets outside": container({"a": tensor([4], 0, 16)}, b"\0" * 8),
    "offset of 2**62": container({"a": tensor([1], 2**62, 2**62 + 4)}, b"\0" * 4),
    "negative offset": container({"a": tensor([1], -4, 0)}, b"\0" * 4),
    "reversed offsets": container({"a": tensor([1], 4, 0)}, b"\0" * 4),
    "overlap": container({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, b"\0" * 12),
    "gap": container({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, b"\0" * 12),
    "trailing bytes": container({"a": tensor([1], 0, 4)}, b"\0" * 40),
    "size and shape differ": container({"a": tensor([3], 0, 4)}, b"\0" * 4),
    "shape overflows": container({"a": tensor([2**40, 2**40], 0, 4)}, b"\0" * 4),
    "negative shape": container({"a": tensor([-1], 0, 4)}, b"\0" * 4),
    "unknown dtype": container({"a": tensor([1], 0, 4, "F99")}, b"\0" * 4),
    "same name twice": container(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b"\0" * 8,
    ),
    "a shape of 10,000 numbers": container({"a": tensor([2] * 10_000, 0, 4)}, b"\0" * 4),
    "a header of 100,000 names": container(
        b"{%s}"
        % b",".join(b'"a%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(100_000))
    ),
    "a header padded to 20 MB": container(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + b" " * 20_000_000, b"\0" * 4
    ),
    "tensor without elements": container({"a": tensor([0, 5], 0, 0)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError, match="model.safetensors") as caught:
        SafetensorsFile(path)
    assert not isinstance(caught.value, UnsafeCheckpointError)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


def test_random_header_damage_never_escapes_the_error_type(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, path)
    whole = path.read_bytes()
    random = np.random.RandomState(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for position in random.randint(0, len(whole) - 28, size=random.randint(1, 4)):
            damaged[position] = random.randint(256)
        path.write_bytes(damaged)
        try:
            file = SafetensorsFile(path)
            for name in file.shapes:
                file.read(name, CPU, torch.float32)
        except CheckpointError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PTH"])
def test_pickle_suffixes_name_the_fix(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UnsafeCheckpointError, match=r"ardiff convert \S*x\.\w+ \S*x\.safetensors"):
        SafetensorsFile(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("zipped", [True, False])
def test_disguised_pickle(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError):
        SafetensorsFile(path)


def refused_for_memory(file: str, bytes_left: int) -> list[str]:
    """The error of a process that may take so much more."""
    resource = pytest.importorskip("resource")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + bytes_left
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with pytest.raises((OutOfMemoryError, CheckpointError)) as raised:
        SafetensorsFile(file)
    return [raised.type.__name__, str(raised.value)]


@counted
def test_a_file_larger_than_memory_is_not_called_damaged(tmp_path: Path) -> None:
    """A hole in place of weights takes no room on the disk."""
    size = 4 << 30
    path = tmp_path / "large.safetensors"
    header = container({"a": tensor([size // 4], 0, size)})
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    kind, message = alone(refused_for_memory, str(path), 1 << 30)
    assert kind == "OutOfMemoryError"
    assert f"{len(header) + size:,} bytes" in message and "Copy" not in message and "shards" in message


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        SafetensorsFile(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(tmp_path: Path, value: float) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"good": torch.ones(2), "blocks.0.bad": torch.tensor([1.0, value])}, path)
    file = SafetensorsFile(path)
    file.read("good", CPU, torch.float32)
    with pytest.raises(CheckpointError, match="blocks.0.bad"):
        file.read("blocks.0.bad", CPU, torch.float32)


def test_overflow_of_a_narrow_dtype(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.tensor([1e6])}, path)
    with pytest.raises(CheckpointError, match="float16"):
        SafetensorsFile(path).read("a", CPU, torch.float16)


def test_integers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2, dtype=torch.int64)}, path)
    with pytest.raises(CheckpointError, match="int64"):
        SafetensorsFile(path).read("a", CPU, torch.float32)


def test_reading_is_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    read = SafetensorsFile(path).read("a", CPU, torch.float32)
    with open(path, "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff" * 4)
    assert torch.equal(read, torch.ones(1000))


def test_writer_is_read_by_the_library(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "transposed": shared.T,
        "shared": shared,
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(5).half(),
        "bfloat": torch.randn(1, 3).bfloat16(),
    }
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as stream:
        write_safetensors(stream, tensors, {"note": "ü"})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert torch.equal(read[name], expected) and read[name].dtype == expected.dtype
    assert SafetensorsFile(path).metadata == {"note": "ü"}


def test_writer_refuses_integers() -> None:
    stream = io.BytesIO()
    with pytest.raises(CheckpointError, match="int32"):
        write_safetensors(stream, {"a": torch.ones(1, dtype=torch.int32)}, {})
    assert stream.getvalue() == b""


@pytest.fixture
def shards(tmp_path):
    """Two files and their index."""
    parts = {
        "a.safetensors": {"x": torch.ones(2)},
        "b.safetensors": {"y": torch.arange(3.0), "z": torch.zeros(1, 2)},
    }
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / name, {"format": "pt"})
    write_index(tmp_path, {key: name for name, tensors in parts.items() for key in tensors})
    return tmp_path


def write_index(folder, files):
    text = json.dumps({"metadata": {"total_size": 28}, "weight_map": files})
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards_read_as_one_file(shards):
    for path in (shards, shards / "model.safetensors.index.json"):
        file = SafetensorsFile(path)
        assert file.shapes == {"x": (2,), "y": (3,), "z": (1, 2)}
        assert file.read("y", CPU, torch.float32).tolist() == [0, 1, 2]
        assert file.read("x", CPU, torch.float32).tolist() == [1, 1]


@pytest.mark.parametrize(
    "files, noun",
    [
        ({"x": "a.safetensors", "y": "b.safetensors"}, "'z'"),
        ({"x": "b.safetensors", "y": "b.safetensors", "z": "b.safetensors"}, "'x'"),
        ({"x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors", "w": "a.safetensors"}, "'w'"),
        ({"x": "../a.safetensors"}, "beside"),
        ({"x": "a.pt"}, "beside"),
        ({"x": 3}, "beside"),
        ({"x": "absent.safetensors"}, "absent"),
        ({}, "weight_map"),
        ([], "weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(shards, files, noun):
    write_index(shards, files)
    with pytest.raises(CheckpointError, match=noun):
        SafetensorsFile(shards)


def test_an_index_that_is_none(shards):
    index = shards / "model.safetensors.index.json"
    for text in (b"", b"[1]", b"\xff", b"[" * 100_000, b"{"):
        index.write_bytes(text)
        with pytest.raises(CheckpointError, match="index"):
            SafetensorsFile(shards)
