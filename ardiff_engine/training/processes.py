# SPDX-License-Identifier: Apache-2.0
"""Data-parallel training with `torchrun`: which process this is, and the mean of gradients over all of
them."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ardiff_engine.device import usable_device
from ardiff_engine.errors import CheckpointError
from ardiff_engine.training.config import RunConfig
from ardiff_engine.training.split_tensors import average_part, is_split

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def enter(run: RunConfig) -> RunConfig:
    """The same settings with this process's own device. Joins the other processes when `torchrun` started
    this one; sets threads and the seed of the initial weights.

    ConfigError for a device that is not there.
    """
    if run.device == "cuda" and "LOCAL_RANK" in os.environ:
        run = replace(run, device=f"cuda:{os.environ['LOCAL_RANK']}")
    device = usable_device(run.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _join(run.device)
    if run.threads:
        torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    return run


def _join(device: str) -> None:
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        # Left to the end of the process, its threads can be destroyed while they run: then it aborts. What
        # PyTorch remembers of split tensors keeps the group nevertheless, see `command_end.at_once`.
        atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def sample_ids(step: int, micro: int, batch: int, accumulate: int) -> Sequence[int]:
    """Ids of one micro-batch: consecutive over processes, then micro-batches, then steps, so each id is used
    once."""
    first = ((step * accumulate + micro) * world_size() + rank()) * batch
    return range(first, first + batch)


def step_clips(batch: int, accumulate: int) -> int:
    """Clips of a step, over all processes."""
    return batch * accumulate * world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gradients become their mean over all processes; all are under way at once. Each process gets its part
    of one whose parameter is split (`training.sharding`)."""
    count = world_size()
    gradients = []
    for parameter in parameters:
        if is_split(parameter):
            average_part(parameter, count)
        elif count > 1:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()
    if gradients:
        torch._foreach_div_(gradients, count)


def largest(value: float, device: str) -> float:
    """The largest of the numbers that the processes give, on every process."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return float(shared)


def together(action: Callable[[], T], device: str) -> T:
    """Does something that may fail on some processes only, such as writing a file, and fails on all of them
    then, so that none waits for the others for ever.

    Raises the error of `action` where there was one, CheckpointError on the other processes.
    """
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:
        failure = error
    if largest(float(failure is not None), device):
        raise failure or CheckpointError("another process of this run has failed; its message says why.")
    return result


def first_says(action: Callable[[], T]) -> T:
    """What the first process's action returns, on all of them; the others do not call it. Raises its error
    there, CheckpointError on the others."""
    failure: Exception | None = None
    said: list[Any] = [None, False]
    if rank() == 0:
        try:
            said[0] = action()
        except Exception as error:
            failure = error
    if world_size() > 1:
        said[1] = failure is not None
        dist.broadcast_object_list(said)
    if failure is not None or (rank() and said[1]):
        raise failure or CheckpointError("the first process of this run has failed; its message says why.")
    result: T = said[0]
    return result
