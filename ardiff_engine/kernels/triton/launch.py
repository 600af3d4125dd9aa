# SPDX-License-Identifier: Apache-2.0
"""Where a Triton kernel is launched: on its tensors' device, or in Triton's interpreter for CPU tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton


def on(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the device of `tensor` current: Triton launches on the current device, whatever it is given."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with a last stride of 1; the other dimensions may stay strided."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(value: int) -> int:
    """The next power of two: block sizes are powers of two, the remainder is masked."""
    return int(triton.next_power_of_2(max(value, 1)))
