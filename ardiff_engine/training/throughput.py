# SPDX-License-Identifier: Apache-2.0
"""How fast a run is, and how near that is to the best that its machine does."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from ardiff_engine.training.config import RunConfig
from ardiff_engine.training.processes import world_size

T = TypeVar("T")
REPEATS = 3
SPEED = frozenset({"steps_per_second", "clips_per_second", "gemm_share"})
"""What is new each time that a run is done again."""


class Throughput:
    """Of one process. flops: of one step, multiplications and additions of all products of matrices in it and
    in its gradient, 0 before `counted`. gemm_rate: of one large product of matrices, FLOP per second."""

    def __init__(self, run: RunConfig) -> None:
        self.run, self.flops, self.gemm_rate = run, 0, 0.0

    def counted(self, step: Callable[[], T]) -> T:
        """What the step returns. Not for the steps of a run, whose last bits must not depend on counting.

        A product is counted at the dtype of the network's pass; the rate is measured once for a process."""
        with FlopCounterMode(display=False) as counter:
            result = step()
        self.flops = counter.get_total_flops()
        self.gemm_rate = gemm_rate(self.run.device, self.run.precision)
        return result

    def metrics(self, steps: int, seconds: float) -> dict[str, float]:
        """steps_per_second, clips_per_second of all processes, and, if one was counted, gemm_share: the part
        of `gemm_rate` that the steps reach."""
        rate, run = steps / seconds, self.run
        found = {
            "steps_per_second": rate,
            "clips_per_second": rate * run.batch * run.accumulate * world_size(),
        }
        return found | ({"gemm_share": self.flops * rate / self.gemm_rate} if self.gemm_rate else {})


@functools.cache
def gemm_rate(place: str, precision: str) -> float:
    """FLOP per second of a square product in the precision of the network's pass; the best of three."""
    device = torch.device(place)
    side = 8192 if device.type == "cuda" else 1024
    a = torch.ones(side, side, device=device, dtype=getattr(torch, precision))
    times = []
    for _ in range(1 + REPEATS):
        settle(device)
        began = time.perf_counter()
        a @ a
        settle(device)
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times[1:])


def settle(device: torch.device) -> None:
    """Waits for what the device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
