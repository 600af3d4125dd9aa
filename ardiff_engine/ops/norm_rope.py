# SPDX-License-Identifier: Apache-2.0
"""QK-norm and rotary position on a packed projection, differentiable: the formula of `norm_rope_write_` and
`norm_rope_pages`, into tensors of their own.

    row = qkv + bias = [q heads | k heads | v heads]
    q, k = norm(q) q_weight + q_bias, norm(k) k_weight + k_bias
           "layer" and "rms" over each head's d columns, "rms_full" over all heads together (Wan)
    (z[2j], z[2j+1]) -> (z[2j] cos - z[2j+1] sin, z[2j+1] cos + z[2j] sin)
           of the angle position * frequencies[j], for q and k

RoPE (Su et al. 2021) with interleaved pairs. The angle is computed and reduced in float64, so it is exact
for any position below 2^31; half precision is otherwise computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch

from ardiff_engine.arguments import integer, number
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.checks import indices, optional, tensor
from ardiff_engine.ops.dispatch import needs_grad, watched, without_autocast
from ardiff_engine.ops.norm_rope_checks import check_norm_rope

Tensor = torch.Tensor
Three = tuple[Tensor, Tensor, Tensor]


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

    Differentiable in everything but positions and frequencies, the kernels for GPUs once; on the CPU and
    traced by torch.compile it is the formula in PyTorch.

    Args:
        qkv: rows of q, k and v of all heads.
        positions: int64 or int32, [T], or [T, axes] with as many rows of frequencies.
        heads, kv_heads: of q, and of k and v; kv_heads None: heads.
        norm: "none", "layer", "rms" over each head, "rms_full" over all heads together.
        q_weight, q_bias, k_weight, k_bias: of the norm, [d], for "rms_full" [heads d] and [kv_heads d];
            None: none.
        eps: added to the variance or mean square.
        frequencies: float64 [d / 2], or [axes, d / 2], where an angle is the sum over the axes; None: no
            rotation.
        qkv_bias: like a row of qkv; None: zero.

    Raises:
        ConfigError: an unknown norm, or head counts that do not divide the row.
        TensorError: a wrong shape, dtype or device.
    """
    qkv, positions = tensor("qkv", qkv), indices("positions", positions)
    q_weight, q_bias = optional("q_weight", q_weight), optional("q_bias", q_bias)
    k_weight, k_bias = optional("k_weight", k_weight), optional("k_bias", k_bias)
    frequencies, qkv_bias = optional("frequencies", frequencies), optional("qkv_bias", qkv_bias)
    heads, eps = integer("heads", heads), number("eps", eps)
    kv_heads = heads if kv_heads is None else integer("kv_heads", kv_heads)
    affine = (q_weight, q_bias, k_weight, k_bias)
    check_norm_rope(qkv, positions, heads, kv_heads, norm, affine, frequencies, qkv_bias)
    arguments = (qkv, positions, heads, kv_heads, norm, *affine, eps, frequencies, qkv_bias)
    floats = (qkv, *affine, qkv_bias)
    if torch.compiler.is_compiling() or choose("norm_rope", *floats).name == "reference":
        return reference_norm_rope(*arguments)
    dispatched = watched(*floats, positions, frequencies) or needs_grad(*floats)
    made: Three = torch.ops.ardiff.norm_rope(*arguments) if dispatched else _run(*arguments)
    return made


@without_autocast
def reference_norm_rope(
    qkv: Tensor, positions: Tensor, heads: int, kv_heads: int | None = None, norm: str = "none",
    q_weight: Tensor | None = None, q_bias: Tensor | None = None, k_weight: Tensor | None = None,
    k_bias: Tensor | None = None, eps: float = 1e-5, frequencies: Tensor | None = None,
    qkv_bias: Tensor | None = None,
) -> Three:  # fmt: skip
    """The specification in PyTorch; differentiable as often as one likes."""
    kv_heads = kv_heads or heads
    tokens, head_dim = qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads)
    row = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    if qkv_bias is not None:
        row = row + qkv_bias
    q, k, v = row.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    q = _normalise(q, norm, head_dim, q_weight, q_bias, eps)
    k = _normalise(k, norm, head_dim, k_weight, k_bias, eps)
    if frequencies is not None:
        cosine, sine = _cos_sin(positions, frequencies, row.dtype)
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
    return q.to(qkv.dtype), k.to(qkv.dtype), v.reshape(tokens, kv_heads, head_dim).to(qkv.dtype)


@without_autocast
def reference_norm_rope_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, positions: Tensor, heads: int, kv_heads: int, norm: str,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, frequencies: Tensor | None,
    qkv_bias: Tensor | None,
) -> Three:  # fmt: skip
    """(dqkv, gradients of q weight, q bias, k weight, k bias in one row, dqkv_bias; empty without one)

    With g the gradient before the rotation, times the weight, and n, r as in the forward pass:
    "layer" dz = r (g - mean(g) - n mean(g n)), "rms" without mean(g), over what the norm runs over.
    """
    dtype, dim = torch.promote_types(qkv.dtype, torch.float32), dq.shape[2]
    row = qkv.to(dtype) if qkv_bias is None else qkv.to(dtype) + qkv_bias
    q, k, _ = row.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=1)
    dq, dk = dq.to(dtype), dk.to(dtype)
    if frequencies is not None:
        cosine, sine = _cos_sin(positions, frequencies, dtype)
        dq, dk = rotate(dq, cosine, -sine), rotate(dk, cosine, -sine)
    dq, of_q = _normalise_backward(dq, q, norm, q_weight, eps)
    dk, of_k = _normalise_backward(dk, k, norm, k_weight, eps)
    drow = torch.cat([dq, dk, dv.to(dtype).flatten(1)], dim=1)
    dbias = drow.new_empty(0) if qkv_bias is None else drow.sum(0)
    return drow.to(qkv.dtype), torch.cat([of_q, of_k]), dbias


def affine_sizes(heads: int, kv_heads: int, head_dim: int, norm: str) -> list[int]:
    """Sizes of q weight, q bias, k weight and k bias."""
    q, k = (heads, kv_heads) if norm == "rms_full" else (1, 1)
    return [q * head_dim, q * head_dim, k * head_dim, k * head_dim]


def rotate(z: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotates the interleaved pairs of the last dimension; cosine and sine broadcast over [..., d / 2]."""
    even, odd = z[..., 0::2], z[..., 1::2]
    return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)


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


def _normalise_backward(
    g: Tensor, z: Tensor, norm: str, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """g [T, h, d], z [T, h d] -> (dz [T, h d], (dweight, dbias) in one row)"""
    g, z = (g.flatten(1)[:, None], z[:, None]) if norm == "rms_full" else (g, z.reshape(g.shape))
    if norm == "none":
        return g.flatten(1), g.new_zeros(2 * g.shape[2])
    if norm == "layer":
        z = z - z.mean(-1, keepdim=True)
    reciprocal = torch.rsqrt((z * z).mean(-1, keepdim=True) + eps)
    n = z * reciprocal
    sums = torch.cat([(g * n).sum((0, 1)), g.sum((0, 1))])
    if weight is not None:
        g = g * weight
    if norm == "layer":
        g = g - g.mean(-1, keepdim=True)
    return (reciprocal * (g - n * (g * n).mean(-1, keepdim=True))).flatten(1), sums


def _cos_sin(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, 1, d / 2]."""
    angle = positions.double()[..., None] * frequencies.double()
    if positions.ndim > 1:
        angle = angle.sum(1)
    return angle.cos().to(dtype)[:, None], angle.sin().to(dtype)[:, None]


def _run(
    qkv: Tensor, positions: Tensor, heads: int, kv_heads: int, norm: str, q_weight: Tensor | None,
    q_bias: Tensor | None, k_weight: Tensor | None, k_bias: Tensor | None, eps: float,
    frequencies: Tensor | None, qkv_bias: Tensor | None,
) -> Three:  # fmt: skip
    affine = (q_weight, q_bias, k_weight, k_bias)
    arguments = (qkv, positions, heads, kv_heads, norm, *affine, eps, frequencies, qkv_bias)
    if choose("norm_rope", qkv, *affine, qkv_bias).name == "triton":
        q, k, v = triton_kernel("norm_rope")(*arguments)
    else:
        # The results of an op may not share memory with its arguments.
        q, k, v = (t.clone() for t in reference_norm_rope(*arguments))
    return q, k, v


def _run_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, positions: Tensor, heads: int, kv_heads: int, norm: str,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, frequencies: Tensor | None,
    qkv_bias: Tensor | None,
) -> Three:  # fmt: skip
    arguments = (
        dq, dk, dv, qkv, positions, heads, kv_heads, norm, q_weight, k_weight, eps, frequencies, qkv_bias,
    )  # fmt: skip
    if choose("norm_rope_backward", dq, dk, dv, qkv, q_weight, k_weight, qkv_bias).name == "triton":
        dqkv, daffine, dbias = triton_kernel("norm_rope_backward")(*arguments)
        return dqkv, daffine, dbias
    return reference_norm_rope_backward(*arguments)


_op = torch.library.custom_op("ardiff::norm_rope", _run, mutates_args=())
_backward_op = torch.library.custom_op("ardiff::norm_rope_backward", _run_backward, mutates_args=())


@_op.register_fake
def _(qkv: Tensor, positions: Tensor, heads: int, kv_heads: int, *_rest: Any) -> Three:
    tokens, head_dim = qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads)
    return (
        qkv.new_empty(tokens, heads, head_dim),
        qkv.new_empty(tokens, kv_heads, head_dim),
        qkv.new_empty(tokens, kv_heads, head_dim),
    )


@_backward_op.register_fake
def _(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, positions: Tensor, heads: int, kv_heads: int, norm: str,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, frequencies: Tensor | None,
    qkv_bias: Tensor | None,
) -> Three:  # fmt: skip
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    sums = qkv.new_empty(sum(affine_sizes(heads, kv_heads, dq.shape[2], norm)), dtype=dtype)
    dbias = qkv.new_empty(0 if qkv_bias is None else qkv.shape[1], dtype=dtype)
    return torch.empty_like(qkv), sums, dbias


def _save(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    (
        qkv, positions, ctx.heads, ctx.kv_heads, ctx.norm, q_weight, q_bias, k_weight, k_bias, ctx.eps,
        frequencies, qkv_bias,
    ) = inputs  # fmt: skip
    ctx.save_for_backward(qkv, positions, q_weight, k_weight, frequencies, qkv_bias)
    ctx.given = tuple(t is not None for t in (q_weight, q_bias, k_weight, k_bias))


def _differentiate(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    qkv, positions, q_weight, k_weight, frequencies, qkv_bias = ctx.saved_tensors
    dqkv, sums, dbias = _backward_op(
        dq, dk, dv, qkv, positions, ctx.heads, ctx.kv_heads, ctx.norm, q_weight, k_weight, ctx.eps,
        frequencies, qkv_bias,
    )  # fmt: skip
    sizes = affine_sizes(ctx.heads, ctx.kv_heads, dq.shape[2], ctx.norm)
    affine = (g if given else None for g, given in zip(sums.split(sizes), ctx.given, strict=True))
    return (dqkv, *(None,) * 4, *affine, None, None, None if qkv_bias is None else dbias)


_op.register_autograd(_differentiate, setup_context=_save)
