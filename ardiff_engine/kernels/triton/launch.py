# SPDX-License-Identifier: Apache-2.0
"""Where a Triton kernel is launched: on its tensors' device, or in Triton's interpreter for CPU tensors. And
what it does about ids that are out of range: it skips them and sets a bit of its device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl

# csrc/include/ardiff/device_error.h; `ardiff_engine.ops.check_device` raises for them.
BAD_FRAME_ID = tl.constexpr(1)
BAD_SLOT = tl.constexpr(2)
BAD_PAGE = tl.constexpr(4)
BAD_VIEW = tl.constexpr(8)


def on(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the device of `tensor` current: Triton launches on the current device, whatever it is given."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with a last stride of 1; the other dimensions may stay strided."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


@triton.jit
def report(errors, bad, BIT: tl.constexpr):
    """Sets BIT of `errors`, the device's int32, where `bad` (a scalar or a block) holds."""
    tl.atomic_or(errors + bad.to(tl.int32) * 0, BIT, mask=bad, sem="relaxed")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(value: int) -> int:
    """The next power of two: block sizes are powers of two, the remainder is masked."""
    return int(triton.next_power_of_2(max(value, 1)))
