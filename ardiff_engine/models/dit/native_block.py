# SPDX-License-Identifier: Apache-2.0
"""Blocks over pages as one native call (csrc/bindings/dit_block.cpp).

A pass over one frame is a few hundred microseconds of arithmetic per block; ten ops called one by one from
Python cost as much again, and a pass over memory for the bias, the activation and each residual. Weights are
laid out once, when a model is frozen; nothing is looked up or checked again but the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module

from ardiff_engine.errors import ConfigError, PageTableError
from ardiff_engine.models.cell_batch import CellBatch, ConditionPages
from ardiff_engine.models.dit.block_ops import needed
from ardiff_engine.models.dit.block_spec import Attention, BlockSpec, Branch, Heads
from ardiff_engine.models.dit.row_linear import RowLinear
from ardiff_engine.models.dit.transposed_weights import transposed
from ardiff_engine.ops.backend import on_native_cpu
from ardiff_engine.ops.frame_table import FrameTable
from ardiff_engine.ops.linear import PANEL_OUTPUTS
from ardiff_engine.ops.native_kernels import kernels


class NativeBlocks:
    """All blocks of a network, ready for the CPU in float32.

    Weights of plain linear layers are transposed where they are: the parameters become views, and there is
    no second copy. Those of `RowLinear` are packed copies. Everything else is copied.
    """

    def __init__(self, specs: Sequence[BlockSpec]) -> None:
        """ConfigError for sizes that do not fit each other, and for weights that are not plain float32."""
        self._held: list[torch.Tensor] = []
        self._specs = specs
        self._width = specs[0].mlp.down.out_features
        self._native = [self._block(spec) for spec in specs]

    def takes(self, h: torch.Tensor, cells: CellBatch, positions: torch.Tensor) -> bool:
        """Whether a pass over h [T, width] can be this call. What is of another dtype or strided is for the
        ops, which convert it or say what is wrong with it."""
        if torch.is_grad_enabled() or not on_native_cpu(h, cells.k_pages, cells.v_pages):
            return False
        per_token = [(cells.slots, torch.int64), (cells.frame_ids, torch.int32)]
        if cells.wanted is not None:
            per_token.append((cells.wanted, torch.bool))
        if not all(t.dtype == kind and t.shape == h.shape[:1] and t.is_contiguous() for t, kind in per_token):
            return False
        if positions.dtype != torch.int64 or not positions.is_contiguous() or len(positions) != len(h):
            return False
        k, v = cells.k_pages, cells.v_pages
        if k.shape != v.shape or k.stride() != v.stride() or k.stride(4) != 1 or len(k) != len(self._specs):
            return False
        if cells.conditions is not None and len(cells.conditions.tables) != 1:
            return False
        sizes = {(s.self_attention.heads.kv_heads, s.self_attention.heads.dim) for s in self._specs}
        return sizes == {(k.shape[2], k.shape[4])} and _plain(h)

    def run(
        self,
        h: torch.Tensor,
        modulation: torch.Tensor,
        cells: CellBatch,
        positions: torch.Tensor,
        frequencies: torch.Tensor | None,
    ) -> None:
        """h [T, width] -> the output of the last block, in place. modulation: [layers, rows, values, width].

        positions: int64 [T] or [T, axes]; frequencies: float64 [dim / 2] or [axes, dim / 2], None: no
        rotation. The output of tokens that are not `cells.wanted` means nothing.

        Raises:
            PageTableError: slots, views or frame ids that do not fit; nothing is written then.
        """
        if modulation.shape[0] != len(self._native) or modulation.shape[3] != self._width:
            raise PageTableError(
                f"tables of {len(self._native)} layers were expected, got {modulation.shape}."
            )
        modulation = modulation.contiguous()
        rates = None if frequencies is None else frequencies.to(torch.float64).contiguous()
        floats = kernels().dit_block_floats(self._native, len(h), self._width)
        # One for all blocks: half a dozen buffers per layer would be allocated and freed again.
        workspace = h.new_empty(floats)
        batches = [
            (stretch, self._pass(h, modulation, cells, positions, rates, workspace, stretch))
            for stretch in _stretches(cells, len(self._native))
        ]
        try:
            for stretch, batch in batches:
                kernels().dit_blocks(self._native[stretch.start : stretch.stop], batch)
        except IndexError as error:
            raise PageTableError(f"batch: {error}. Pack it anew for this pool.") from error

    def _pass(
        self,
        h: torch.Tensor,
        modulation: torch.Tensor,
        cells: CellBatch,
        positions: torch.Tensor,
        rates: torch.Tensor | None,
        workspace: torch.Tensor,
        layers: range,
    ) -> Any:
        """For layers that see by the same tables."""
        first = layers.start
        k, v = cells.k_pages[first:], cells.v_pages[first:]
        tables = [_pages(k, v, table, own) for own, table in cells.tables_of(first)]
        batch = kernels().PassSpec(
            h=h.data_ptr(),
            modulation=modulation[first:].data_ptr(),
            frame_ids=cells.frame_ids.data_ptr(),
            slots=cells.slots.data_ptr(),
            positions=positions.data_ptr(),
            frequencies=_address(rates),
            # Layers after these read the K/V of all tokens.
            wanted=_address(cells.wanted if layers.stop == len(self._native) else None),
            tokens=len(h),
            width=self._width,
            rows=modulation.shape[1],
            values=modulation.shape[2],
            modulation_stride=modulation.stride(0),
            axes=1 if positions.ndim == 1 else positions.shape[1],
            pages=tables[0],
            further=tables[1:],
            workspace=workspace.data_ptr(),
            workspace_floats=len(workspace),
        )
        if any(spec.cross_attention is not None for spec in self._specs):
            held = self._conditions(cells)
            (table,) = held.tables
            batch.condition = _pages(held.k[first:], held.v[first:], table, range(0))
        return batch

    def _conditions(self, cells: CellBatch) -> ConditionPages:
        held = needed(cells.conditions)
        for spec in self._specs:
            if spec.cross_attention is not None:
                heads = spec.cross_attention.heads
                expected = (len(self._specs), heads.kv_heads, heads.dim)
                if (held.k.shape[0], held.k.shape[2], held.k.shape[4]) != expected or not (
                    held.k.shape == held.v.shape
                    and held.k.is_contiguous()
                    and held.v.is_contiguous()
                    and held.k.dtype == held.v.dtype == torch.float32
                ):
                    raise PageTableError(
                        f"pages of conditions: got {held.k.dtype} {list(held.k.shape)}, expected float32 "
                        f"[{expected[0]}, pages, {expected[1]}, page_rows, {expected[2]}]."
                    )
        return held

    # --- packing

    def _block(self, spec: BlockSpec) -> Any:
        made = kernels().BlockSpec(
            self_attention=self._attention(spec.self_attention, cross=False),
            mlp=kernels().MlpSpec(
                branch=self._branch(spec.mlp.branch),
                up=self._linear("up", (spec.mlp.up,), self._width, spec.mlp.down.in_features),
                down=self._linear("down", (spec.mlp.down,), spec.mlp.up.out_features, self._width),
                activation=getattr(kernels().Activation, spec.mlp.activation),
            ),
            replaces_residual=spec.replaces_residual,
        )
        if spec.cross_attention is not None:
            made.has_cross_attention = True
            made.cross_attention = self._attention(spec.cross_attention, cross=True)
        return made

    def _attention(self, attention: Attention, *, cross: bool) -> Any:
        heads = attention.heads
        inner = heads.heads * heads.dim
        outputs = inner if cross else inner + 2 * heads.kv_heads * heads.dim
        return kernels().AttentionSpec(
            branch=self._branch(attention.branch),
            heads=self._heads(heads),
            projection=self._linear("projections", attention.projections, self._width, outputs),
            out=self._linear("out", (attention.out,), inner, self._width),
        )

    def _heads(self, heads: Heads) -> Any:
        return kernels().HeadsSpec(
            heads=heads.heads,
            kv_heads=heads.kv_heads,
            dim=heads.dim,
            norm=getattr(kernels().HeadNorm, heads.norm),
            eps=heads.eps,
            q_weight=self._vector(heads.q_weight),
            q_bias=self._vector(heads.q_bias),
            k_weight=self._vector(heads.k_weight),
            k_bias=self._vector(heads.k_bias),
        )

    def _branch(self, branch: Branch) -> Any:
        made = kernels().BranchSpec(
            norm=getattr(kernels().RowNorm, branch.norm),
            eps=branch.eps,
            gate=-1 if branch.gate is None else branch.gate,
        )
        if branch.shift is not None and branch.scale is not None:
            made.shift, made.scale = branch.shift, branch.scale
            return made
        zeros = torch.zeros(self._width)
        made.fixed_shift = self._vector(zeros if branch.bias is None else branch.bias)
        made.fixed_scale = self._vector(zeros if branch.weight is None else branch.weight.detach() - 1)
        return made

    def _linear(self, what: str, layers: tuple[nn.Linear, ...], inputs: int, outputs: int) -> Any:
        got = layers[0].in_features, sum(layer.out_features for layer in layers)
        if got != (inputs, outputs) or any(layer.in_features != inputs for layer in layers):
            raise ConfigError(f"{what} of a block: got {got[0]} -> {got[1]}, expected {inputs} -> {outputs}.")
        if any(layer.weight.dtype != torch.float32 for layer in layers):
            raise ConfigError(f"{what} of a block: got {layers[0].weight.dtype} weights, expected float32.")
        if len(layers) == 1 and isinstance(layers[0], RowLinear):
            weights, strides = layers[0].packed().panels, (inputs * PANEL_OUTPUTS, PANEL_OUTPUTS)
        else:
            weights, strides = transposed(layers), (PANEL_OUTPUTS, outputs)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        if len(biases) not in (0, len(layers)):
            raise ConfigError(f"{what} of a block: some of its layers have a bias, expected all or none.")
        bias = torch.cat(biases) if biases else None
        self._held.append(weights)
        return kernels().LinearSpec(
            weights=weights.data_ptr(),
            bias=self._vector(bias),
            inputs=inputs,
            outputs=outputs,
            panel_stride=strides[0],
            input_stride=strides[1],
        )

    def _vector(self, vector: torch.Tensor | None) -> int:
        if vector is None:
            return 0
        own = vector.detach().to(torch.float32).contiguous().clone()
        self._held.append(own)
        return own.data_ptr()


def _stretches(cells: CellBatch, layers: int) -> list[range]:
    """Neighbouring layers that see by the same tables."""
    kinds = [[(own, id(table)) for own, table in cells.tables_of(n)] for n in range(layers)]
    starts = [n for n in range(layers) if n == 0 or kinds[n] != kinds[n - 1]]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], layers], strict=True)]


def is_hooked(part: nn.Module) -> bool:
    """Whether calling it would run more, or other, code than the forward of its class."""
    forward = part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__
    return bool(forward or part._backward_hooks or part._backward_pre_hooks)


def all_are_hooked() -> bool:
    forward = module._global_forward_hooks or module._global_forward_pre_hooks
    return bool(forward or module._global_backward_hooks or module._global_backward_pre_hooks)


def _pages(k: torch.Tensor, v: torch.Tensor, table: FrameTable, heads: range) -> Any:
    """heads: the kv heads that see by the table; none: all."""
    return kernels().PagesSpec(
        k=k.data_ptr(),
        v=v.data_ptr(),
        layer_stride=k.stride(0),
        pages=k.shape[1],
        page_rows=k.shape[3],
        page_stride=k.stride(1),
        head_stride=k.stride(2),
        row_stride=k.stride(3),
        frame_ptr=table.frame_ptr.data_ptr(),
        group_ptr=table.group_ptr.data_ptr(),
        page_ptr=table.page_ptr.data_ptr(),
        page_ids=table.pages.data_ptr(),
        valid=table.valid.data_ptr(),
        seen=table.seen.data_ptr(),
        bias=_address(table.bias),
        groups=table.num_groups,
        first_head=heads.start,
        heads=len(heads),
    )


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_contiguous()


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
