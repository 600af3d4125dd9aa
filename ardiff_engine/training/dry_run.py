# SPDX-License-Identifier: Apache-2.0
"""What a run takes: memory, steps and time. Its first steps are done, and nothing is written."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ardiff_engine.device import free_memory
from ardiff_engine.errors import ConfigError
from ardiff_engine.training.averages import Averages
from ardiff_engine.training.config import RunConfig
from ardiff_engine.training.loop import TrainingLoop
from ardiff_engine.training.throughput import Throughput, settle

TIMED_STEPS = 3
ADAM_MOMENTS = 2
GIB = 1 << 30


class Training(Protocol):
    """Any trainer of this package."""

    loop: TrainingLoop

    def step(self, step: int, /) -> Averages: ...


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """parameters: that are trained. peak: bytes of the device while steps ran; on CPUs of the whole process.
    free: bytes that the device had left before them. seconds: of one step, the median of three. gemm_share:
    see `throughput`."""

    parameters: int
    peak: int
    free: int
    steps: int
    seconds: float
    gemm_share: float

    def __str__(self) -> str:
        hours = self.steps * self.seconds / 3600
        return (
            f"parameters: {self.parameters:,}\n"
            f"memory: {self.peak / GIB:.2f} GiB at most, {self.free / GIB:.2f} GiB were free\n"
            f"steps: {self.steps:,}, {self.seconds:.3g} s each, {self.gemm_share:.0%} of the GEMM rate\n"
            f"time: {hours:.2f} h, without validation and checkpoints"
        )


def dry_run(training: Training) -> RunEstimate:
    """Does four steps. The trainer is of no use afterwards."""
    loop = training.loop
    run, device = loop.run_config, torch.device(loop.run_config.device)
    free, throughput, times = free_memory(device), Throughput(run), []
    throughput.counted(lambda: training.step(0))
    for number in range(1, 1 + TIMED_STEPS):
        settle(device)
        began = time.perf_counter()
        training.step(number)
        settle(device)
        times.append(time.perf_counter() - began)
    seconds = sorted(times)[len(times) // 2]
    return RunEstimate(
        parameters=sum(
            p.numel() for optimizer in loop.optimizers.values() for p in optimizer.parameters.values()
        ),
        peak=_peak(device),
        free=free,
        steps=run.steps,
        seconds=seconds,
        gemm_share=throughput.metrics(1, seconds)["gemm_share"],
    )


def check_room(make: Callable[[], nn.Module], run: RunConfig, *, averaged: bool, kept: int = 0) -> None:
    """ConfigError if weights, gradient, both moments of AdamW and the moving average alone are more than the
    device has free, or that and what a pass keeps at least: kept, numbers that enter the blocks for one clip.
    `make` is called without taking memory."""
    with torch.device("meta"):
        numbers = sum(p.numel() for p in make().parameters())
    size = 8 if run.precision == "float64" else 4
    needed = numbers * size * (2 + ADAM_MOMENTS + averaged)
    clips = kept * run.batch * (2 if run.precision == "bfloat16" else size)
    free = free_memory(torch.device(run.device))
    if needed > free:
        raise ConfigError(
            f"model: its {numbers:,} parameters take {needed / GIB:.1f} GiB with gradient and optimizer, and "
            f"{free / GIB:.1f} GiB are free on {run.device}. Choose a smaller width or depth."
        )
    if needed + clips > free:
        raise ConfigError(
            f"run.batch: {run.batch} clips keep at least {clips / GIB:.1f} GiB for their gradients, beside "
            f"{needed / GIB:.1f} GiB of the model, and {free / GIB:.1f} GiB are free on {run.device}. Choose "
            "a smaller batch, and run.accumulate to make up for it."
        )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
