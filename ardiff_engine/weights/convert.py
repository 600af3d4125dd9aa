# SPDX-License-Identifier: Apache-2.0
"""Pickle-based weights become safetensors, without running what they contain."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from ardiff_engine.errors import CheckpointError, UnsafeCheckpointError, explain
from ardiff_engine.files import staged
from ardiff_engine.weights.safetensors_file import SafetensorsFile

WORKER = Path(__file__).with_name("convert_worker.py")
BASE_ADDRESS_SPACE = 16 << 30
ADDRESS_SPACE_PER_BYTE = 8
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")


@dataclasses.dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` did: the file written, how many tensors it holds, and the entries that were left out."""

    path: Path
    tensors: int
    skipped: tuple[str, ...]


def convert(
    path_in: str | os.PathLike[str], path_out: str | os.PathLike[str], *, timeout_seconds: float = 3600.0
) -> Conversion:
    """Rewrites a .pt, .pth, .bin or .ckpt file as safetensors.

    The file is read by `torch.load(weights_only=True)` in a fresh process with bounded memory, so code in it
    is refused, and a crash of the reader stays there. A dictionary under "state_dict" or "model" is
    unwrapped, nested dictionaries are joined with dots, shared tensors are written in full. `path_out`
    appears whole or not at all.

    Raises:
        UnsafeCheckpointError: the file asks for more than tensors and plain containers.
        CheckpointError: no such file, no tensors in it, a damaged file, or `path_out` cannot be written.
    """
    source, target = Path(path_in), Path(path_out)
    if not source.is_file():
        raise CheckpointError(
            explain("file to convert", got=str(source), expected="a file", fix="Check the path.")
        )
    if target.suffix != ".safetensors":
        raise CheckpointError(
            explain(
                "file to write", got=str(target), expected="a name ending in .safetensors", fix="Rename it."
            )
        )
    if target.exists() and target.samefile(source):
        raise CheckpointError(
            explain(
                "file to write", got="the file to convert", expected="another one", fix="Choose another name."
            )
        )
    if not target.parent.is_dir():
        raise CheckpointError(
            explain(
                "file to write",
                got=f"{target}, in a folder that does not exist",
                expected="a name in an existing folder",
                fix=f"Make {target.parent} first.",
            )
        )
    with staged(target) as (temporary,):
        report = _run_worker(source.resolve(), temporary.resolve(), timeout_seconds)
        SafetensorsFile(temporary)
    return Conversion(path=target, tensors=report["tensors"], skipped=tuple(report["skipped"]))


def _run_worker(source: Path, temporary: Path, timeout_seconds: float) -> dict:
    memory = BASE_ADDRESS_SPACE + ADDRESS_SPACE_PER_BYTE * source.stat().st_size
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    try:
        result = subprocess.run(
            [sys.executable, "-I", str(WORKER), str(source), str(temporary), str(memory)],
            capture_output=True,
            env=environment,
            timeout=timeout_seconds,
            check=False,
            text=True,
        )
        report = json.loads(result.stdout)
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            explain(
                f"converting {source}",
                got=f"no end after {timeout_seconds} s",
                expected="an end",
                fix="Raise timeout_seconds.",
            )
        ) from error
    except json.JSONDecodeError as error:
        raise CheckpointError(
            explain(
                f"converting {source}",
                got=f"exit code {result.returncode} of the reader. {result.stderr.strip()[-500:]}",
                expected="a readable file",
                fix="The file is damaged, or needs more memory than there is.",
            )
        ) from error
    if report.get("unsafe"):
        raise UnsafeCheckpointError(
            explain(
                f"{source} was not opened",
                got=report["error"],
                expected="tensors in plain dictionaries",
                fix="Ask its author for a safetensors file.",
            )
        )
    if "error" in report:
        raise CheckpointError(
            explain(
                f"converting {source}",
                got=report["error"],
                expected="a dictionary of tensors",
                fix="Check the file.",
            )
        )
    return report
