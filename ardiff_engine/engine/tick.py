# SPDX-License-Identifier: Apache-2.0
"""The device work of a pass: the network over all cells, then the solver over those that move.

Precision is decided here and nowhere else. The network runs in the dtype of its weights, and so do K/V in
their pages and the model's tables. Latents, guidance, noise and the solver are float32: an update is a
small difference of large numbers, and S of them in bfloat16 would leave their rounding in the video.

On CUDA the call reads no value back, copies nothing from the host and allocates by shapes alone, so that a
CUDA graph can hold it (engine.tick_graphs).
"""

from __future__ import annotations

import time

import torch

from ardiff_engine import ops
from ardiff_engine.engine.batch import Batch
from ardiff_engine.engine.schedules import Schedules
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.ranges import annotate


class Tick:
    """model_seconds, solver_seconds: host time of all calls."""

    def __init__(self, model: VideoModel, schedules: Schedules) -> None:
        self._model = model
        self._schedules = schedules
        self.dtype = model.dtype
        self.model_seconds = self.solver_seconds = 0.0

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents float32 [U, L, C] at their next level; bool [U]: whether all numbers of one are finite."""
        started = time.perf_counter()
        with annotate("ardiff.model"):
            out = self._network(batch)
        computed = time.perf_counter()
        with annotate("ardiff.solver"):
            latents = self._solve(batch, out)
            # NaN and infinity survive a sum of absolute values, and nothing else makes one of them.
            finite = torch.isfinite(latents.flatten(1).abs().sum(dim=1, dtype=torch.float64))
        self.model_seconds += computed - started
        self.solver_seconds += time.perf_counter() - computed
        return latents, finite

    def _network(self, batch: Batch) -> torch.Tensor:
        condition = None if batch.condition is None else batch.condition.to(self.dtype)
        out = self._model(batch.x.to(self.dtype), batch.cells, self._schedules.tables, condition)
        return out.float()

    def _solve(self, batch: Batch, out: torch.Tensor) -> torch.Tensor:
        if not batch.branch_cells.numel():
            return batch.x[:0]
        outs = out.flatten(1)[batch.branch_cells.reshape(-1)]
        new = ops.solver_step(
            batch.x.flatten(1)[batch.branch_cells[0]],
            outs.reshape(*batch.branch_cells.shape, -1),
            batch.weights,
            self._schedules.coefficients[batch.coefficients],
            keys=batch.keys,
        ).x
        return new.unflatten(1, batch.x.shape[1:])
