# SPDX-License-Identifier: Apache-2.0
"""Blocks over pages as one native call (csrc/bindings/dit_block.cpp), where nothing stands in its way.

A pass over one frame is a few hundred microseconds of arithmetic per block; ten ops called one by one from
Python cost as much again, and a pass over memory for the bias, the GELU and each residual. Even to find out
that nothing stands in the way costs a tenth of it, so each block keeps what it found (`Prepared`), and only
looks whether that still holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules import module

from ardiff_engine.errors import PageTableError, explain
from ardiff_engine.models.ar_diffusion.config import ARDiffusionConfig
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.dit.paged_attention import QK_NORM_EPS, PagedAttention
from ardiff_engine.ops.backend import on_native_cpu
from ardiff_engine.ops.native_kernels import kernels

if TYPE_CHECKING:
    from ardiff_engine.models.ar_diffusion.block import Block


@dataclass(frozen=True, slots=True)
class Ready:
    """weights: addresses of the packed weights and biases of qkv, proj, fc1, fc2, then of the norms' weights
    and biases. held: what the packed ones belong to: another thread may pack anew during the call."""

    weights: tuple[int, ...]
    hidden: int
    replaces_residual: bool
    held: tuple[object, ...]


class Prepared:
    """What a block found out about its layers, and what tells that it still holds.

    A layer that was replaced or hooked (LoRA, quantisation, an observer) must be called as a module. Packed
    weights are not kept alive: they are let go of when their layer lets go of them.
    """

    def __init__(self, block: Block) -> None:
        linears, vectors = block.linears, block.qk_vectors
        self._block = weakref.ref(block)
        self._hidden = block.mlp.fc1.out_features
        self._modules = [(block._modules, name, block._modules[name]) for name in ("attn", "mlp")]
        for part in (block.attn, block.mlp):
            self._modules += [(part._modules, name, child) for name, child in part._modules.items()]
        self._types = [(part, type(part)) for part in (block.attn, block.mlp, *linears)]
        copies = [layer.packed_copy() for layer in linears]
        panels = [copy.weight.panels.data_ptr() for copy in copies]
        self._linears = [(layer, weakref.ref(copy)) for layer, copy in zip(linears, copies, strict=True)]
        self._vectors = [(layer._parameters, "bias", layer.bias) for layer in linears] + vectors
        self._addresses = [_address(tensor) for _, _, tensor in self._vectors]
        biases, norms = self._addresses[: len(linears)], self._addresses[len(linears) :]
        pairs = zip(panels, biases, strict=True)
        self._weights = (*(address for pair in pairs for address in pair), *norms)

    def ready(self) -> Ready | None:
        """None if the block has changed."""
        block = self._block()
        if block is None:
            return None
        for modules, name, part in self._modules:
            if modules.get(name) is not part:
                return None
        for part, kind in self._types:
            if type(part) is not kind or is_hooked(part):
                return None
        held: list[object] = []
        for layer, ref in self._linears:
            packed = ref()
            if packed is None or layer._packed is not packed or not packed.is_of(layer.weight):
                return None
            held.append(packed)
        for (parameters, name, tensor), address in zip(self._vectors, self._addresses, strict=True):
            if parameters.get(name) is not tensor:
                return None
            if tensor is not None and (tensor.data_ptr() != address or not _plain(tensor)):
                return None
        return Ready(self._weights, self._hidden, block.replaces_residual, tuple(held))


def is_hooked(part: nn.Module) -> bool:
    """Whether calling it would run more, or other, code than the forward of its class."""
    forward = part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__
    return bool(forward or part._backward_hooks or part._backward_pre_hooks)


def all_are_hooked() -> bool:
    forward = module._global_forward_hooks or module._global_forward_pre_hooks
    return bool(forward or module._global_backward_hooks or module._global_backward_pre_hooks)


def ready(block: Block) -> Ready | None:
    """None where the block has to run as modules."""
    if all_are_hooked():
        return None
    found = None if block._prepared is None else block._prepared.ready()
    if found is None and _can_be_prepared(block):
        block._prepared = Prepared(block)
        found = block._prepared.ready()
    return found


def _can_be_prepared(block: Block) -> bool:
    if not block.as_built:
        return False
    hidden = block.mlp.fc1.out_features
    width = block.attn.proj.in_features
    shapes = ((width, 3 * width), (width, width), (width, hidden), (hidden, width))
    for layer, shape in zip(block.linears, shapes, strict=True):
        if (layer.in_features, layer.out_features) != shape or not layer.packs:
            return False
        if layer.bias is not None and not _plain(layer.bias):
            return False
    # A pruned or parametrised norm computes its weight: what it uses is no parameter.
    norms = zip(block.attn.qk_weights(), block.qk_vectors, strict=True)
    return all(own is used and (own is None or _plain(own)) for used, (_, _, own) in norms)


def workspace(
    h: torch.Tensor, batch: CellBatch, positions: torch.Tensor, config: ARDiffusionConfig
) -> torch.Tensor | None:
    """Scratch for the blocks of a pass over h [T, D]; None where they run as modules.

    They do that too for a batch that the native call does not take as it is (other dtypes, strided): the ops
    convert it or say what is wrong with it.
    """
    if torch.is_grad_enabled() or not on_native_cpu(h, batch.k_pages, batch.v_pages):
        return None
    per_token = [(batch.slots, torch.int64), (batch.frame_ids, torch.int32), (positions, torch.int64)]
    if batch.wanted is not None:
        per_token.append((batch.wanted, torch.bool))
    if not all(t.dtype == dtype and t.shape == h.shape[:1] and t.is_contiguous() for t, dtype in per_token):
        return None
    k, v = batch.k_pages, batch.v_pages
    pool = (config.depth, k.shape[1], config.heads, k.shape[3], config.head_dim)
    if k.shape != pool or v.shape != pool or k.stride() != v.stride() or k.stride(4) != 1:
        return None
    return h.new_empty(kernels().dit_block_floats(_sizes(h, config.mlp_width, config.heads, 0, k)))


def runnable(blocks: Sequence[Block], h: torch.Tensor, rows: torch.Tensor) -> list[Ready]:
    """The first blocks that can run as one call, up to one that cannot. rows: of the modulation table."""
    found: list[Ready] = []
    if not (_plain(h) and _plain(rows)):
        return found
    for block in blocks:
        own = ready(block)
        if own is None or (found and _kind(own) != _kind(found[0])):
            break
        found.append(own)
    return found


def _kind(block: Ready) -> tuple[int, bool]:
    """What is the same for all blocks of one call."""
    return block.hidden, block.replaces_residual


def run(
    blocks: Sequence[Ready],
    h: torch.Tensor,
    rows: torch.Tensor,
    rows_stride: int,
    attend: PagedAttention,
    eps: float,
    wanted: torch.Tensor | None = None,
) -> None:
    """h [T, D] -> the output of blocks `attend.layer` and following, in place.

    rows: [M, 6, D] of the modulation table, for the first of them; the next one's are rows_stride further on.
    wanted: bool [T], tokens whose output is wanted of the last of them; the others' h then means nothing.

    Raises:
        PageTableError: slots, views or frame ids that do not fit; nothing is written then.
    """
    batch, table, scratch, layer = attend.batch, attend.batch.table, attend.workspace, attend.layer
    k, v = batch.k_pages, batch.v_pages
    try:
        kernels().dit_blocks(
            [block.weights for block in blocks],
            (
                *_addresses(h, rows, batch.frame_ids, batch.slots),
                *_addresses(attend.positions, attend.frequencies, k[layer], v[layer], scratch),
                0 if scratch is None else scratch.numel(),
                _address(wanted),
            ),
            (
                *_addresses(table.frame_ptr, table.group_ptr, table.page_ptr),
                *_addresses(table.pages, table.valid, table.seen, table.bias),
                table.num_groups,
            ),
            _sizes(h, blocks[0].hidden, attend.heads, rows.shape[0], k),
            rows_stride,
            k.stride(0),
            blocks[0].replaces_residual,
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
    """As struct Shape of csrc/bindings/dit_block.cpp. k_pages: of all layers."""
    tokens, width = h.shape
    _, pages, _, page_rows, dim = k_pages.shape
    return (tokens, width, hidden, heads, dim, rows, pages, page_rows, *k_pages.stride()[1:4])


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _addresses(*tensors: torch.Tensor | None) -> tuple[int, ...]:
    return tuple([_address(tensor) for tensor in tensors])
