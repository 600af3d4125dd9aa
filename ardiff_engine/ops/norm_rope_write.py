# SPDX-License-Identifier: Apache-2.0
"""Everything between the QKV projection and attention over pages, in one pass: bias, QK-norm, RoPE, page
write.

The formula is `norm_rope`'s; K and V then go to row `slots[t]` of the page pool instead of into tensors of
their own.
"""

from __future__ import annotations

import torch

from ardiff_engine.arguments import integer, number
from ardiff_engine.errors import PageTableError, TensorError, explain
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.checks import indices, optional, same, tensor, writable
from ardiff_engine.ops.cuda_launch import address, error_bits, launch_for
from ardiff_engine.ops.dispatch import watched, without_autocast
from ardiff_engine.ops.native_kernels import kernels
from ardiff_engine.ops.norm_rope import reference_norm_rope
from ardiff_engine.ops.norm_rope_checks import NORMS, check_norm_rope, num_axes

# csrc/cuda/norm_rope_write.cu shares a head between the lanes of one warp.
_CUDA_HEAD_BYTES = 1024


def norm_rope_write_(
    qkv: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
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
) -> torch.Tensor:
    """Writes K and V of qkv [T, (heads + 2 kv_heads) d] into pages and returns q [T, heads, d].

    V is copied bit for bit unless there is a qkv_bias. No gradient: use `norm_rope` in training.

    Args:
        qkv: rows of q, k and v of all heads.
        k_pages, v_pages: [P, kv_heads, R, d], a layer of the pool: same strides, rows of d dense; written.
        slots: int64 or int32 [T], page * R + row; -1 writes nothing, all others are distinct.
        positions, heads, kv_heads, norm, q_weight, q_bias, k_weight, k_bias, eps, frequencies, qkv_bias:
            as in `norm_rope`.

    Raises:
        ConfigError: an unknown norm, or head counts that do not divide the row.
        TensorError: a wrong shape, dtype, device or stride, or a gradient that would be lost.
        PageTableError: a slot outside the pool (read on the CPU only); nothing has been written then.
    """
    qkv, slots, positions = tensor("qkv", qkv), indices("slots", slots), indices("positions", positions)
    k_pages, v_pages = writable("k_pages", k_pages), writable("v_pages", v_pages)
    frequencies, qkv_bias = optional("frequencies", frequencies), optional("qkv_bias", qkv_bias)
    heads, eps = integer("heads", heads), number("eps", eps)
    kv_heads = heads if kv_heads is None else integer("kv_heads", kv_heads)
    affine = (
        optional("q_weight", q_weight),
        optional("q_bias", q_bias),
        optional("k_weight", k_weight),
        optional("k_bias", k_bias),
    )
    head_dim = check_norm_rope(qkv, positions, heads, kv_heads, norm, affine, frequencies, qkv_bias)
    _check_pages(qkv, k_pages, v_pages, slots, kv_heads, head_dim)
    if torch.is_grad_enabled():
        weights = dict(zip(("q_weight", "q_bias", "k_weight", "k_bias"), affine, strict=True))
        pages = {"k_pages": k_pages, "v_pages": v_pages}
        _refuse_gradients({"qkv": qkv, **pages, **weights, "frequencies": frequencies, "qkv_bias": qkv_bias})
    floats = (qkv, k_pages, v_pages, *affine, frequencies, qkv_bias)
    run = torch.ops.ardiff.norm_rope_write_ if watched(*floats, slots, positions) else _run
    q: torch.Tensor = run(
        qkv, k_pages, v_pages, slots, positions, heads, kv_heads, norm, *affine, eps, frequencies, qkv_bias
    )
    return q


@without_autocast
@torch.no_grad()
def reference_norm_rope_write_(
    qkv: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    kv_heads: int,
    norm: str,
    q_weight: torch.Tensor | None,
    q_bias: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    k_bias: torch.Tensor | None,
    eps: float,
    frequencies: torch.Tensor | None,
    qkv_bias: torch.Tensor | None,
) -> torch.Tensor:
    """The specification in PyTorch."""
    pages, _, rows, _ = k_pages.shape
    if slots.device.type == "cpu" and slots.numel():
        low, high = torch.aminmax(slots)
        if int(low) < -1 or int(high) >= pages * rows:
            raise _slot_error(int(low) if int(low) < -1 else int(high), pages, rows)
    q, k, v = reference_norm_rope(
        qkv, positions, heads, kv_heads, norm, q_weight, q_bias, k_weight, k_bias, eps, frequencies, qkv_bias
    )
    written = slots >= 0
    page, row = slots[written] // rows, slots[written] % rows
    k_pages[page, :, row] = k[written].to(k_pages.dtype)
    v_pages[page, :, row] = v[written].to(v_pages.dtype)
    return q


def _refuse_gradients(inputs: dict[str, torch.Tensor | None]) -> None:
    lost = [name for name, value in inputs.items() if value is not None and value.requires_grad]
    if lost:
        raise TensorError(
            explain(
                "norm_rope_write_ records no gradient",
                got=f"requires_grad on {', '.join(lost)}",
                expected="none",
                fix="Use norm_rope in training, or call it under torch.no_grad().",
            )
        )


def _check_pages(
    qkv: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
    kv_heads: int,
    head_dim: int,
) -> None:
    for name, pages in (("k_pages", k_pages), ("v_pages", v_pages)):
        size = pages.shape
        if (
            len(size) != 4
            or size != k_pages.shape
            or size[1] != kv_heads
            or size[3] != head_dim
            or pages.stride() != k_pages.stride()
            or (pages.stride(3) != 1 and head_dim > 1)
            or pages.dtype != k_pages.dtype
            or pages.device != qkv.device
        ):
            raise TensorError(
                explain(
                    name,
                    got=f"{pages.dtype} {list(size)} on {pages.device}, strides {pages.stride()}",
                    expected=f"[P, {kv_heads}, R, {head_dim}] on {qkv.device}, dense rows, both pools alike",
                    fix="Pass one layer of the page pool.",
                )
            )
    if slots.dtype != torch.int64 or slots.shape != qkv.shape[:1] or slots.device != qkv.device:
        raise TensorError(
            explain(
                "slots",
                got=f"{slots.dtype} {list(slots.shape)} on {slots.device}",
                expected=f"torch.int64 [{qkv.shape[0]}] on {qkv.device}",
                fix="Pass page * page_rows + row per token, -1 to write nothing.",
            )
        )


def _slot_error(slot: int, pages: int, rows: int) -> PageTableError:
    return PageTableError(
        explain(
            "slots", got=slot, expected=f"-1..{pages * rows - 1}", fix="A slot is page * page_rows + row."
        )
    )


def _check_cuda(
    qkv: torch.Tensor, k_pages: torch.Tensor, named: dict[str, torch.Tensor | None], head_dim: int
) -> None:
    """What the CUDA kernel asks for beyond the op's contract."""
    same("k_pages", k_pages, "qkv", qkv)
    for name, value in named.items():
        if value is not None:
            same(name, value, "qkv", qkv)
    if head_dim * qkv.element_size() > _CUDA_HEAD_BYTES:
        raise TensorError(
            explain(
                "head dimension",
                got=head_dim,
                expected=f"at most {_CUDA_HEAD_BYTES // qkv.element_size()} on the cuda backend",
                fix="Set ARDIFF_BACKEND=reference for such heads.",
            )
        )


def _run(
    qkv: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    kv_heads: int,
    norm: str,
    q_weight: torch.Tensor | None,
    q_bias: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    k_bias: torch.Tensor | None,
    eps: float,
    frequencies: torch.Tensor | None,
    qkv_bias: torch.Tensor | None,
) -> torch.Tensor:
    floats = (q_weight, q_bias, k_weight, k_bias, qkv_bias)
    backend = choose("norm_rope_write_", qkv, k_pages, *floats).name
    if backend == "triton":
        q: torch.Tensor = triton_kernel("norm_rope_write_")(
            qkv, k_pages, v_pages, slots, positions, heads, kv_heads, norm,
            q_weight, q_bias, k_weight, k_bias, eps, frequencies, qkv_bias,
        )  # fmt: skip
        return q
    if backend == "reference":
        return reference_norm_rope_write_(
            qkv, k_pages, v_pages, slots, positions, heads, kv_heads, norm,
            q_weight, q_bias, k_weight, k_bias, eps, frequencies, qkv_bias,
        )  # fmt: skip
    qkv, slots, positions = qkv.contiguous(), slots.contiguous(), positions.contiguous()
    dense = [None if value is None else value.contiguous() for value in floats]
    frequencies = None if frequencies is None else frequencies.to(torch.float64).contiguous()
    pages, _, rows, head_dim = k_pages.shape
    q = qkv.new_empty(qkv.shape[0], heads, head_dim)
    angles = None
    if frequencies is not None and backend == "cpu":
        angles = qkv.new_empty(qkv.shape[0], 2, head_dim)
    arguments = (
        qkv.data_ptr(),
        k_pages.data_ptr(),
        v_pages.data_ptr(),
        slots.data_ptr(),
        positions.data_ptr(),
        q.data_ptr(),
        *map(address, dense),
        address(frequencies),
        address(angles),
        qkv.shape[0],
        heads,
        kv_heads,
        head_dim,
        num_axes(positions),
        pages,
        rows,
        *k_pages.stride()[:3],
        NORMS.index(norm),
        eps,
    )
    if backend == "cuda":
        names = ("q_weight", "q_bias", "k_weight", "k_bias", "qkv_bias")
        _check_cuda(qkv, k_pages, dict(zip(names, dense, strict=True)), head_dim)
        launch_for("norm_rope_write", qkv, *arguments, error_bits(qkv.device).data_ptr())
        return q
    bad = kernels().norm_rope_write(*arguments)
    if bad >= 0:
        raise _slot_error(int(slots[bad]), pages, rows)
    return q


@torch.library.custom_op("ardiff::norm_rope_write_", mutates_args=("k_pages", "v_pages"))
def _norm_rope_write_op(
    qkv: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    kv_heads: int,
    norm: str,
    q_weight: torch.Tensor | None,
    q_bias: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    k_bias: torch.Tensor | None,
    eps: float,
    frequencies: torch.Tensor | None,
    qkv_bias: torch.Tensor | None,
) -> torch.Tensor:
    return _run(
        qkv, k_pages, v_pages, slots, positions, heads, kv_heads, norm,
        q_weight, q_bias, k_weight, k_bias, eps, frequencies, qkv_bias,
    )  # fmt: skip


@_norm_rope_write_op.register_fake
def _norm_rope_write_fake(
    qkv: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    kv_heads: int,
    norm: str,
    q_weight: torch.Tensor | None,
    q_bias: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    k_bias: torch.Tensor | None,
    eps: float,
    frequencies: torch.Tensor | None,
    qkv_bias: torch.Tensor | None,
) -> torch.Tensor:
    return qkv.new_empty(qkv.shape[0], heads, k_pages.shape[3])
