# SPDX-License-Identifier: Apache-2.0
"""QK-norm and rotary position on a packed projection, in PyTorch and differentiable: the formula of
`norm_rope_write_`, and what training uses.

    row = qkv + bias = [q heads | k heads | v heads]
    q, k = norm(q) q_weight + q_bias, norm(k) k_weight + k_bias
           "layer" and "rms" over each head's d columns, "rms_full" over all heads together (Wan)
    (z[2j], z[2j+1]) -> (z[2j] cos - z[2j+1] sin, z[2j+1] cos + z[2j] sin)
           of the angle position * frequencies[j], for q and k

RoPE (Su et al. 2021) with interleaved pairs. The angle is computed and reduced in float64, so it is exact
for any position below 2^31; half precision is otherwise computed in float32.
"""

from __future__ import annotations

import torch

from ardiff_engine.errors import ConfigError, TensorError, explain
from ardiff_engine.ops.checks import device, optional, shape, tensor

NORMS = ("none", "layer", "rms", "rms_full")


def norm_rope(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    *,
    heads: int,
    kv_heads: int | None = None,
    norm: str = "none",
    q_weight: torch.Tensor | None = None,
    q_bias: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    k_bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    frequencies: torch.Tensor | None = None,
    qkv_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qkv [T, (heads + 2 kv_heads) d] -> q [T, heads, d], k and v [T, kv_heads, d], in the dtype of qkv.

    positions int64 [T]; kv_heads None = heads; weights and biases of the norm: [d], for "rms_full" [heads d]
    and [kv_heads d], None for none; frequencies float64 [d / 2], None for no rotation; qkv_bias like a row
    of qkv. Differentiable in everything but positions and frequencies.

    Raises:
        ConfigError: an unknown norm, or head counts that do not divide the row.
        TensorError: a wrong shape, dtype or device.
    """
    qkv, positions = tensor("qkv", qkv), tensor("positions", positions)
    q_weight, q_bias = optional("q_weight", q_weight), optional("q_bias", q_bias)
    k_weight, k_bias = optional("k_weight", k_weight), optional("k_bias", k_bias)
    frequencies, qkv_bias = optional("frequencies", frequencies), optional("qkv_bias", qkv_bias)
    kv_heads = kv_heads or heads
    check_norm_rope(
        qkv, positions, heads, kv_heads, norm, (q_weight, q_bias, k_weight, k_bias), frequencies, qkv_bias
    )
    tokens, head_dim = qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads)
    row = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    if qkv_bias is not None:
        row = row + qkv_bias
    q, k, v = row.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    q = _normalise(q, norm, head_dim, q_weight, q_bias, eps)
    k = _normalise(k, norm, head_dim, k_weight, k_bias, eps)
    if frequencies is not None:
        angle = positions.double()[:, None] * frequencies.double()
        cosine, sine = angle.cos().to(row.dtype)[:, None], angle.sin().to(row.dtype)[:, None]
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
    return q.to(qkv.dtype), k.to(qkv.dtype), v.reshape(tokens, kv_heads, head_dim).to(qkv.dtype)


def rotate(z: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotates the interleaved pairs of the last dimension; cosine and sine broadcast over [..., d / 2]."""
    even, odd = z[..., 0::2], z[..., 1::2]
    return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)


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
    if norm not in NORMS:
        raise ConfigError(
            explain("norm", got=repr(norm), expected=" or ".join(NORMS), fix="Pass one of these.")
        )
    if qkv.dim() != 2 or not qkv.is_floating_point():
        raise TensorError(
            explain(
                "qkv",
                got=f"{qkv.dtype} {list(qkv.shape)}",
                expected="floating point [T, W]",
                fix="Flatten it.",
            )
        )
    tokens, width = qkv.shape
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
    if positions.dtype != torch.int64 or positions.shape != (tokens,) or positions.device != qkv.device:
        raise TensorError(
            explain(
                "positions",
                got=f"{positions.dtype} {list(positions.shape)} on {positions.device}",
                expected=f"torch.int64 [{tokens}] on {qkv.device}",
                fix="Pass one position per token.",
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
        check_frequencies(frequencies, head_dim, qkv.device)
    return head_dim


def check_frequencies(frequencies: torch.Tensor, head_dim: int, on: torch.device) -> None:
    if head_dim % 2:
        raise ConfigError(
            explain(
                "head dimension",
                got=head_dim,
                expected="an even number",
                fix="RoPE rotates pairs of columns.",
            )
        )
    shape("frequencies", frequencies, (head_dim // 2,))
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


def _normalise(
    z: torch.Tensor,
    norm: str,
    head_dim: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """z [T, h d] -> [T, h, d]"""
    heads = (z.shape[0], z.shape[1] // head_dim, head_dim)
    if norm != "rms_full":
        z = z.reshape(heads)
    if norm == "layer":
        z = z - z.mean(-1, keepdim=True)
    if norm != "none":
        z = z * torch.rsqrt((z * z).mean(-1, keepdim=True) + eps)
    if weight is not None:
        z = z * weight
    if bias is not None:
        z = z + bias
    return z.reshape(heads)
