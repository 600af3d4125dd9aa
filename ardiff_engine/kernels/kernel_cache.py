# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels on disk, so that NVRTC compiles each once per machine and not once per process.

A file `<key>.kernel` holds one line, `symbol sha256`, and the binary after it. It is written under another
name and renamed, so readers see all of it or nothing; one that is damaged counts as absent. Nothing is ever
rewritten in place and a key never changes its meaning (see nvrtc_compiler.key), so any number of processes
may share the folder.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A cubin, or PTX where NVRTC does not know the GPU, and the name of the kernel in it."""

    symbol: str
    binary: bytes


def cache_folder() -> Path:
    """$ARDIFF_CACHE, else ardiff-engine in $XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("ARDIFF_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "ardiff-engine"


def load(key: str) -> CompiledKernel | None:
    """The kernel that was stored under this key; None where there is none, or a damaged one."""
    try:
        head, _, binary = _path(key).read_bytes().partition(b"\n")
        symbol, digest = head.decode("ascii").split(" ")
    except (OSError, ValueError):
        return None
    return CompiledKernel(symbol, binary) if digest == _digest(binary) else None


def store(key: str, kernel: CompiledKernel) -> None:
    """Keeps a kernel for later processes; warns, once, where the folder cannot be written."""
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, unfinished = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(f"{kernel.symbol} {_digest(kernel.binary)}\n".encode("ascii") + kernel.binary)
            os.replace(unfinished, path)
        except OSError:
            os.unlink(unfinished)
            raise
    except OSError as error:
        _warn_once(str(path.parent), error.strerror or type(error).__name__)


@cache
def _warn_once(folder: str, why: str) -> None:
    warnings.warn(
        f"compiled CUDA kernels are not kept: {folder} cannot be written ({why}), so every process compiles "
        "them again. Set ARDIFF_CACHE to a folder that can be written.",
        RuntimeWarning,
        stacklevel=2,
    )


def _path(key: str) -> Path:
    return cache_folder() / "kernels" / f"{key}.kernel"


def _digest(binary: bytes) -> str:
    return hashlib.sha256(binary).hexdigest()
