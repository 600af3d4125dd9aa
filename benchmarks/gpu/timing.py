# SPDX-License-Identifier: Apache-2.0
"""Times of single calls on a GPU, from caches that hold nothing of them, and the GPU's own rates.

python benchmarks/gpu/timing.py      # the rates
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from lines import options_of, put

REPEATS = 50
# GPU clock cycles, some milliseconds: Python needs up to a tenth of one to start a kernel, and longer for the
# passes of autograd. Without a GPU that is kept busy meanwhile, that would be measured instead.
KEPT_BUSY = 10_000_000


def microseconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median of `repeats` calls, each after the L2 cache was overwritten."""
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Read after it was written, or the call would have to wait while what was written goes to memory.
        flush.zero_().sum()
        torch.cuda._sleep(KEPT_BUSY)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_rate() -> float:
    """GB/s of reading and writing 1 GiB each."""
    source = torch.empty(2**28, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / microseconds(lambda: target.copy_(source)) / 1e3


def gemm_rate(size: int = 8192) -> float:
    """TFLOP/s in bfloat16, on random numbers: zeros run faster."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / microseconds(lambda: a @ b) / 1e6


def main() -> None:
    options = options_of("Copy and GEMM rates of this GPU.")
    put({"copy_gigabytes_per_second": copy_rate(), "gemm_bfloat16_teraflops": gemm_rate()}, options.json)


if __name__ == "__main__":
    main()
