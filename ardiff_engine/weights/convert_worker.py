# SPDX-License-Identifier: Apache-2.0
"""A program of its own: reads one pickle-based file with torch's restricted unpickler, writes safetensors.

Usage: convert_worker.py JSON, with {"source", "target", "memory", "seconds", "bytes", "path"}: the files, the
bytes and the seconds of processor time that it may use beyond those of its own start, the bytes of tensors
that it may write, and the folders where the caller finds its modules. Prints one JSON object:
{"tensors": n, "left_out": [[name, why], ...]}, or {"error": "...", "kind": "file" | "unsafe" | "import"}.
"""

from __future__ import annotations

import importlib
import json
import pickle
import re
import resource
import signal
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WRAPPERS = ("state_dict", "model")
NAMED_OBJECT = re.compile(r"GLOBAL ([\w.]+)")
MAX_NESTING = 32
MAX_NAME = 1000
MAX_LEFT_OUT = 1000
ZIP_START = b"PK\x03\x04"
CODES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bool": "BOOL"},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}


class Walk:
    """The tensors of nested dictionaries by their joined names, and why the other entries are left out.

    Every dictionary is entered once, so the work is that of the objects in the file, however they refer to
    each other.
    """

    def __init__(self, most_bytes: int) -> None:
        self.tensors: dict[str, Any] = {}
        self.left_out: list[tuple[str, str]] = []
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entered: dict[int, str] = {}

    def unwrap(self, content: Mapping[object, object]) -> None:
        """Enters the innermost "state_dict" or "model" and leaves out what lies beside it."""
        path = ""
        while wrapper := next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None):
            self._enter(content, path)
            beside = f"it lies beside {wrapper!r}, which holds the model"
            self.left_out += [(self._name(path, name), beside) for name in content if name != wrapper]
            path = f"{path}{wrapper}."
            inner = content[wrapper]
            assert isinstance(inner, Mapping)
            content = inner
        self.collect(content, "", 0)

    def collect(self, content: Mapping[object, object], prefix: str, depth: int) -> None:
        if depth > MAX_NESTING:
            raise ValueError(f"dictionaries are nested deeper than {MAX_NESTING} levels")
        self._enter(content, prefix)
        for key, value in content.items():
            name = self._name(prefix, key)
            if not isinstance(key, str | int):
                self.left_out.append((name, "its key is no text or number"))
            elif not isinstance(value, Mapping):
                self._add(name, value)
            elif id(value) in self._entered:
                again = self._entered[id(value)].rstrip(".") or "the whole file"
                self.left_out.append((name, f"it is the same dictionary as {again}"))
            else:
                self.collect(value, f"{name}.", depth + 1)

    def _enter(self, content: Mapping[object, object], path: str) -> None:
        if id(content) in self._entered:
            raise ValueError("a dictionary that contains itself")
        self._entered[id(content)] = path

    def _name(self, prefix: str, key: object) -> str:
        text = str(key) if isinstance(key, str | int) else f"({type(key).__name__})"
        if len(prefix) + len(text) > MAX_NAME:
            raise ValueError(f"a name longer than {MAX_NAME} characters")
        return prefix + text

    def _add(self, name: str, value: object) -> None:
        why = why_not(value)
        if why:
            self.left_out.append((name, why))
            return
        if name in self.tensors:
            raise ValueError(f"two tensors are called {name!r}")
        tensor: Any = value
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes > self._most_bytes:
            raise ValueError(
                f"its tensors, written in full, take more than {self._most_bytes} bytes: parts of them are "
                "the same memory many times over"
            )
        self.tensors[name] = tensor


def why_not(value: object) -> str:
    """Why safetensors cannot hold a value; "" if it can."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"it is no tensor ({type(value).__name__})"
    if value.is_quantized or value.is_nested or value.is_meta or value.layout != torch.strided:
        kind = {value.is_quantized: "quantized", value.is_nested: "nested", value.is_meta: "empty (meta)"}
        return f"it is a {kind.get(True, 'sparse')} tensor"
    if not value.numel():
        return "it has no elements"
    dtype = str(value.dtype).removeprefix("torch.")
    return "" if dtype in CODES else f"its dtype is {dtype}"


def convert(source: str, target: str, most_bytes: int) -> dict[str, object]:
    """Writes `target` and returns the report. Raises whatever torch raises, and ValueError."""
    import torch

    content = torch.load(source, map_location="cpu", weights_only=True, mmap=can_be_mapped(source))
    if not isinstance(content, Mapping):
        raise ValueError(f"the file holds a {type(content).__name__}, not a dictionary of tensors")
    walk = Walk(most_bytes)
    walk.unwrap(content)
    if not walk.tensors:
        raise ValueError("the file holds no tensors")
    write(walk.tensors, target)
    more = len(walk.left_out) - MAX_LEFT_OUT
    rest = [("…", f"and {more} more entries")] if more > 0 else []
    return {"tensors": len(walk.tensors), "left_out": [*walk.left_out[:MAX_LEFT_OUT], *rest]}


def can_be_mapped(source: str) -> bool:
    """Whether the tensors lie in the file as they are: then one takes memory only while it is written."""
    with open(source, "rb") as file:
        if file.read(4) != ZIP_START or not zipfile.is_zipfile(file):
            return False
        with zipfile.ZipFile(file) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def write(tensors: Mapping[str, Any], target: str) -> None:
    """A safetensors file, one tensor after the other; the widest numbers first, so that all lie aligned."""
    import torch

    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        stop = offset + tensors[name].numel() * tensors[name].element_size()
        code = CODES[str(tensors[name].dtype).removeprefix("torch.")]
        header[name] = {
            "dtype": code,
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            plain = tensors[name].detach().resolve_conj().resolve_neg()
            plain = plain.clone(memory_format=torch.contiguous_format)
            file.write(plain.reshape(-1).view(torch.uint8).numpy().data)


def refusal(message: str) -> str:
    """What torch's restricted unpickler found, without its advice to open the file all the same."""
    named = NAMED_OBJECT.search(message)
    if named is None:
        return "something that is neither a tensor nor a plain container, or a damaged file"
    return f"a file that asks for the Python object {named.group(1)}"


def set_limits(memory: int, seconds: int, most_bytes: int) -> None:
    """Memory and time beyond what importing torch took, and the size of the file that is written."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    address_space = pages * resource.getpagesize() + memory
    used = resource.getrusage(resource.RUSAGE_SELF)
    processor = int(used.ru_utime + used.ru_stime) + 1 + seconds
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails instead
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CPU, (processor, processor + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * most_bytes, 2 * most_bytes))


def reported(source: str, target: str, most_bytes: int) -> dict[str, object]:
    """`convert`, with every failure as a report."""
    try:
        return convert(source, target, most_bytes)
    except pickle.UnpicklingError as error:
        return {"error": refusal(str(error)), "kind": "unsafe"}
    except MemoryError:
        return {"error": "a file that needs far more memory than its size", "kind": "file"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:500]}", "kind": "file"}


def main() -> None:
    options = json.loads(sys.argv[1])
    sys.path += options["path"]
    try:
        importlib.import_module("torch")
    except ImportError as error:
        report: dict[str, object] = {"error": str(error), "kind": "import"}
    else:
        set_limits(options["memory"], options["seconds"], options["bytes"])
        report = reported(options["source"], options["target"], options["bytes"])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
