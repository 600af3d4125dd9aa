# SPDX-License-Identifier: Apache-2.0
"""A block over pages as one native call (csrc/bindings/dit_block.cpp), where nothing stands in its way.

A pass over one frame is a few hundred microseconds of arithmetic per block; ten ops called one by one from
Python cost as much again, and a pass over memory for the bias, the GELU and each residual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ardiff_engine.errors import PageTableError, explain
from ardiff_engine.models.ar_diffusion_config import ARDiffusionConfig
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.paged_attention import QK_NORM_EPS, PagedAttention
from ardiff_engine.models.row_linear import RowLinear
from ardiff_engine.ops.backend import on_native_cpu
from ardiff_engine.ops.native_kernels import kernels

if TYPE_CHECKING:
    from ardiff_engine.models.ar_diffusion_block import Block


def workspace(h: torch.Tensor, batch: CellBatch, config: ARDiffusionConfig) -> torch.Tensor | None:
    """Scratch for the blocks of a pass over h [T, D]; None where no block can run natively."""
    if torch.is_grad_enabled() or not on_native_cpu(h):
        return None
    return h.new_empty(
        kernels().dit_block_floats(_sizes(h, config.mlp_width, config.heads, 0, batch.k_pages[0]))
    )


def fits(block: Block, h: torch.Tensor, rows: torch.Tensor, attend: PagedAttention) -> bool:
    """Whether the call gives what the block's modules would.

    A layer that was replaced or hooked (LoRA, quantisation, an observer) must be called as a module.
    """
    if attend.workspace is None or not (_plain(h) and _plain(rows)):
        return False
    linears = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    if not all(type(layer) is RowLinear and layer.weight.dtype == torch.float32 for layer in linears):
        return False
    modules: tuple[nn.Module, ...] = (block.attn, block.mlp, *linears)
    return not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


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
    linears = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    weights = [address for layer in linears for address in _addresses(layer.packed().panels, layer.bias)]
    try:
        kernels().dit_block(
            (*weights, *_addresses(*block.attn.qk_weights())),
            _addresses(
                h,
                rows,
                frame_ids,
                batch.slots,
                attend.positions,
                attend.frequencies,
                k_pages,
                v_pages,
                scratch,
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
