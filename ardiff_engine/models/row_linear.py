# SPDX-License-Identifier: Apache-2.0
"""`nn.Linear` that packs its weight once for inference on the CPU (`ops.linear`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from ardiff_engine import ops
from ardiff_engine.ops.backend import on_native_cpu
from ardiff_engine.ops.linear import PANEL_OUTPUTS


class RowLinear(nn.Linear):
    """`nn.Linear`; without gradients, in float32 on the CPU, each row's result is the same in any batch.

    y = x Wᵀ + b, x [T, in] -> [T, out]; x of more dimensions is treated as rows. That needs the native
    kernels; without them, and everywhere else, it is nn.Linear.

    The packed copy is made at the first use and again after the weight has changed. A change that autograd
    does not see (through `weight.data` in place) goes unnoticed until `train()` or `eval()` is called.
    """

    _packed: tuple[tuple[int, int], ops.PackedWeight] | None = None

    def packed(self) -> ops.PackedWeight:
        """The weight as `ops.linear` takes it: float32 on the CPU only."""
        weight = self.weight
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._packed is None or self._packed[0] != state:
            self._packed = (state, ops.pack_linear(weight))
        return self._packed[1]

    @property
    def packed_bytes(self) -> int:
        """Size of the packed copy, made or not."""
        return 4 * self.in_features * (-(-self.out_features // PANEL_OUTPUTS) * PANEL_OUTPUTS)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled() and on_native_cpu(input, self.weight):
            return ops.linear(input, self.packed(), self.bias)
        return linear(input, self.weight, self.bias)

    def train(self, mode: bool = True) -> RowLinear:
        self._packed = None
        return super().train(mode)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> RowLinear:
        # New storage may lie where the old one was.
        self._packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}
