# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose rows do not depend on their neighbours, to the bit.

BLAS picks its kernel, and how threads share the inner dimension, by the number of rows: the same row gives
other last bits in a batch of another size. A stream's video would then depend on who else is being served.
Here each thread multiplies a share of the rows alone, never fewer than 16 (below that, other kernels are
picked).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear, pad

LEAST_ROWS = 16


class RowLinear(nn.Linear):
    """`nn.Linear`; without gradients, in float32 on the CPU, each row's result is the same in any batch.

    y = x Wᵀ + b, x [T, in] -> [T, out]; x of more dimensions is treated as rows.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or input.device.type != "cpu" or torch.compiler.is_compiling():
            return linear(input, self.weight, self.bias)
        rows = input.reshape(-1, self.in_features)
        count, threads = rows.shape[0], torch.get_num_threads()
        share = max(LEAST_ROWS, -(-count // threads))
        padding = share * threads - count
        if padding:
            rows = pad(rows, (0, 0, 0, padding))
        if threads == 1:
            out = linear(rows, self.weight, self.bias)
        else:
            weight = self.weight.t().expand(threads, -1, -1)
            out = torch.bmm(rows.view(threads, share, -1), weight).view(threads * share, -1)
            if self.bias is not None:
                out += self.bias
        return out[:count].view(*input.shape[:-1], self.out_features)
