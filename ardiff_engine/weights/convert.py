# SPDX-License-Identifier: Apache-2.0
"""Pickle-based weights become safetensors, without running what they contain."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ardiff_engine.errors import CheckpointError, UnsafeCheckpointError, explain
from ardiff_engine.files import staged
from ardiff_engine.parsing import check_regular
from ardiff_engine.weights.safetensors_file import SafetensorsFile

WORKER = Path(__file__).with_name("convert_worker.py")
# What the reader may take, beyond torch itself, for a file of a given size.
MEMORY_BYTES = 1 << 30
MEMORY_FACTOR = 4
SECONDS = 30
BYTES_PER_SECOND = 10_000_000
WRITTEN_BYTES = 1 << 20
WRITTEN_FACTOR = 4
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")


@dataclasses.dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` did: the file written, its number of tensors, and why which entries were left out."""

    path: Path
    tensors: int
    left_out: Mapping[str, str]


def convert(
    path_in: str | os.PathLike[str], path_out: str | os.PathLike[str], *, timeout_seconds: float = 3600.0
) -> Conversion:
    """Rewrites a .pt, .pth, .bin or .ckpt file as safetensors.

    The file is read by `torch.load(weights_only=True)` in a fresh process, so code in it is refused, and a
    crash of the reader stays there. A dictionary under "state_dict" or "model" is unwrapped, nested
    dictionaries are joined with dots, shared tensors are written in full, a dictionary that is met a second
    time is left out. `path_out` appears whole or not at all.

    What the reader may use follows from the size of the file: 4 times the file and 1 GiB of memory, 30 s and
    1 s per 10 MB of processor time, and 4 times the file and 1 MiB for what it writes.

    Raises:
        UnsafeCheckpointError: the file asks for more than tensors and plain containers.
        CheckpointError: no such file, no tensors in it, a damaged file, one that needs more than the limits,
            or `path_out` cannot be written.
    """
    source, target = Path(path_in), Path(path_out)
    size = check_regular(source)
    if target.suffix != ".safetensors":
        raise CheckpointError(
            f"file to write: got {target}, expected a name ending in .safetensors. Rename it."
        )
    if target.exists() and target.samefile(source):
        raise CheckpointError(
            "file to write: got the file to convert, expected another one. Choose another name."
        )
    if not target.parent.is_dir():
        raise CheckpointError(
            f"file to write: got {target}, in a folder that does not exist. Make {target.parent} first."
        )
    with staged(target) as (temporary,):
        report = _run_worker(source, temporary, size, timeout_seconds)
        check_written(source, temporary)
    return Conversion(path=target, tensors=report["tensors"], left_out=dict(report["left_out"]))


def check_written(source: Path, written: Path) -> None:
    """Raises CheckpointError, naming `source`, where what was written of it could not be loaded."""
    try:
        SafetensorsFile(written)
    except CheckpointError as error:
        raise CheckpointError(f"converting {source}: the result could not be loaded. {error}") from error


def _run_worker(source: Path, temporary: Path, size: int, timeout_seconds: float) -> dict[str, Any]:
    seconds = SECONDS + size // BYTES_PER_SECOND
    options = {
        "source": str(source.resolve()),
        "target": str(temporary.resolve()),
        "memory": MEMORY_BYTES + MEMORY_FACTOR * size,
        "seconds": seconds,
        "bytes": WRITTEN_BYTES + WRITTEN_FACTOR * size,
        # -I leaves out the user's own packages, where torch may be: the reader looks where this process does.
        "path": [folder for folder in sys.path if os.path.isabs(folder)],
    }
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment["MALLOC_ARENA_MAX"] = "1"  # each arena reserves address space, which is limited
    try:
        result = subprocess.run(
            [sys.executable, "-I", str(WORKER), json.dumps(options)],
            capture_output=True,
            env=environment,
            timeout=timeout_seconds,
            check=False,
            text=True,
            errors="replace",
        )
        report: dict[str, Any] = json.loads(result.stdout)
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"converting {source} took longer than {timeout_seconds} s. Raise timeout_seconds."
        ) from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"converting {source}: {_ended(result, seconds)}") from error
    if "error" not in report:
        return report
    if report["kind"] == "import":
        raise CheckpointError(
            f"converting {source}: the reader, a process of its own, cannot import what it needs: "
            f"{report['error']}. Install it for {sys.executable}."
        )
    if report["kind"] == "unsafe":
        raise UnsafeCheckpointError(
            explain(
                f"{source} was not opened",
                got=report["error"],
                expected="tensors in plain dictionaries",
                fix="Ask its author for a safetensors file.",
            )
        )
    raise CheckpointError(
        explain(
            f"converting {source}",
            got=report["error"],
            expected="a dictionary of tensors",
            fix="Check the file.",
        )
    )


def _ended(result: subprocess.CompletedProcess[str], seconds: int) -> str:
    if result.returncode == -signal.SIGXCPU:
        return f"a file of this size may take {seconds} s of processor time, and this one takes more."
    words = result.stderr.strip()[-500:]
    return f"the reader ended with code {result.returncode}. The file is damaged. {words}".rstrip()
