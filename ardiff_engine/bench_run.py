# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks of a source checkout in a process of their own, and reads what they measured."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ardiff_engine import bench_select, bench_table
from ardiff_engine._native import native, why_not
from ardiff_engine.errors import ArdiffError, BackendNotAvailableError, ConfigError

NO_TESTS = 5
"""Of pytest's exit codes."""


def check(folder: str) -> None:
    """Refuses, before any time is spent, what cannot be measured.

    Raises ConfigError without benchmarks or tools, BackendNotAvailableError without the C++ kernels: the
    reference would be measured under their name.
    """
    if not os.path.isdir(folder):
        raise ConfigError(
            f"benchmarks: got no folder {folder!r} here, expected the root of a source checkout. Change to "
            "it, or name the folder with --folder."
        )
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise ConfigError("benchmarks need pytest-benchmark: pip install '.[dev]' in the source checkout.")
    if native() is None:
        raise BackendNotAvailableError(
            f"the C++ kernels are missing ({why_not()}), so that the PyTorch reference would be measured. "
            "Install them: pip install . in the source checkout, with a C++17 compiler."
        )


def measure(folder: str, wanted: Sequence[str], *, slow: bool) -> tuple[bench_table.Record, bool]:
    """The record of all benchmarks whose row holds every text of `wanted`, and whether none failed.

    Raises ConfigError where nothing matches, with a list of what there is, and ArdiffError where nothing was
    measured.
    """
    command = [sys.executable, "-m", "pytest", folder, "--benchmark-only", "-q"]
    command += ["-o", "python_files=bench_*.py", "--benchmark-quiet", "-p", "ardiff_engine.bench_select"]
    if not slow:
        command += ["-m", "not slow"]
    with tempfile.TemporaryDirectory() as name:
        measured, seen = Path(name) / "measured.json", Path(name) / "seen"
        environment = os.environ | bench_select.environment(wanted, seen)
        code = subprocess.run(
            [*command, f"--benchmark-json={measured}"], env=environment, check=False
        ).returncode
        rows = sorted(set(seen.read_text(encoding="utf-8").splitlines())) if seen.is_file() else []
        # Also after a failure: what was measured before it took its time.
        if measured.is_file() and measured.stat().st_size:
            found = bench_table.record(json.loads(measured.read_text(encoding="utf-8")))
            if found["rows"] or not wanted:
                return found, code == 0
    if code in (0, NO_TESTS):
        what = " and ".join(map(repr, wanted))
        there = "".join(f"\n  {row}" for row in rows)
        raise ConfigError(
            f"no benchmark in {folder!r} with {what}. There are:{there}" if wanted
            else f"no benchmarks in {folder!r}."
        )  # fmt: skip
    raise ArdiffError(f"the benchmarks ended without a result (pytest's exit code {code}); see above.")
