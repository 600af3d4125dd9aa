# SPDX-License-Identifier: Apache-2.0
"""Whether a kernel may run at once on the memory of tensors, or must be called through PyTorch's dispatcher.

A kernel that is called past the dispatcher starts some microseconds earlier, and is invisible: a tracer would
record nothing, and a tensor without values would hand out a null pointer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
_AUTOCAST = ("cpu", "cuda")
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_TRACERS = tuple(torch._C._TorchDispatchModeKey.__members__.values())
"""Modes of PyTorch's own: fake tensors, make_fx, functionalization."""


def traced(*tensors: torch.Tensor | None) -> bool:
    """Whether this call is recorded or has no values: torch.compile, jit.trace, make_fx, fake tensors, meta
    tensors, subclasses of tensors."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return True
    if torch._C._len_torch_dispatch_stack() and any(map(torch._C._get_dispatch_mode, _TRACERS)):
        return True
    return any(t is not None and (type(t) not in _PLAIN or t.is_meta) for t in tensors)


def watched(*tensors: torch.Tensor | None) -> bool:
    """`traced`, or seen by a mode of the caller's: one that counts or prints, say."""
    return traced(*tensors) or bool(torch._C._len_torch_dispatch_stack())


def needs_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether a gradient is to be recorded for one of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """A formula whose dtypes are its own: in a region of torch.autocast its products, sums and concatenations
    would be computed in other ones."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        active = [kind for kind in _AUTOCAST if torch.is_autocast_enabled(kind)]
        if not active:
            return function(*args, **kwargs)
        with torch.autocast(active[0], enabled=False), torch.autocast(active[-1], enabled=False):
            return function(*args, **kwargs)

    return call
