# SPDX-License-Identifier: Apache-2.0
"""Memory and processor time of a running server, its children included; from Linux's /proc."""

from __future__ import annotations

import re
from pathlib import Path


def family(process: int) -> list[int]:
    """The process and its children."""
    found = Path(f"/proc/{process}/task").glob("*/children")
    return [process, *(int(child) for path in found for child in path.read_text().split())]


def residents(process: int) -> list[float]:
    """MiB of the server, and of each process that it has started: the one that decodes is the last."""
    each = []
    for own in family(process):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{own}/status").read_text())
        assert found is not None
        each.append(round(int(found[1]) / 1024, 1))
    return each


def resident(process: int) -> float:
    """MiB of all of them."""
    return round(sum(residents(process)), 1)


def processor_seconds(process: int) -> float:
    """Of the server and of the process that decodes for it."""
    total = 0
    for own in family(process):
        words = Path(f"/proc/{own}/stat").read_text().rpartition(") ")[2].split()
        total += int(words[11]) + int(words[12])
    return total / 100
