# SPDX-License-Identifier: Apache-2.0
"""Runs a script as `python script.py` does: in this process, which has imported PyTorch already, or,
with ARDIFF_TESTS=all, in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

from effort import ALL

ROOT = Path(__file__).resolve().parents[2]


def run_script(script: Path, *arguments: object, folder: Path, alone: bool = ALL) -> str:
    """What it prints. folder: where it runs. alone: in a process of its own."""
    command = [str(script), *map(str, arguments)]
    if alone:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout
    printed = io.StringIO()
    elsewhere = [place for place in sys.path if Path(place).resolve() != ROOT]
    before = set(sys.modules)
    try:
        with (
            mock.patch.object(sys, "argv", command),
            mock.patch.object(sys, "path", [str(script.parent), *elsewhere]),
            contextlib.chdir(folder),
            contextlib.redirect_stdout(printed),
        ):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{script.name} ended with {end.code}"
    finally:
        # Files beside a script have names that mean something else beside another.
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(script.parent):
                del sys.modules[name]
    return printed.getvalue()
