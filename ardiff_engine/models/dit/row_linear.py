# SPDX-License-Identifier: Apache-2.0
"""`nn.Linear` that packs its weight once for inference on the CPU (`ops.linear`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import linear

from ardiff_engine import ops
from ardiff_engine.ops.backend import on_native_cpu
from ardiff_engine.ops.linear import PANEL_OUTPUTS


class PackedCopy:
    """The packed copy of a weight, and what tells that weight from another one in the same place."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = ops.pack_linear(weight)
        # Weak references: a new tensor or storage may lie where this one was, and must not pass for it; but
        # a weight that is moved away must not be kept in memory.
        self._tensor = weakref.ref(weight)
        self._storage = StorageWeakRef(weight.untyped_storage())
        self._version = _version(weight)

    def is_of(self, weight: torch.Tensor) -> bool:
        return (
            self._tensor() is weight
            and self._version == _version(weight)
            and self._storage.cdata == weight.untyped_storage()._cdata
            and not self._storage.expired()
        )


def _version(weight: torch.Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


class RowLinear(nn.Linear):
    """`nn.Linear`; without gradients, in float32 on the CPU, each row's result is the same in any batch.

    y = x Wᵀ + b, x [T, in] -> [T, out]; x of more dimensions is treated as rows. That needs the native
    kernels; without them, and everywhere else, it is nn.Linear.

    The packed copy is made at the first use and again after the weight has changed. Changes in place go
    unnoticed until `train()`, `eval()` or `load_state_dict()` where autograd counts none: through
    `weight.data`, and of a weight that was made under `torch.inference_mode()`.
    """

    _packed: PackedCopy | None = None

    def packed(self) -> ops.PackedWeight:
        """The weight as `ops.linear` takes it: float32 on the CPU only."""
        return self.packed_copy().weight

    def packed_copy(self) -> PackedCopy:
        """The same, with what tells that it is this weight's. Kept by the layer until the weight changes."""
        packed = self._packed
        if packed is None or not packed.is_of(self.weight):
            packed = self._packed = PackedCopy(self.weight)
        return packed

    @property
    def packs(self) -> bool:
        """Whether the weight is one that can be packed: a plain tensor, float32 on the CPU.

        Wrapper subclasses (quantised weights) say so too, but have no memory of their own.
        """
        weight = self.weight
        plain = type(weight) in (nn.Parameter, torch.Tensor)
        return plain and weight.dtype == torch.float32 and weight.device.type == "cpu"

    @property
    def packed_bytes(self) -> int:
        """Size of the packed copy, made or not."""
        return 4 * self.in_features * (-(-self.out_features // PANEL_OUTPUTS) * PANEL_OUTPUTS)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled() and self.packs and on_native_cpu(input):
            return ops.linear(input, self.packed(), self.bias)
        return linear(input, self.weight, self.bias)

    def train(self, mode: bool = True) -> RowLinear:
        self._packed = None
        return super().train(mode)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> RowLinear:
        # New storage may lie where the old one was.
        self._packed = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


def row_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> RowLinear:
    """A frozen layer over weights that lie somewhere already; they are not copied."""
    layer = RowLinear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer.eval().requires_grad_(False)
