# SPDX-License-Identifier: Apache-2.0
"""Argument checks of the ops that normalise and rotate q and k: `norm_rope`, `norm_rope_pages`,
`norm_rope_write_`; and of `rotate_pages_`."""

from __future__ import annotations

import torch

from ardiff_engine.arguments import choice, integer
from ardiff_engine.errors import ConfigError, TensorError, explain
from ardiff_engine.ops.checks import device, shape, token_rows

NORMS = ("none", "layer", "rms", "rms_full")


def check_norm_rope(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    kv_heads: int,
    norm: str,
    affine: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    frequencies: torch.Tensor | None,
    qkv_bias: torch.Tensor | None,
) -> int:
    """Checks the metadata of all arguments and returns the head dimension."""
    choice("norm", norm, NORMS)
    tokens, width = token_rows("qkv", qkv, "W")
    heads, kv_heads = integer("heads", heads), integer("kv_heads", kv_heads)
    if heads < 1 or kv_heads < 1 or width % (heads + 2 * kv_heads) or heads % kv_heads:
        raise ConfigError(
            explain(
                "head counts",
                got=f"heads={heads}, kv_heads={kv_heads}, row width {width}",
                expected="a row of heads + 2 kv_heads equal parts, and heads a multiple of kv_heads",
                fix="Pass the counts of the model that made qkv.",
            )
        )
    head_dim = width // (heads + 2 * kv_heads)
    fits = positions.shape[:1] == (tokens,) and positions.ndim <= 2 and num_axes(positions) > 0
    if positions.dtype != torch.int64 or not fits or positions.device != qkv.device:
        raise TensorError(
            explain(
                "positions",
                got=f"{positions.dtype} {list(positions.shape)} on {positions.device}",
                expected=f"torch.int64 [{tokens}] or [{tokens}, axes] on {qkv.device}",
                fix="Pass one position per token and axis.",
            )
        )
    if norm == "none" and any(a is not None for a in affine):
        raise ConfigError(
            explain(
                "norm weights",
                got="weights with norm='none'",
                expected="none",
                fix="Choose a norm, or drop them.",
            )
        )
    for index, value in enumerate(affine):
        if value is not None:
            name = ("q_weight", "q_bias", "k_weight", "k_bias")[index]
            shape(name, value, (head_dim * (1 if norm != "rms_full" else heads if index < 2 else kv_heads),))
            device(name, value, qkv.device)
    if qkv_bias is not None:
        shape("qkv_bias", qkv_bias, (width,))
        device("qkv_bias", qkv_bias, qkv.device)
    if frequencies is not None:
        check_frequencies(frequencies, head_dim, qkv.device, tuple(positions.shape[1:]))
    return head_dim


def num_axes(positions: torch.Tensor) -> int:
    """Of positions [T] or [T, axes]."""
    return 1 if positions.ndim == 1 else positions.shape[1]


def check_frequencies(
    frequencies: torch.Tensor, head_dim: int, on: torch.device, axes: tuple[int, ...] = ()
) -> None:
    """axes: none, or how many the positions have."""
    if head_dim % 2:
        raise ConfigError(
            explain(
                "head dimension",
                got=head_dim,
                expected="an even number",
                fix="RoPE rotates pairs of columns.",
            )
        )
    shape("frequencies", frequencies, (*axes, head_dim // 2))
    device("frequencies", frequencies, on)
    if not frequencies.is_floating_point():
        raise TensorError(
            explain(
                "dtype of frequencies",
                got=frequencies.dtype,
                expected="float64",
                fix="Convert with .double().",
            )
        )
