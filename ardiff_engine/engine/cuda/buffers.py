# SPDX-License-Identifier: Apache-2.0
"""The memory of a recorded pass: every tensor that it reads or returns, at addresses that never change.

A batch comes in by one copy for what changes every pass (levels), one for what changes with the layout
(pages, views, positions), and one on the device for the latents. Host values travel in one piece of
page-locked memory each, without waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from math import prod

import torch

from ardiff_engine.engine.batch import Batch
from ardiff_engine.engine.cuda.shapes import PaddedLayout, PaddedTable, PassShape
from ardiff_engine.host_copy import staging_for
from ardiff_engine.models.cell_batch import CellBatch, ConditionPages
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.ops.attention_work import keep_recorded
from ardiff_engine.ops.frame_table import FrameTable
from ardiff_engine.ops.noise_keys import KEY_COLUMNS

ALIGNMENT = 16  # of a tensor in its block: kernels read 16 bytes at a time

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Block:
    """Tensors of several shapes and dtypes in one piece of memory, filled by one copy."""

    def __init__(self, fields: Fields, device: torch.device) -> None:
        self._fields = fields
        sizes = [
            -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT for shape, dtype in fields.values()
        ]
        self._starts = [0, *accumulate(sizes)]
        self._bytes = torch.zeros(self._starts[-1], dtype=torch.uint8, device=device)
        self.tensors = self._views(self._bytes)

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Values in host memory, one for each field, of its shape."""
        staging = staging_for(self._bytes)
        for name, tensor in self._views(staging).items():
            tensor.copy_(values[name])
        self._bytes.copy_(staging, non_blocking=True)

    def _views(self, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        views = {}
        for start, (name, (shape, dtype)) in zip(self._starts, self._fields.items(), strict=False):
            end = start + prod(shape) * dtype.itemsize
            views[name] = memory[start:end].view(dtype).reshape(shape)
        return views


TABLE = ("frame_ptr", "group_ptr", "page_ptr", "pages", "valid", "seen", "bias")
CONDITIONS = "condition{}_"  # before the names of what the table of a part of them has


class PassBuffers:
    """batch: what the pass reads. latents [moved, C], finite [updates], history [planes, moved, C]: what it
    leaves."""

    def __init__(self, layout: PaddedLayout, like: Batch, spec: ModelSpec) -> None:
        shape, device = layout.shape, like.cells.k_pages.device
        self.shape = shape
        self._loaded: PaddedLayout | None = None
        self._layout = Block(_fields_of(_layout_values(layout)), device)
        self._levels = Block(_level_fields(shape, spec), device)
        x = like.x.new_empty(shape.tokens, spec.channels)
        condition = None
        if like.condition is not None:
            condition = like.condition.new_empty(shape.contexts, *like.condition.shape[1:])
        self.latents = x.new_empty(shape.moved, spec.channels)
        self.history = x.new_zeros(shape.planes, *self.latents.shape)
        self.finite = torch.empty(shape.updates, dtype=torch.bool, device=device)
        held, levels = self._layout.tensors, self._levels.tensors
        k_pages, v_pages = like.cells.k_pages, like.cells.v_pages
        tables = [
            self._table(own, CONDITIONS.format(part), like, spec)
            for part, own in enumerate(layout.conditions)
        ]
        self.batch = Batch(
            cells=CellBatch(
                num_contexts=shape.contexts,
                slots=held["slots"],
                positions=held["positions"],
                frame_ids=levels["frame_ids"],
                table=self._table(layout.table, "", like, spec),
                k_pages=k_pages,
                v_pages=v_pages,
                conditions=ConditionPages(k_pages, v_pages, tuple(tables)) if tables else None,
                inputs={own.name: x.new_zeros(len(x), own.width(spec)) for own in spec.frame_inputs},
            ),
            x=x,
            condition=condition,
            spans=shape.spans,
            branch_cells=held["branch_cells"],
            weights=levels["weights"],
            coefficients=levels["coefficients"],
            keys=levels["keys"] if shape.noisy else None,
            history=torch.zeros_like(self.history) if shape.planes else None,
        )

    def load(self, layout: PaddedLayout, batch: Batch) -> None:
        """Put a batch of this shape into the buffers; `layout` is its padded layout."""
        if layout is not self._loaded:
            self._loaded = None
            self._layout.load(_layout_values(layout))
            self._loaded = layout
        levels = {
            "frame_ids": layout.rows.padded(batch.cells.frame_ids, 0),
            "coefficients": layout.updates.padded(batch.coefficients, 0),
            "weights": layout.updates.padded(batch.weights.T, 0).T,
        }
        if batch.keys is not None:
            levels["keys"] = layout.updates.padded(batch.keys, 0)
        self._levels.load(levels)
        layout.tokens.fill(self.batch.x, batch.x)
        for name, rows in batch.cells.inputs.items():
            layout.tokens.fill(self.batch.cells.inputs[name], rows)
        if batch.history is not None and self.batch.history is not None:
            for into, plane in zip(self.batch.history, batch.history, strict=True):
                layout.moved.fill(into, plane)
        if batch.condition is not None and self.batch.condition is not None:
            self.batch.condition[: len(batch.condition)].copy_(batch.condition)

    def _table(self, padded: PaddedTable, prefix: str, like: Batch, spec: ModelSpec) -> FrameTable:
        """The table over tensors of this memory, and its schedule if it has one."""
        held = self._layout.tensors
        table = padded.table.over({name: held[prefix + name] for name in TABLE if prefix + name in held})
        if padded.work is not None:
            kv_heads = like.cells.k_pages.shape[2]
            keep_recorded(table.offsets, spec.heads, kv_heads, held[prefix + "work"], padded.work)
        return table

    def store(self, latents: torch.Tensor, finite: torch.Tensor, history: torch.Tensor | None) -> None:
        """The last part of the pass: leave its results where the host finds them."""
        self.latents.copy_(latents)
        self.finite.copy_(finite)
        if history is not None:
            self.history.copy_(history)


def _layout_values(layout: PaddedLayout) -> dict[str, torch.Tensor]:
    values = {
        "slots": layout.slots,
        "positions": layout.positions,
        "branch_cells": layout.branch_cells,
    }
    values |= _table_values(layout.table, "")
    for part, own in enumerate(layout.conditions):
        values |= _table_values(own, CONDITIONS.format(part))
    return values


def _table_values(padded: PaddedTable, prefix: str) -> dict[str, torch.Tensor]:
    found = {prefix + name: getattr(padded.table, name) for name in TABLE}
    values = {name: value for name, value in found.items() if value is not None}
    return values if padded.work is None else values | {prefix + "work": padded.work.words}


def _fields_of(values: Mapping[str, torch.Tensor]) -> Fields:
    return {name: (tuple(value.shape), value.dtype) for name, value in values.items()}


def _level_fields(shape: PassShape, spec: ModelSpec) -> Fields:
    tokens = shape.contexts * spec.context_tokens + shape.tokens
    fields = {
        "frame_ids": ((tokens,), torch.int32),
        "coefficients": ((shape.updates,), torch.int64),
        "weights": ((shape.branches, shape.updates), torch.float32),
    }
    return fields | ({"keys": ((shape.updates, KEY_COLUMNS), torch.int64)} if shape.noisy else {})
