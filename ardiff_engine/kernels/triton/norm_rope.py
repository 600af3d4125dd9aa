# SPDX-License-Identifier: Apache-2.0
"""Bias, QK-norm and RoPE into tensors of their own, forward and backward: the kernels of norm_rope_write.py
and norm_rope_pages.py over pages of one row, one per token.

    run        q [T, H, D], k and v [T, Hkv, D] of qkv [T, (H + 2 Hkv) D]
    backward   dqkv, and sums over the tokens for the norm's parameters and the bias

The bias has no place in the backward kernel, which reads the biased row: one pass more, only where there is a
bias. Bytes and floor: those of norm_rope_write.py (86.3 MB, 25.7 us for 4680 tokens x 3 x 1536 in bfloat16)
and of the backward pass of norm_rope_pages.py. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from ardiff_engine.kernels.triton import norm_rope_pages, norm_rope_write

Tensor = torch.Tensor


def run(
    qkv: Tensor, positions: Tensor, heads: int, kv_heads: int, norm: str, q_weight: Tensor | None,
    q_bias: Tensor | None, k_weight: Tensor | None, k_bias: Tensor | None, eps: float,
    frequencies: Tensor | None, qkv_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(q, k, v). See `ardiff_engine.ops.norm_rope`."""
    tokens, head_dim = qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads)
    k, v = (qkv.new_empty(tokens, kv_heads, 1, head_dim) for _ in "kv")
    q = norm_rope_write.run(
        qkv, k, v, None, positions, heads, kv_heads, norm, q_weight, q_bias, k_weight, k_bias, eps,
        frequencies, qkv_bias,
    )  # fmt: skip
    return q, k[:, :, 0], v[:, :, 0]


def backward(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, positions: Tensor, heads: int, kv_heads: int, norm: str,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, frequencies: Tensor | None,
    qkv_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dqkv, gradients of q weight, q bias, k weight, k bias in one row, dqkv_bias; empty without one)"""
    row = qkv if qkv_bias is None else qkv.float() + qkv_bias.float()
    drow, daffine = norm_rope_pages.backward(
        dq, dk[:, :, None], dv[:, :, None], row, None, positions, heads, kv_heads, norm, q_weight, k_weight,
        eps, frequencies,
    )  # fmt: skip
    dbias = drow.new_empty(0) if qkv_bias is None else drow.sum(0)
    return drow.to(qkv.dtype), daffine, dbias
