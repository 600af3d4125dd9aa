# SPDX-License-Identifier: Apache-2.0
"""A block over pages as one native call (csrc/bindings/dit_block.cpp), where nothing stands in its way.

A pass over one frame is a few hundred microseconds of arithmetic per block; ten ops called one by one from
Python cost as much again, and a pass over memory for the bias, the GELU and each residual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ardiff_engine.errors import PageTableError, explain
from ardiff_engine.models.ar_diffusion_config import ARDiffusionConfig
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.paged_attention import QK_NORM_EPS, PagedAttention
from ardiff_engine.ops.backend import on_native_cpu
from ardiff_engine.ops.native_kernels import kernels

if TYPE_CHECKING:
    from ardiff_engine.models.ar_diffusion_block import Block


def workspace(
    h: torch.Tensor, batch: CellBatch, positions: torch.Tensor, config: ARDiffusionConfig
) -> torch.Tensor | None:
    """Scratch for the blocks of a pass over h [T, D]; None where they run as modules.

    They do that too for a batch that the native call does not take as it is (other dtypes, strided): the ops
    convert it or say what is wrong with it.
    """
    if torch.is_grad_enabled() or not on_native_cpu(h, batch.k_pages, batch.v_pages):
        return None
    per_token = ((batch.slots, torch.int64), (batch.frame_ids, torch.int32), (positions, torch.int64))
    if not all(t.dtype == dtype and t.shape == h.shape[:1] and t.is_contiguous() for t, dtype in per_token):
        return None
    k, v = batch.k_pages, batch.v_pages
    pool = (config.depth, k.shape[1], config.heads, k.shape[3], config.head_dim)
    if k.shape != pool or v.shape != pool or k.stride() != v.stride() or k.stride(4) != 1:
        return None
    return h.new_empty(kernels().dit_block_floats(_sizes(h, config.mlp_width, config.heads, 0, k[0])))


def fits(block: Block, h: torch.Tensor, rows: torch.Tensor, attend: PagedAttention) -> bool:
    """Whether the call gives what the block's modules would.

    A layer that was replaced or hooked (LoRA, quantisation, an observer) must be called as a module.
    """
    if attend.workspace is None or not block.as_built or not (_plain(h) and _plain(rows)):
        return False
    width, hidden = h.shape[1], block.mlp.fc1.out_features
    shapes = ((width, 3 * width), (width, width), (width, hidden), (hidden, width))
    for layer, shape in zip(block.linears, shapes, strict=True):
        bias = layer.bias
        if (layer.in_features, layer.out_features) != shape or not layer.packs:
            return False
        if bias is not None and not _plain(bias):
            return False
    return all(weight is None or _plain(weight) for weight in block.attn.qk_weights())


def run(
    block: Block,
    h: torch.Tensor,
    rows: torch.Tensor,
    frame_ids: torch.Tensor,
    attend: PagedAttention,
    eps: float,
) -> None:
    """h [T, D] -> the block's output, in place. rows [M, 6, D], frame_ids int32 [T].

    Raises:
        PageTableError: slots, views or frame ids that do not fit; nothing is written then.
    """
    batch, table = attend.batch, attend.batch.table
    k_pages, v_pages, scratch = attend.k_pages, attend.v_pages, attend.workspace
    # Held until the call returns: it runs without the interpreter lock, and another thread may pack anew.
    packed = [layer.packed() for layer in block.linears]
    weights = [
        address
        for layer, weight in zip(block.linears, packed, strict=True)
        for address in _addresses(weight.panels, layer.bias)
    ]
    try:
        kernels().dit_block(
            (*weights, *_addresses(*block.attn.qk_weights())),
            (
                *_addresses(h, rows, frame_ids, batch.slots, attend.positions, attend.frequencies),
                *_addresses(k_pages, v_pages, scratch),
                0 if scratch is None else scratch.numel(),
            ),
            (
                *_addresses(
                    table.frame_ptr,
                    table.group_ptr,
                    table.page_ptr,
                    table.pages,
                    table.valid,
                    table.seen,
                    table.bias,
                ),
                table.num_groups,
            ),
            _sizes(h, block.mlp.fc1.out_features, attend.heads, rows.shape[0], k_pages),
            block.replaces_residual,
            eps,
            QK_NORM_EPS,
        )
    except IndexError as error:
        raise PageTableError(
            explain(
                "batch",
                got=str(error),
                expected="slots, views and frame ids of this pool",
                fix="Pack it anew.",
            )
        ) from error


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_contiguous()


def _sizes(h: torch.Tensor, hidden: int, heads: int, rows: int, k_pages: torch.Tensor) -> tuple[int, ...]:
    """As struct Shape of csrc/bindings/dit_block.cpp."""
    tokens, width = h.shape
    pages, _, page_rows, dim = k_pages.shape
    return (tokens, width, hidden, heads, dim, rows, pages, page_rows, *k_pages.stride()[:3])


def _addresses(*tensors: torch.Tensor | None) -> tuple[int, ...]:
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)
