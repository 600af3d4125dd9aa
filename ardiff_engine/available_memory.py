# SPDX-License-Identifier: Apache-2.0
"""Host memory that this process can still take: of the machine, and of the control groups around it."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that new allocations can use without swapping; caches count as free: the kernel gives them up.

    The least of MemAvailable (proc(5)) and what the limits of the process's control groups leave, version 1
    and 2. A container sees the machine's memory, and is killed at its own limit. `root`: of /proc and /sys.
    """
    return max(0, min([_of_machine(root), *_of_groups(root)]))


def _of_machine(root: Path) -> int:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # no Linux, or one before 3.14


def _of_groups(root: Path) -> list[int]:
    """What each limited group from the process's own up to the root of its hierarchy leaves."""
    left = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = Path(os.path.normpath("/" + path.lstrip("/")))
        # In a container the path may be the one outside of it, which is not there: the top is its own then.
        for folder in (group, *group.parents):
            room = _room(top / folder.relative_to("/"), *names)
            if room is not None:
                left.append(room)
    return left


def _room(group: Path, limit: str, used: str, cache: str) -> int | None:
    try:
        most, now = int(_lines(group / limit)[0]), int(_lines(group / used)[0])
    except (IndexError, ValueError):  # no such group, or no limit ("max")
        return None
    given_up = [int(line.split()[1]) for line in _lines(group / "memory.stat") if line.split()[0] == cache]
    return most - now + sum(given_up)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
