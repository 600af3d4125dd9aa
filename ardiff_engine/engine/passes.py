# SPDX-License-Identifier: Apache-2.0
"""Runs the network and the solver over packed cells, and keeps what goes wrong with the stream it belongs to.

A pass that raises serves many streams, and nobody can tell whose fault it was. So it is run again stream by
stream: every fed cell writes its K/V before anyone reads them, so running twice changes nothing, and a row's
result does not depend on its neighbours. Whoever breaks a pass of its own fails; the others go on as if it
had never been there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ardiff_engine import ops
from ardiff_engine.engine.batch import Batch, Packer
from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.layout import Work
from ardiff_engine.engine.schedules import Schedules
from ardiff_engine.engine.stream import Stream
from ardiff_engine.errors import NumericalError, explain, wrapped
from ardiff_engine.models.ar_diffusion import ARDiffusionTransformer
from ardiff_engine.ranges import annotate


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one pass: latents [U, L, C] of the frames that it moved, stream by stream, at their next level; and
    whether all of them are finite."""

    work: Work
    cells: int
    latents: torch.Tensor
    finite: bool

    def finite_latents(self) -> Iterator[tuple[Stream, Feed, torch.Tensor]]:
        """Every stream with its own latents. One whose latents are not finite fails, and is left out."""
        counts = [len(feed.roster.updated) for _, feed in self.work]
        for (stream, feed), latents in zip(self.work, self.latents.split(counts), strict=True):
            if self.finite or bool(torch.isfinite(latents).all()):
                yield stream, feed, latents
                continue
            rows = torch.isfinite(latents).flatten(1).all(dim=1).tolist()
            bad = [frame for frame, ok in zip(feed.roster.updated, rows, strict=True) if not ok]
            stream.fail(
                NumericalError(
                    explain(
                        f"latents of frame {bad[0]} at tick {stream.ticks_done}",
                        got="NaN or infinity",
                        expected="finite numbers",
                        fix="Check the weights and the condition.",
                    )
                )
            )


class Passes:
    """retried: passes run again. packing_, model_, solver_seconds: host time of the last `run`."""

    def __init__(self, model: ARDiffusionTransformer, packer: Packer, schedules: Schedules) -> None:
        self._model = model
        self._packer = packer
        self._schedules = schedules
        self._dtype = model.x_embedder.weight.dtype
        self.retried = 0
        self.packing_seconds = self.model_seconds = self.solver_seconds = 0.0

    def run(self, work: Work) -> list[Outcome]:
        """One pass, or where that fails one per stream. Who fails alone has an error and no outcome."""
        self.packing_seconds = self.model_seconds = self.solver_seconds = 0.0
        return self._run(work, may_free=True)

    def free_workspace(self) -> None:
        self._packer.forget()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run(self, work: Work, may_free: bool) -> list[Outcome]:
        try:
            return [self._attempt(work)]
        except Exception as error:
            self.retried += 1
            if may_free and out_of_memory(error):
                self.free_workspace()
                return self._run(work, may_free=False)
            if len(work) == 1:
                work[0][0].fail(wrapped(error))
                return []
        return [outcome for one in work for outcome in self._run([one], may_free)]

    def _attempt(self, work: Work) -> Outcome:
        started = time.perf_counter()
        with annotate("ardiff.pack"):
            batch = self._packer.pack(work)
        self.packing_seconds += time.perf_counter() - started
        return Outcome(work, batch.x.shape[0], *self.compute(batch))

    def compute(self, batch: Batch) -> tuple[torch.Tensor, bool]:
        """The latents of the frames that it moves [U, L, C], and whether all of them are finite."""
        started = time.perf_counter()
        with annotate("ardiff.model"):
            out = self._forward(batch)
        computed = time.perf_counter()
        with annotate("ardiff.solver"):
            latents = self._solve(batch, out)
            # One number tells it for all: NaN and infinity survive a sum of absolute values, and nothing
            # else makes one of them.
            finite = bool(torch.isfinite(latents.abs().sum(dtype=torch.float64)))
        self.model_seconds += computed - started
        self.solver_seconds += time.perf_counter() - computed
        return latents, finite

    @torch.no_grad()
    def _forward(self, batch: Batch) -> torch.Tensor:
        condition = None if batch.condition is None else batch.condition.to(self._dtype)
        return self._model(batch.x.to(self._dtype), batch.cells, self._schedules.modulation, condition)

    @torch.no_grad()
    def _solve(self, batch: Batch, out: torch.Tensor) -> torch.Tensor:
        if not batch.branch_cells.numel():
            return batch.x[:0]
        outs = out.float().flatten(1)[batch.branch_cells.reshape(-1)]
        new = ops.solver_step(
            batch.x.flatten(1)[batch.branch_cells[0]],
            outs.reshape(*batch.branch_cells.shape, -1),
            batch.weights,
            self._schedules.coefficients[batch.coefficients],
            keys=batch.keys,
            clamp=self._schedules.clamp,
        ).x
        return new.unflatten(1, batch.x.shape[1:])


def out_of_memory(error: Exception) -> bool:
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)
