# SPDX-License-Identifier: Apache-2.0
"""Hostile .pt files: changed bytes and archives, programs of random opcodes, large work in few bytes."""

from __future__ import annotations

import argparse
import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tools.fuzz.mutate import mutated


def write(rng: random.Random, path: Path) -> None:
    how = rng.randrange(10)
    if how < 3:
        path.write_bytes(mutated(saved(state(rng), rng), rng))
    elif how < 5:
        path.write_bytes(changed_archive(saved(state(rng), rng), rng))
    elif how < 7:
        path.write_bytes(in_archive(program(rng), rng))
    elif how < 9:
        path.write_bytes(saved(rng.choice(LARGE_WORK)(rng), rng))
    else:
        path.write_bytes(pickle.dumps(rng.choice(REFUSED)(), protocol=rng.choice((0, 1, 2, 4, 5))))


def saved(content: Any, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    return buffer.getvalue()


def state(rng: random.Random) -> Any:
    """A good state of a model, as people save it."""
    base = torch.arange(64.0)
    tensors = OrderedDict(
        (f"layer{n}.weight", base[n : n + 8].reshape(2, 4).to(rng.choice((torch.float32, torch.bfloat16))))
        for n in range(rng.randrange(1, 6))
    )
    content: Any = tensors if rng.random() < 0.5 else {"state_dict": tensors, "epoch": 3, "lr": torch.ones(1)}
    return {"model": content} if rng.random() < 0.3 else content


def _itself(rng: random.Random) -> Any:
    content: Any = rng.choice((dict, OrderedDict))(w=torch.ones(2))
    content[rng.choice(("inner", "model", "state_dict", 3, (1, 2)))] = content
    return content


def _through_lists(rng: random.Random) -> Any:
    content: dict[str, Any] = {"w": torch.ones(2)}
    inner: Any = [content]
    for _ in range(rng.randrange(5)):
        inner = rng.choice((lambda x: [x, x], lambda x: (x,), lambda x: {"x": x}))(inner)
    content["list"] = inner
    return content


def _shared(rng: random.Random) -> Any:
    content: Any = {"w": torch.ones(2)}
    for _ in range(rng.randrange(5, 31)):
        content = {str(n): content for n in range(rng.choice((2, 3, 50)))}
    return content


def _expanded(rng: random.Random) -> Any:
    size = rng.choice((10**6, 10**9, 10**12))
    tensor = rng.choice(
        (
            torch.ones(1).expand(size),
            torch.ones(4, 1).expand(4, size),
            torch.ones(100).as_strided((50, size), (1, 0)),
            torch.nn.Parameter(torch.ones(1).expand(size)),
        )
    )
    return rng.choice(({"w": tensor}, {"a": {"b": tensor}}, {"model": {"w": tensor}, "w": tensor}, [tensor]))


def _often(rng: random.Random) -> Any:
    tensor = torch.ones(rng.choice((10, 100_000)))
    return {f"w{n}": tensor if rng.random() < 0.5 else tensor[1:] for n in range(rng.choice((10, 3000)))}


def _deep(rng: random.Random) -> Any:
    content: Any = {"w": torch.ones(2)}
    for _ in range(rng.choice((30, 40, 200))):
        content = {rng.choice(("x", "n" * 100, "n" * 2000)): content}
    return content


def _odd_tensors(rng: random.Random) -> Any:
    odd = [
        *(torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(), torch.empty(3, device="meta")),
        *(torch.tensor(1.0), torch.empty(0), torch.ones(2, dtype=torch.complex64).conj()),
        *(
            torch.tensor([3 - 4j]).conj().imag,
            torch.ones(2, dtype=torch.bool),
            torch.ones(2, 3).T,
        ),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ]
    return {f"w{n}": tensor for n, tensor in enumerate(rng.sample(odd, rng.randrange(1, len(odd))))}


def _no_dictionary(rng: random.Random) -> Any:
    return rng.choice(
        ([torch.ones(1)], torch.ones(2), 3, None, (), {}, {"epoch": 1}, set(), defaultdict(int))
    )


LARGE_WORK: tuple[Callable[[random.Random], Any], ...] = (
    *(_itself, _through_lists, _shared, _expanded, _often, _deep, _odd_tensors, _no_dictionary),
)


class Payload:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("gs --version",)


class Opener:
    def __reduce__(self) -> Any:
        return open, ("/etc/passwd",)


REFUSED: tuple[Callable[[], Any], ...] = (
    *(Payload, Opener, argparse.Namespace, object, lambda: {"w": torch.float32, "x": Payload()}),
    *(lambda: len, lambda: bytearray(9), lambda: {1, 2}, lambda: 3 + 4j),
)


def changed_archive(data: bytes, rng: random.Random) -> bytes:
    """The zip file written anew: an entry changed, left out, doubled, renamed, compressed, or of zeros."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return mutated(data, rng)
    source, buffer = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", method) as target:
        names = source.namelist()
        victim, how = rng.choice(names), rng.randrange(6)
        for name in names:
            content = source.read(name)
            if name == victim and how == 0:
                continue
            if name == victim and how == 1:
                content = mutated(content, rng)
            if name == victim and how == 2:
                content = bytes(rng.choice((0, 10**5, 10**7, 10**8)))
            if name == victim and how == 3:
                target.writestr(rng.choice((name + "x", "../" + name, "/" + name, "constants.pkl")), content)
            target.writestr(name, content)
    return mutated(buffer.getvalue(), rng) if rng.random() < 0.2 else buffer.getvalue()


def in_archive(program_bytes: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return program_bytes
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in (("data.pkl", program_bytes), ("version", b"3\n"), ("data/0", bytes(64))):
            target.writestr(f"archive/{name}", content)
    return buffer.getvalue()


GLOBALS = (
    *("torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "torch\nFloatStorage", "torch\nSize"),
    *("torch._utils\n_rebuild_parameter", "torch._utils\n_rebuild_sparse_tensor", "builtins\nbytearray"),
    *("torch._utils\n_rebuild_meta_tensor_no_storage", "torch._utils\n_rebuild_wrapper_subclass"),
    *(
        "torch._utils\n_rebuild_qtensor",
        "torch._tensor\n_rebuild_from_type_v2",
        "torch\nTensor",
        "torch\ndevice",
    ),
    *("torch._utils\n_rebuild_device_tensor_from_numpy", "torch._utils\n_rebuild_nested_tensor"),
    *("torch.nn.parameter\nParameter", "torch\nfloat32", "_codecs\nencode", "collections\nCounter"),
    *(
        "os\nsystem",
        "builtins\neval",
        "builtins\ngetattr",
        "torch.hub\nload",
        "subprocess\nPopen",
        "torch\nload",
    ),
)


def program(rng: random.Random) -> bytes:
    """Random opcodes, most of them such that the machine goes on."""
    parts = [b"\x80\x02", rng.choice((b"}", b"(", b"]", b""))]
    for _ in range(rng.choice((5, 20, 100, 1000))):
        number = rng.randrange(300)
        parts.append(
            rng.choice(
                (
                    *(b"}", b"]", b")", b"(", b"N", b"\x88", b"K" + bytes([number % 256])),
                    *(
                        b"J" + struct.pack("<i", rng.choice((-1, 0, 2**31 - 1, number))),
                        b"0",
                        b"2",
                        b"e",
                        b"a",
                    ),
                    *(
                        b"q" + bytes([number % 8]),
                        b"h" + bytes([number % 8]),
                        b"s",
                        b"u",
                        b"t",
                        b"\x85",
                        b"\x86",
                    ),
                    *(b"X" + struct.pack("<I", 1) + b"w", b"X" + struct.pack("<I", 2**31)),
                    *(b"c" + rng.choice(GLOBALS).encode() + b"\n", b"R", b"R", b"\x81", b"b", b"Q"),
                    *(
                        b"\x8a" + bytes([8]) + struct.pack("<q", 2**62),
                        b"\x87",
                        b"G" + struct.pack(">d", 1e300),
                    ),
                )
            )
        )
    return b"".join(parts) + b"."
