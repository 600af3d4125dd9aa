# SPDX-License-Identifier: Apache-2.0
"""The calls whose kernels `triton_check.py` compiles: every kernel, at the shapes that it is meant for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ardiff_engine.kernels.triton import (
    add_noise,
    bias_gelu,
    frame_attention,
    frame_attention_backward,
    gate_residual,
    modulate,
    norm_rope,
    norm_rope_pages,
    norm_rope_write,
    pages,
    philox_normal,
    pool_pages,
    sample_timesteps,
    solver_step,
)
from ardiff_engine.ops.frame_table import FrameTable

HALF, FULL = torch.bfloat16, torch.float32
# (head dimension, page rows, tokens per group), each in bfloat16: AR-Diffusion one frame and one clip at a
# time, the causal Wan family, and the sizes between. float32 is for correctness: fewer of them.
ATTENTION = [(72, 32, 32, HALF), (72, 32, 512, HALF), (128, 112, 1560, HALF), (128, 112, 32, HALF)]
ATTENTION += [(64, 64, 64, HALF), (80, 80, 64, HALF), (96, 144, 128, HALF), (64, 16, 16, HALF)]
ATTENTION += [(64, 64, 64, FULL), (72, 32, 32, FULL), (80, 80, 64, FULL), (96, 112, 64, FULL)]
ATTENTION += [(128, 112, 1560, FULL)]
# (width of the model, heads, head dimension)
MODELS = ((1152, 16, 72), (1536, 12, 128), (3072, 24, 128), (5120, 40, 128))


def cases() -> dict[str, Callable[[], object]]:
    """A call for each name. The tensors are small and their values do not matter."""
    found: dict[str, Callable[[], object]] = {}
    for dim, rows, tokens, dtype in ATTENTION:
        name = f"{_name(dtype)}, D {dim}, {rows} rows, groups of {tokens}"
        found[name] = partial(_attention, dim, rows, tokens, dtype)
    for dtype in (HALF, FULL):
        for width, heads, dim in MODELS if dtype == HALF else MODELS[:1]:
            name = f"{_name(dtype)}, width {width}"
            found[name] = partial(_frame_rows, width, dtype)
            found[f"{_name(dtype)}, {heads} x {dim}"] = partial(_pages, heads, dim, dtype)
        found[_name(dtype)] = partial(_noise, dtype)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _attention(dim: int, rows: int, tokens: int, dtype: torch.dtype) -> None:
    table = FrameTable.build([tokens, tokens], [[1, 0], [1]], [[rows, 1], [rows]])
    q, pool = torch.zeros(2 * tokens, 4, dim, dtype=dtype), torch.zeros(2, 2, rows, dim, dtype=dtype)
    lists = (table.frame_ptr, table.group_ptr, table.page_ptr, table.pages, table.valid, table.seen)
    o, lse = frame_attention.run(q, pool, pool, *lists, table.bias, 0.1)
    frame_attention_backward.run(o, None, q, pool, pool, o, lse, *lists, table.bias, 0.1)


def _frame_rows(width: int, dtype: torch.dtype) -> None:
    x, table = torch.zeros(64, width, dtype=dtype), torch.zeros(2, 6, width, dtype=dtype)
    ids = torch.zeros(64, dtype=torch.int32)
    for norm in ("layer", "rms"):
        modulate.run(x, table[:, 0], table[:, 1], ids, norm, 1e-6, False)
        modulate.backward(x, x[:0], x, table[:, 1], ids, norm, 1e-6)
    gate_residual.run(x, x, table[:, 2], ids, table[0, 0])
    gate_residual.backward(x, x, table[:, 2], ids, table[0, 0])
    for bias in (table[0, 0], None):
        bias_gelu.run(x, bias)
        bias_gelu.backward(x, x, bias)


def _pages(heads: int, dim: int, dtype: torch.dtype) -> None:
    qkv = torch.zeros(4, 3 * heads * dim, dtype=dtype)
    pool = torch.zeros(2, 3, heads, 32, dim, dtype=dtype)
    ids, frequencies = torch.arange(4), torch.ones(dim // 2, dtype=torch.float64)
    for norm, size in (("layer", dim), ("rms_full", heads * dim)):
        weights = [torch.ones(size, dtype=dtype)] * 4
        norm_rope_write.run(
            qkv, pool[0], pool[0], ids, ids, heads, heads, norm, *weights, 1e-5, frequencies, None
        )
        q, k, v = norm_rope_pages.run(
            qkv, ids, ids, 1, 32, heads, heads, dim, norm, *weights, 1e-5, frequencies
        )
        norm_rope_pages.backward(q, k, v, qkv, ids, ids, heads, heads, norm, *weights[:2], 1e-5, frequencies)
        q, k, v = norm_rope.run(qkv, ids, heads, heads, norm, *weights, 1e-5, frequencies, qkv[0])
        norm_rope.backward(q, k, v, qkv, ids, heads, heads, norm, *weights[:2], 1e-5, frequencies, qkv[0])
    pages.copy_pages(pool, pool, ids[:1], ids[1:2])
    pool_pages.run(pool, ids[None, :2], ids[2:3], None)
    pool_pages.run(pool, ids[None, :2], ids[2:3], torch.zeros(1, 2, *pool.shape[2::2]))
    pages.rotate_pages(pool, ids[:1], ids[1:2], frequencies, None)


def _noise(dtype: torch.dtype) -> None:
    x, keys = torch.zeros(4, 2048, dtype=dtype), torch.zeros(4, 5, dtype=torch.int64)
    levels, rows = torch.zeros(4), torch.zeros(4, 9)
    philox_normal.run(keys, 2048)
    add_noise.run(x, levels, levels, None, keys, "v")
    add_noise.run(x, levels, levels, x, None, "eps")
    solver_step.run(x, x.expand(2, 4, 2048), torch.zeros(2, 4), rows, None, None, None, keys, None)
    solver_step.run(x, x.expand(2, 4, 2048), torch.zeros(2, 4), rows, x, x, x, None, x)
    for rule in ("fopp", "uniform", "iid", "shared"):
        sample_timesteps.run(64, 16, 1000, rule, 0, 0, "cpu")
