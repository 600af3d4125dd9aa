# SPDX-License-Identifier: Apache-2.0
"""Free memory as Linux states it: page cache is free, a container's limit counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ardiff_engine.available_memory import available_memory

GIB = 1 << 30


def machine(root: Path, files: dict[str, object]) -> Path:
    files = {
        "proc/meminfo": f"MemTotal: {64 << 20} kB\nMemFree: {1 << 20} kB\nMemAvailable: {40 << 20} kB\n"
    } | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_the_page_cache_is_free(tmp_path: Path) -> None:
    assert available_memory(machine(tmp_path, {})) == 40 * GIB


@pytest.mark.parametrize("path", ["/a/b", "/"])
def test_a_limit_of_version_2(tmp_path: Path, path: str) -> None:
    top = f"sys/fs/cgroup{path.rstrip('/')}"
    files = {
        "proc/self/cgroup": f"0::{path}",
        f"{top}/memory.max": 8 * GIB,
        f"{top}/memory.current": 6 * GIB,
        f"{top}/memory.stat": f"anon {3 * GIB}\ninactive_file {2 * GIB}",
    }
    assert available_memory(machine(tmp_path, files)) == 4 * GIB


def test_the_least_of_nested_groups(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b",
        "sys/fs/cgroup/a/b/memory.max": "max",
        "sys/fs/cgroup/a/b/memory.current": GIB,
        "sys/fs/cgroup/a/memory.max": 3 * GIB,
        "sys/fs/cgroup/a/memory.current": GIB,
    }
    assert available_memory(machine(tmp_path, files)) == 2 * GIB


def test_a_limit_of_version_1_seen_from_inside_a_container(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 2 * GIB,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": 3 * GIB,
        "sys/fs/cgroup/memory/memory.stat": f"cache 5\ntotal_inactive_file {GIB // 2}",
    }
    assert available_memory(machine(tmp_path, files)) == 0


def taken() -> int:
    """By how much a block of 256 MB lowers it."""
    before = available_memory()
    block = torch.ones(1 << 26)
    after = available_memory()
    del block
    return before - after


def test_here() -> None:
    assert available_memory() > 0
    # Others give memory back and take it meanwhile.
    assert any(taken() > 1 << 26 for _ in range(10))
