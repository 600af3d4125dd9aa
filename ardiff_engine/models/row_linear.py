# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose rows do not depend on their neighbours, to the bit.

BLAS picks its kernels by the shape of a product: rows or columns that fill no tile and a long inner dimension
go other ways, which round differently, and several threads share the inner dimension as they like. A stream's
video would then depend on who else is being served. Here the number of rows changes nothing that matters: a
thread multiplies its own share of the rows, in whole tiles; outputs come in multiples of 96; and an inner
dimension above 384 is cut into pieces that are added in order. These numbers were found by comparing bits, on
MKL with AVX2 and with AVX-512; the tests compare them again for both.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear, pad

TILE_ROWS = 6
LEAST_ROWS = 18
OUTPUTS = 96
MOST_INNER = 384


class RowLinear(nn.Linear):
    """`nn.Linear`; without gradients, in float32 on the CPU, each row's result is the same in any batch.

    y = x Wᵀ + b, x [T, in] -> [T, out]; x of more dimensions is treated as rows.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or input.device.type != "cpu" or torch.compiler.is_compiling():
            return linear(input, self.weight, self.bias)
        rows = input.reshape(-1, self.in_features)
        count, threads = rows.shape[0], torch.get_num_threads()
        share = max(LEAST_ROWS, _up(count, threads * TILE_ROWS) // threads)
        if share * threads > count:
            rows = pad(rows, (0, 0, 0, share * threads - count))
        shares = rows.view(threads, share, self.in_features)
        whole = self.out_features // OUTPUTS * OUTPUTS
        parts = [_product(shares, self.weight[:whole])[:count]] if whole else []
        if rest := self.out_features - whole:
            weight = pad(self.weight[whole:], (0, 0, 0, OUTPUTS - rest))
            parts.append(_product(shares, weight)[:count, :rest])
        out = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0].contiguous()
        if self.bias is not None:
            out += self.bias
        return out.view(*input.shape[:-1], self.out_features)


def _product(shares: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """shares [threads, rows, in] of x times weightᵀ -> [threads * rows, out]."""
    threads, rows, inner = shares.shape
    w = weight.t().expand(threads, -1, -1)
    pieces = -(-inner // MOST_INNER)
    size = _up(inner, 16 * pieces) // pieces
    out = torch.bmm(shares[:, :, :size], w[:, :size])
    for start in range(size, inner, size):
        out.baddbmm_(shares[:, :, start : start + size], w[:, start : start + size])
    return out.view(threads * rows, -1)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
