# SPDX-License-Identifier: Apache-2.0
"""The process that reads a pickle: its time, its memory, and where it finds its modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ardiff_engine import files
from ardiff_engine.errors import CheckpointError
from ardiff_engine.weights import convert

module = sys.modules["ardiff_engine.weights.convert"]

LIMITED = """
import sys
sys.path += {path}
from ardiff_engine.weights.convert_worker import set_limits
set_limits(1 << 40, 0, 1 << 20)
while True:
    pass
"""


def test_a_reader_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    folders = [str(Path(files.__file__).parents[1]), str(Path(torch.__file__).parents[1])]
    (tmp_path / "worker.py").write_text(LIMITED.format(path=folders))
    monkeypatch.setattr(module, "WORKER", tmp_path / "worker.py")
    with pytest.raises(CheckpointError, match="processor time"):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")


@pytest.mark.slow
def test_a_compressed_file_gets_no_more_memory_than_its_size_allows(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(400_000_000)}, tmp_path / "large.pt")
    with (
        zipfile.ZipFile(tmp_path / "large.pt") as large,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as small,
    ):
        for entry in large.namelist():
            small.writestr(entry, large.read(entry))
    assert (tmp_path / "x.pt").stat().st_size < 20_000_000
    with pytest.raises(CheckpointError, match="memory"):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")


def test_a_reader_that_cannot_import_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('no wheel for this machine')")
    monkeypatch.setattr(module.subprocess, "run", with_path_in_front(tmp_path, module.subprocess.run))
    with pytest.raises(CheckpointError, match="cannot import .*no wheel") as failed:
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert "damaged" not in str(failed.value)


def with_path_in_front(folder: Path, run: Callable) -> Callable:
    """Runs the worker without -I, so that PYTHONPATH counts."""

    def changed(command: list[str], **options: object) -> object:
        options["env"] = {**options["env"], "PYTHONPATH": str(folder)}  # type: ignore[dict-item]
        return run([part for part in command if part != "-I"], **options)

    return changed


def test_the_reader_finds_modules_where_its_caller_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where torch lies among the user's own packages, which -I leaves out."""
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    site = Path(torch.__file__).parents[1]
    isolated = [sys.executable, "-I", "-S"]  # -S leaves out the packages of the interpreter as well
    run = module.subprocess.run
    monkeypatch.setattr(
        module.subprocess, "run", lambda command, **options: run([*isolated, *command[2:]], **options)
    )
    assert convert(tmp_path / "x.pt", tmp_path / "x.safetensors").tensors == 1
    monkeypatch.setattr(module.sys, "path", [folder for folder in sys.path if Path(folder) != site])
    with pytest.raises(CheckpointError, match="cannot import"):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors")


def test_timeout(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="timeout_seconds"):
        convert(tmp_path / "x.pt", tmp_path / "x.safetensors", timeout_seconds=0.01)


def test_a_file_is_mapped_and_not_read_whole(tmp_path: Path) -> None:
    """The reader needs memory for the map of the file and the one tensor that it writes, no second copy."""
    tensors = {f"blocks.{n}.weight": torch.full((512, 1024), float(n)) for n in range(32)}  # 2 MiB each
    tensors["scale"] = torch.ones(3, dtype=torch.bfloat16)
    torch.save(tensors, tmp_path / "x.pt")
    program = (
        "import json, resource, sys, torch\n"
        "from ardiff_engine.weights.convert_worker import convert\n"
        "data = [line for line in open('/proc/self/status') if line.startswith('VmData')][0]\n"
        "most = 1024 * int(data.split()[1]) + (96 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (most, most))\n"
        "print(json.dumps(convert(sys.argv[1], sys.argv[2], 1 << 30)))"
    )
    files = [str(tmp_path / name) for name in ("x.pt", "x.safetensors")]
    # One thread: on a machine of many cores the stacks of theirs would count.
    one = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program, *files], capture_output=True, text=True, check=False, env=one
    )
    assert not run.returncode, run.stderr
    assert json.loads(run.stdout) == {"tensors": 33, "left_out": []}
    written = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
