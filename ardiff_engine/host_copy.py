# SPDX-License-Identifier: Apache-2.0
"""Copies between host and device that nobody waits for: nothing in a tick may stop the host until the GPU has
caught up. They take page-locked host memory, which PyTorch hands out again only after its copies are done.
"""

from __future__ import annotations

import torch


def staging_for(target: torch.Tensor) -> torch.Tensor:
    """Host memory like `target`, uninitialised, from which `target.copy_(..., non_blocking=True)` does not
    wait. It may be let go of at once."""
    return torch.empty(target.shape, dtype=target.dtype, pin_memory=target.is_cuda)


def read_here(tensor: torch.Tensor) -> None:
    """Work on the current stream reads a tensor of another one: its memory is not handed on before that work
    is done, whoever lets go of the tensor meanwhile."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


class HostCopy:
    """Tensors on their way to host memory, behind all that is queued on the current stream.

    They may be overwritten by work that is queued later; on the CPU, where the copy is the tensor itself, by
    nothing before `wait`.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = tensors
        cuda = next((tensor.device for tensor in tensors if tensor.device.type == "cuda"), None)
        if cuda is not None:
            self._host = tuple(
                torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
                for t in tensors
            )
            self._event = torch.cuda.current_stream(cuda).record_event()

    def wait(self) -> tuple[torch.Tensor, ...]:
        """The tensors in host memory. Waits for the work before the copies, and for nothing behind them."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
