# SPDX-License-Identifier: Apache-2.0
"""Processes of a test: none outlives it, and several find each other as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from helpers.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """With this checkout's package, and one thread for PyTorch. At the end of the block it is killed, if it
    still runs, and waited for, with those of its own processes that have its pipes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | options.pop("env", {})
    with subprocess.Popen([*map(str, command)], env=environment, **options) as process:
        try:
            yield process
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE)


@dataclass(frozen=True, slots=True)
class Ended:
    """code: its exit code. printed, told: its stdout and stderr."""

    code: int
    printed: str
    told: str


def start_together(count: int, command: Sequence[str], folder: Path | None = None) -> list[Ended]:
    """The same command in `count` processes of one thread each; how each has ended, in order of rank."""
    # As torchrun: the store is here, so nobody else can take its port before rank 0 does.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as running:
        ranks = [
            running.enter_context(started(command, cwd=folder, env=meeting | {"RANK": str(rank)}, **pipes))
            for rank in range(count)
        ]
        told = [process.communicate(timeout=PATIENCE) for process in ranks]
        return [Ended(process.returncode, *texts) for process, texts in zip(ranks, told, strict=True)]
