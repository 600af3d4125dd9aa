# SPDX-License-Identifier: Apache-2.0
"""One pass over all running streams: their feeds, packed into the tensors that the model and the solver take.

From pass to pass mostly levels change, so everything else is kept in a `Layout` and used again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch

from ardiff_engine.engine.condition_store import ConditionStore
from ardiff_engine.engine.layout import Layout, LayoutBuilder, Work
from ardiff_engine.engine.schedules import Schedules
from ardiff_engine.memory.page_pool import PagePool
from ardiff_engine.models.cell_batch import CellBatch, ConditionPages
from ardiff_engine.models.protocol import VideoModel

LAYOUTS_KEPT = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """cells: for the model. x [N, L, C]; condition [K, *spec.condition.shape] or None.

    The U updates, stream by stream: `branch_cells` int64 [B, U] the cell of each guidance
        branch, `weights` float32 [B, U] its share (0 where a stream has fewer branches), `coefficients` int64
        [U] rows of the coefficient table, `keys` int64 [U, 5] of step noise, None if no solver draws any.
    """

    cells: CellBatch
    x: torch.Tensor
    condition: torch.Tensor | None
    branch_cells: torch.Tensor
    weights: torch.Tensor
    coefficients: torch.Tensor
    keys: torch.Tensor | None


class Packer:
    """Packs feeds. Holds what stays the same from pass to pass.

    Index tensors are packed in host memory. Where the model is elsewhere, whoever runs the pass copies them
    all at once (engine.tick_buffers); latents and conditions lie with the model already.
    """

    def __init__(self, model: VideoModel, pool: PagePool, schedules: Schedules) -> None:
        self._pool = pool
        self._schedules = schedules
        self._builder = LayoutBuilder(model, pool.page_rows)
        self._layouts: OrderedDict[tuple[object, ...], Layout] = OrderedDict()
        self.conditions = ConditionStore(model) if model.spec.condition.kind == "cross" else None

    def pack(self, work: Work, inputs: tuple[torch.Tensor, torch.Tensor | None] | None = None) -> Batch:
        """inputs: x and condition, as in Batch; None: those that the streams have."""
        x, condition = self._inputs(work) if inputs is None else inputs
        layout = self._layout(work)
        passed = np.array([feed.passed for _, feed in work], np.int32)
        risen = passed[layout.update_owners]
        keys = None
        if layout.keys is not None:
            keys = layout.keys.copy()
            keys[:, 4] += risen
        cells = CellBatch(
            num_contexts=layout.num_contexts,
            slots=layout.slots,
            frame_positions=layout.positions,
            frame_ids=torch.from_numpy(layout.rows + layout.row_moves * passed[layout.token_owners]),
            table=layout.table,
            k_pages=self._pool.k,
            v_pages=self._pool.v,
            wanted=layout.wanted,
            conditions=self._condition_pages(work),
        )
        return Batch(
            cells=cells,
            x=x,
            condition=condition,
            branch_cells=layout.branch_cells,
            weights=layout.weights,
            coefficients=torch.from_numpy(layout.coefficients + risen),
            keys=None if keys is None else torch.from_numpy(keys),
        )

    def _layout(self, work: Work) -> Layout:
        parts = [(state.number, state.pages.version, feed.roster) for state, feed in work]
        key = (self._schedules.version, *parts)
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = self._builder.build(work)
            if len(self._layouts) > LAYOUTS_KEPT:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(key)
        return layout

    def _condition_pages(self, work: Work) -> ConditionPages | None:
        if self.conditions is None:
            return None
        return self.conditions.of_pass([(state.conditions, len(feed.roster.frames)) for state, feed in work])

    def _inputs(self, work: Work) -> tuple[torch.Tensor, torch.Tensor | None]:
        conditions = [state.conditions for state, feed in work if feed.roster.feeds_context]
        latents: list[torch.Tensor] = []
        for state, feed in work:
            latents += [state.latents[frame] for frame in feed.roster.frames] * len(state.weights)
        return torch.stack(latents), torch.cat(conditions) if conditions else None

    def forget(self) -> None:
        """Drop kept layouts: workspace that can be built again."""
        self._layouts.clear()
        self._builder.forget()
