# SPDX-License-Identifier: Apache-2.0
"""Weights, gradients, moments and moving averages that are split over the processes of a run, with FSDP2.

`fully_shard` keeps the parts. It gathers weights and scatters gradients at each pass of a module, and waits
for ever if one process makes more passes than another: which clips have a history differs between processes.
So both are done here at fixed places of a step instead, once each: weights are whole from the first pass of a
phase to its gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ardiff_engine.errors import ConfigError
from ardiff_engine.training.processes import rank, world_size
from ardiff_engine.training.split_tensors import has_split, is_split, sum_of

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(module: nn.Module, device: str) -> None:
    """Leaves this process its part of each parameter, along the first dimension.

    ConfigError: a process that `torchrun` did not start.
    """
    if not dist.is_initialized():
        raise ConfigError("run.shard: got true in a single process. Start the run with torchrun, or drop it.")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (world_size(),))
    fully_shard(module, mesh=mesh, reshard_after_forward=False)


@contextlib.contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """In the block each of the modules has whole weights, on every process. Gradients that it leaves are
    parts of a sum over the processes, see `processes.average_gradients`."""
    parts = [cast("FSDPModule", module) for module in modules if has_split(module)]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            _close(part)


def _close(part: FSDPModule) -> None:
    module = cast(nn.Module, part)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for whole in module.parameters():
        whole.grad = None
    part.reshard()
    for name, parameter in module.named_parameters():
        if name in gradients and is_split(parameter):
            parameter.grad = sum_of(gradients[name], parameter)


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has whole, as `like` is kept: this process's part of it, or all of it."""
    whole = whole.to(like.device, like.dtype)
    if not is_split(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def exported(module: nn.Module) -> nn.Module | None:
    """The module with whole weights on the first process, None on the others. Called by all together."""
    state = module.state_dict()
    if not any(is_split(value) for value in state.values()):
        return module if rank() == 0 else None
    whole = {name: v.full_tensor() if is_split(v) else v for name, v in state.items()}
    if rank():
        return None
    with torch.device("meta"):
        twin: nn.Module = type(module)(module.config)
    twin.load_state_dict(whole, assign=True)
    return twin
