# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a call, as the kernel of Linux counts it: in a process that does nothing else."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import ROOT, started

_RESET = Path("/proc/self/clear_refs")
counted = pytest.mark.skipif(not _RESET.exists(), reason="the peak of memory is asked from Linux")
_PROGRAM = (
    "import importlib, json, sys\n"
    "module, function, arguments = sys.argv[1:]\n"
    "print(json.dumps(getattr(importlib.import_module(module), function)(*json.loads(arguments))))"
)


def alone(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of a test's file returns in a fresh process of one thread, as JSON. There, memory that
    is freed goes back to the system at once; the heap of the C library keeps pieces below 32 MiB."""
    command = [sys.executable, "-c", _PROGRAM, function.__module__, function.__name__, json.dumps(arguments)]
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'python_tests'}",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, env=environment, **pipes) as process:
        printed, told = process.communicate()  # it waits for nothing, so it ends, on a busy machine late
    assert process.returncode == 0, told
    return json.loads(printed)


def peak_of(call: Callable[[], object]) -> int:
    """Bytes that the process holds at most during a call, beyond those before it."""
    gc.collect()
    before = _bytes("VmRSS")
    _RESET.write_text("5")
    kept = call()
    peak = _bytes("VmHWM") - before
    del kept
    return peak


def _bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024
