# SPDX-License-Identifier: Apache-2.0
"""What a caller has switched on in PyTorch for code of their own does not reach the work done here.

PyTorch keeps modes per thread, and every function sees them: in a block of `torch.autocast` a model computes
in bfloat16, a default device takes new tensors away, inference mode makes tensors that cannot be changed
later. `ordinary_mode()` is the boundary, around every public call that computes with tensors.

Settings of the whole process stay as they are: number of threads, matmul precision, deterministic algorithms,
which attention backends PyTorch may use. They choose how PyTorch computes, and change rounding at most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ardiff_engine.errors import ConfigError

_AUTOCAST = ("cpu", "cuda")


@contextlib.contextmanager
def ordinary_mode() -> Iterator[None]:
    """A block, or the decorator of a function, without the caller's autocast, default device, inference mode.

    Raises:
        ConfigError: a mode that cannot be left makes tensors without values (FakeTensorMode), transforms
            this call (torch.func.vmap, grad, functionalize), or forbids all attention that PyTorch has here.
    """
    with contextlib.ExitStack() as modes:
        probe = torch.empty(0, dtype=torch.float32)
        if probe.device.type != "cpu":
            modes.enter_context(torch.device("cpu"))
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
            # Leaving inference mode also switches gradients on.
            modes.enter_context(torch.no_grad())
        if type(probe) is not torch.Tensor:
            raise ConfigError(
                f"a mode of PyTorch makes {type(probe).__name__} objects instead of tensors; "
                "leave it (FakeTensorMode, functional transforms) before calling ardiff_engine"
            )
        if transformed():
            raise ConfigError(
                "ardiff_engine was called inside of torch.func.vmap, grad or another transform, "
                "which video generation cannot be part of; call it outside"
            )
        flash, math = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
        if not (flash or math or torch.cuda.is_available()):
            raise ConfigError(
                "PyTorch's flash and math attention are both switched off, and on a CPU there is no other; "
                "leave the block of torch.nn.attention.sdpa_kernel, or allow one of them in it"
            )
        yield


def transformed() -> bool:
    """Whether a transform of torch.func is running in this thread."""
    return torch._C._functorch.peek_interpreter_stack() is not None
