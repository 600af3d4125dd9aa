# SPDX-License-Identifier: Apache-2.0
"""Reading safetensors files header first, and writing them as a stream."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from ardiff_engine import arguments
from ardiff_engine.errors import CheckpointError, OutOfMemoryError, UnsafeCheckpointError, explain
from ardiff_engine.parsing import check_regular, parsing, read_json, shown

INDEX_SUFFIX = ".safetensors.index.json"
NAMES = ("model", "diffusion_pytorch_model")
"""What people call the weights of a folder: a file of that name, or an index of shards."""
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
HEADER_BYTES = 1 << 20
HEADER_SHARE = 16
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_KINDS = {"I": "int", "U": "uint", "F": "float"}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies: `size` bytes from `start` on."""

    file: Path
    code: str
    shape: tuple[int, ...]
    start: int
    size: int


class SafetensorsFile:
    """The names and shapes of a safetensors file, or of the shards that an index lists; tensors are read one
    by one when asked for.

    Opening checks the whole header (length, offsets inside the file, no gaps, no overlaps), so a damaged file
    is refused before any memory is spent on it. Shards must hold exactly what their index says.

    Attributes:
        path: the file, or the index.
        shapes: shape of every tensor, by name.
        metadata: the text entries of the header; of shards, those of the first one.

    Raises:
        UnsafeCheckpointError: a pickle-based file.
        CheckpointError: no such file, a damaged file, a tensor without elements, or shards that do not fit
            their index.
        OutOfMemoryError: a file that is larger than the memory that it can be mapped to.
    """

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str] = NAMES) -> None:
        """names: what the file of a folder may be called, without its ending."""
        self.path = resolve(path, names)
        indexed = _read_index(self.path) if self.path.name.endswith(INDEX_SUFFIX) else None
        files = [self.path.name] if indexed is None else list(dict.fromkeys(indexed.values()))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.metadata: dict[str, str] = {}
        self._stored: dict[str, _Stored] = {}
        for file in [self.path.parent / name for name in files]:
            tensors, metadata = _open(file)
            for name, stored in tensors.items():
                if indexed is not None and indexed.get(name) != file.name:
                    raise CheckpointError(
                        f"{file} holds {name!r}, which {self.path.name} expects in {indexed.get(name)}: the "
                        "shards are of different saves. Copy all of them and the index again."
                    )
                self.shapes[name], self._stored[name] = stored.shape, stored
            self.metadata = self.metadata or metadata
        missing = [name for name in indexed or () if name not in self.shapes]
        if missing:
            raise CheckpointError(
                f"{len(missing)} tensors that {self.path} lists are in none of its {len(files)} files, "
                f"{missing[0]!r} first. Copy all shards and the index again."
            )

    def read(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """One tensor. Raises CheckpointError if it is not of a float type, or holds NaN or infinity."""
        stored = self._stored[name]
        if stored.code not in _DTYPES:
            raise CheckpointError(
                explain(
                    f"dtype of tensor {name!r} of {self.path}",
                    got=_KINDS.get(stored.code[0], stored.code[0]) + stored.code[1:],
                    expected=", ".join(str(known) for known in _CODES),
                    fix="Convert the weights to a float type.",
                )
            )
        # Not from a mapped file: its pages would stay in memory beside the copy.
        tensor = torch.empty(stored.shape, dtype=_DTYPES[stored.code])
        with parsing(f"tensor {name!r} of {self.path}", fix="Copy the file again."):
            with open(stored.file, "rb", buffering=0) as file:
                _read_into(file, stored.start, tensor.view(-1).view(torch.uint8).numpy().data)
        tensor = tensor.to(device=device, dtype=dtype)
        # The least and the largest are NaN where one is; isfinite makes tensors as large as this one.
        if not bool(torch.isfinite(torch.stack(tensor.aminmax())).all()):
            raise CheckpointError(
                explain(
                    f"tensor {name!r} of {self.path}",
                    got=f"NaN or infinity as {dtype}",
                    expected="finite weights",
                    fix="Use a checkpoint from before training diverged, or a wider dtype.",
                )
            )
        return tensor

    def bytes_as(self, dtype: torch.dtype | None = None) -> int:
        """Of all tensors, as they are stored or in another dtype."""
        if dtype is None:
            return sum(stored.size for stored in self._stored.values())
        return sum(prod(shape) for shape in self.shapes.values()) * dtype.itemsize


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors one after the other, so that no second copy of the model is held in memory.

    Tensors that share memory are written in full. Raises CheckpointError for a dtype that is not a float
    type.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise CheckpointError(
                explain(
                    f"dtype of {name!r}", got=tensor.dtype, expected="a float type", fix="Save a float model."
                )
            )
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def resolve(path: str | os.PathLike[str], names: Sequence[str] = NAMES) -> Path:
    """The safetensors file, or the index of shards, that `path` means: itself, or what a folder holds.

    Raises UnsafeCheckpointError for a pickle-based file, CheckpointError if there is no file.
    """
    found = arguments.path("path", path)
    if found.suffix.lower() in PICKLE_SUFFIXES:
        raise unsafe(found)
    with parsing(found, fix="Check the path."):
        if found.is_dir():
            held = [found / f"{name}{suffix}" for name in names for suffix in (".safetensors", INDEX_SUFFIX)]
            found = next((file for file in held if file.is_file()), held[0])
        if found.is_file():
            return found
    raise CheckpointError(
        explain("weights", got=f"no file {found}", expected="a .safetensors file", fix="Check the path.")
    )


def unsafe(path: Path) -> UnsafeCheckpointError:
    """The error for a pickle-based file, with the command that converts it."""
    return UnsafeCheckpointError(
        explain(
            f"{path} is pickle-based, and such files can run code when opened",
            got=path.suffix or "a pickle",
            expected="a .safetensors file",
            fix=f"Convert it once: ardiff convert {path} {path.with_suffix('.safetensors')}",
        )
    )


def _read_into(file: BinaryIO, start: int, room: memoryview) -> None:
    file.seek(start)
    while len(room):
        count = file.readinto(room)  # type: ignore[attr-defined]  # at most 2 GiB at a time
        if not count:
            raise EOFError(f"it ends {len(room)} bytes too early")
        room = room[count:]


def _open(path: Path) -> tuple[dict[str, _Stored], dict[str, str]]:
    """Its tensors and its metadata."""
    try:
        length = _check_header(path)
        with parsing(path, fix="Copy the file again."):
            names, metadata = _checked(path)
            with open(path, "rb") as raw:
                raw.seek(8)
                header = json.loads(raw.read(length))
        tensors = {}
        for name in names:
            start, end = header[name]["data_offsets"]
            shape = tuple(header[name]["shape"])
            tensors[name] = _Stored(path, header[name]["dtype"], shape, 8 + length + start, end - start)
    except CheckpointError as error:
        if _looks_pickled(path):
            raise unsafe(path) from error
        raise
    for name, stored in tensors.items():
        if 0 in stored.shape:
            raise CheckpointError(
                explain(
                    f"tensor {name!r} of {path}",
                    got=f"shape {list(stored.shape)}",
                    expected="at least one element",
                    fix="Save the model again.",
                )
            )
    return tensors, metadata


def _checked(path: Path) -> tuple[list[str], dict[str, str]]:
    """Its names and its metadata, by the library, which refuses what is not in order.

    OutOfMemoryError where the file cannot be mapped: for a moment that takes room for all of it.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return list(file.keys()), file.metadata() or {}
    except Exception as failure:
        if not isinstance(failure, MemoryError) and os.strerror(errno.ENOMEM) not in str(failure):
            raise
        raise OutOfMemoryError(
            explain(
                f"memory to open {path}",
                got="less than that",
                expected=f"room to map all of it, {path.stat().st_size:,} bytes",
                fix="The file is not damaged: free memory, raise the limit of the process (ulimit -v), or "
                "save the model in shards, which are opened one by one.",
            )
        ) from failure


def _read_index(path: Path) -> dict[str, str]:
    """The name of the file of each tensor; all files lie beside the index."""
    index = read_json(path)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f'{path} is no index of shards: it has no "weight_map" from tensors to files.')
    for name, file in files.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} says that {shown(name)} is in {shown(file)}, expected a .safetensors file beside it."
            )
    return files


def _check_header(path: Path) -> int:
    """Its length: what the file says, and no more than a file of this size can need."""
    size = check_regular(path)
    with parsing(path, fix="Check its permissions."), open(path, "rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise CheckpointError(f"{path} has {size} bytes and claims a header of {length}. Copy it again.")
    if length > HEADER_BYTES + size // HEADER_SHARE:
        raise CheckpointError(f"{path} has a header of {length} bytes, too much for a file of {size}.")
    return length


def _looks_pickled(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith(_PICKLE_STARTS)
    except OSError:
        return False
