# SPDX-License-Identifier: Apache-2.0
"""Tensors of which each process has a part, as FSDP2 leaves them. PyTorch's module for them takes a second to
import, so nothing here does before a run is sharded."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Where nobody has imported that module no tensor is split."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def has_split(module: nn.Module) -> bool:
    """Whether some of its parameters are."""
    return any(is_split(parameter) for parameter in module.parameters())


def sum_of(own: Tensor, like: DTensor) -> DTensor:
    """The sum over the processes of what each of them has, not yet taken."""
    from torch.distributed.tensor import DTensor, Partial

    return DTensor.from_local(own, like.device_mesh, [Partial()], run_check=False)


def average_part(parameter: DTensor, count: int) -> None:
    """A gradient that is a sum over `count` processes becomes this process's part of their mean."""
    gradient = parameter.grad
    if gradient is None:
        zeros = torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        gradient = sum_of(zeros, parameter)
    assert is_split(gradient)
    parameter.grad = gradient.redistribute(placements=parameter.placements).div_(count)
