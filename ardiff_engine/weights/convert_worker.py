# SPDX-License-Identifier: Apache-2.0
"""A program of its own: reads one pickle-based file with torch's restricted unpickler, writes safetensors.

Usage: convert_worker.py INPUT OUTPUT ADDRESS_SPACE_BYTES. Prints one JSON object:
{"tensors": n, "skipped": [...]}, or {"error": "...", "unsafe": bool}.
"""

from __future__ import annotations

import json
import pickle
import re
import resource
import sys
from collections.abc import Iterator, Mapping

import torch
from safetensors.torch import save_file

WRAPPERS = ("state_dict", "model")
NAMED_OBJECT = re.compile(r"GLOBAL ([\w.]+)")


def flatten(values: Mapping[object, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, name + ".")
        else:
            yield name, value


def is_wrapped(content: object, name: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(name), Mapping)


def convert(source: str, target: str) -> dict[str, object]:
    content = torch.load(source, map_location="cpu", weights_only=True)
    skipped: list[str] = []
    while wrapper := next((name for name in WRAPPERS if is_wrapped(content, name)), None):
        skipped += [str(name) for name in content if name != wrapper]
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"the file holds a {type(content).__name__}, not a dictionary of tensors")
    tensors: dict[str, torch.Tensor] = {}
    for name, value in flatten(content):
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            skipped.append(name)
        elif name in tensors:
            raise ValueError(f"two tensors are called {name!r}")
        else:
            tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
    if not tensors:
        raise ValueError("the file holds no tensors")
    save_file(tensors, target, metadata={"format": "pt"})
    return {"tensors": len(tensors), "skipped": skipped}


def refusal(message: str) -> str:
    """What torch's restricted unpickler found, without its advice to open the file all the same."""
    named = NAMED_OBJECT.search(message)
    if named is None:
        return "something that is neither a tensor nor a plain container, or a damaged file"
    return f"a file that asks for the Python object {named.group(1)}"


def main() -> None:
    source, target, memory = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    try:
        report = convert(source, target)
    except pickle.UnpicklingError as error:
        report = {"error": refusal(str(error)), "unsafe": True}
    except Exception as error:
        report = {"error": f"{type(error).__name__}: {error}", "unsafe": False}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
