# SPDX-License-Identifier: Apache-2.0
"""Many streams, one model, one page pool: every `step()` runs one forward pass over the cells of all running
streams.
"""

from __future__ import annotations

import threading
import time

import torch

from ardiff_engine import ops
from ardiff_engine.diffusion.solvers import Solver
from ardiff_engine.engine.admission import admit, check_memory
from ardiff_engine.engine.batch import Batch, Packer
from ardiff_engine.engine.feed import Feed, Feeder
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.stats import EngineStats
from ardiff_engine.engine.stream import Stream
from ardiff_engine.errors import (
    ArdiffError,
    EngineBusyError,
    NumericalError,
    TensorError,
    explain,
)
from ardiff_engine.memory import MemoryPolicy, PagePool, RecomputedWindow
from ardiff_engine.models.ar_diffusion import ARDiffusionTransformer


class Engine:
    """Serves a model. Not tied to a thread: `step()` may be called from any; calls wait for each other.

    memory: RecomputedWindow(model's num_frames) if not given. max_pages: size of the page pool, allocated
        here: max_pages * layers * 2 * heads * page_rows * head_dim numbers. The model's weights are read when
        the engine is built (modulation table) and at every pass: after changing them, build a new engine.
    """

    def __init__(
        self,
        model: ARDiffusionTransformer,
        *,
        solver: Solver,
        memory: MemoryPolicy | None = None,
        max_pages: int = 1024,
    ) -> None:
        self.model = model
        self.solver = solver
        self.memory = memory if memory is not None else RecomputedWindow(model.spec.num_frames)
        check_memory(self.memory)
        self.lock = threading.RLock()
        self._stepping = False
        weight = model.x_embedder.weight
        self.device, self._dtype = weight.device, weight.dtype
        self.pool = PagePool.allocate(model.spec, max_pages, dtype=self._dtype, device=self.device)
        self._packer = Packer(model, self.pool, self.memory, solver.num_steps)
        timesteps = [*solver.timesteps.tolist(), solver.waiting_timestep]
        with torch.no_grad():
            self._modulation = model.modulation_table(
                torch.tensor(timesteps, dtype=torch.float32, device=self.device)
            )
        self._coefficients = solver.coefficients.to(self.device, torch.float32)
        self._draws_noise = bool((solver.coefficients[:, 4] != 0).any())
        self._streams: list[Stream] = []
        self._finished = self._ticks = self._cells = self._updates = self._frames = 0
        self._seconds = 0.0
        self._first_frame_seconds: float | None = None

    def submit(self, request: Request) -> Stream:
        """Admit a video, or raise a typed error and change nothing. It runs from the next `step()` on."""
        spec = self.model.spec
        admission = admit(request, spec, self.memory, self.solver.num_steps)
        plan, weights = admission.plan, admission.weights
        conditions = [self._condition(request.condition, null=False)]
        if len(weights) > 1:
            conditions.append(
                self._condition(request.negative_condition, null=request.negative_condition is None)
            )
        with self.lock:
            lease = self.pool.manager.lease(admission.pages)
            try:
                feeder = Feeder(plan, self.memory, request.prefix_frames, spec.cacheable)
                stream = Stream(
                    self, request, plan, feeder, torch.stack(conditions), weights, lease, self.memory.sinks()
                )
            except BaseException:
                lease.close()
                raise
            self._streams.append(stream)
        return stream

    def step(self) -> bool:
        """One pass over all streams that can run; False if there was none.

        A stream that cannot go on fails alone: its error is raised where it is read. An error of the pass
            itself (out of memory, say) ends all streams that were part of it and is raised here too.
        """
        with self.lock:
            if self._stepping:
                raise EngineBusyError(
                    explain(
                        "a step inside a step",
                        got="step(), result() or iteration in a callback",
                        expected="callbacks that only look, cancel or submit",
                        fix="Run other streams outside of on_step.",
                    )
                )
            self._stepping = True
            try:
                return self._step()
            finally:
                self._stepping = False

    def stats(self) -> EngineStats:
        manager = self.pool.manager
        return EngineStats(
            streams_running=sum(not stream.done for stream in self._streams),
            streams_finished=self._finished,
            pages_free=manager.free,
            pages_held=manager.held,
            pages_total=manager.total,
            ticks=self._ticks,
            cells=self._cells,
            updates=self._updates,
            frames=self._frames,
            seconds=self._seconds,
            cells_per_second=self._cells / self._seconds if self._seconds else 0.0,
            first_frame_seconds=self._first_frame_seconds,
            exact=True,
        )

    # --- private

    def _step(self) -> bool:
        started = time.perf_counter()
        self._streams = [stream for stream in self._streams if not stream.done]
        work = self._feeds()
        if not work:
            return False
        try:
            batch = self._packer.pack(work)
            new, finite = self._run(batch)
        except Exception as error:
            # The pass served all of them, so none can go on: half-written pages would be silent garbage.
            wrapped = _wrapped(error)
            for stream, _ in work:
                stream.fail(wrapped)
            raise wrapped from error
        # First every stream gets what this pass computed, then callbacks run: one that cancels, fails or is
        # interrupted finds all streams at the same tick.
        ticks = [stream.feeder.tick for stream, _ in work]
        self._write_back(batch, new, finite)
        for stream, feed in work:
            if not stream.done:
                self._advance(stream, feed)
        self._ticks += 1
        self._cells += batch.x.shape[0]
        self._updates += len(batch.updates)
        self._seconds += time.perf_counter() - started
        for (stream, _), tick in zip(work, ticks, strict=True):
            if not stream.done and stream.feeder.tick > tick:
                self._call_back(stream)
            self._finish_if_done(stream)
        return True

    def _feeds(self) -> list[tuple[Stream, Feed]]:
        """What each stream that can run feeds, its pages taken. A stream that cannot say so fails alone."""
        work = []
        for stream in self._streams:
            self._finish_if_done(stream)
            if not stream.runnable:
                continue
            try:
                feed = stream.feeder.next()
                stream.prepare(feed, self.pool, self.model.spec)
            except Exception as error:
                stream.fail(_wrapped(error))
                continue
            work.append((stream, feed))
        return work

    def _advance(self, stream: Stream, feed: Feed) -> None:
        clean = stream.feeder.advance(feed)
        stream.deliver(clean)
        self._frames += len(clean)
        if self._first_frame_seconds is None:
            self._first_frame_seconds = stream.first_frame_seconds

    def _finish_if_done(self, stream: Stream) -> None:
        if stream.feeder.done and not stream.done:
            stream.finish()
            self._finished += 1

    @torch.no_grad()
    def _run(self, batch: Batch) -> tuple[torch.Tensor, list[bool]]:
        """Forward and solver: new latents [U, tokens, channels] of the updates, and which of them are
        finite.
        """
        condition = None if batch.condition is None else batch.condition.to(self._dtype)
        out = self.model(batch.x.to(self._dtype), batch.cells, self._modulation, condition).float().flatten(1)
        if not batch.updates:
            return batch.x[:0], []
        outs = out[batch.branch_cells.reshape(-1)].reshape(*batch.branch_cells.shape, -1)
        new = ops.solver_step(
            batch.x.flatten(1)[batch.branch_cells[0]],
            outs,
            batch.weights,
            self._coefficients[batch.levels],
            keys=batch.keys if self._draws_noise else None,
            clamp=self.solver.clamp,
        ).x
        return new.unflatten(1, batch.x.shape[1:]), torch.isfinite(new).all(dim=1).tolist()

    def _write_back(self, batch: Batch, new: torch.Tensor, finite: list[bool]) -> None:
        for (stream, frame), latent, ok in zip(batch.updates, new.unbind(0), finite, strict=True):
            if ok and not stream.done:
                stream.latents[frame] = latent
            elif not stream.done:
                stream.fail(
                    NumericalError(
                        explain(
                            f"latents of frame {frame} at tick {stream.ticks_done}",
                            got="NaN or infinity",
                            expected="finite numbers",
                            fix="Check the weights and the condition.",
                        )
                    )
                )

    def _call_back(self, stream: Stream) -> None:
        if stream.request.on_step is None:
            return
        try:
            stream.request.on_step(stream)
        except Exception as error:
            stream.fail(_wrapped(error))

    def _condition(self, condition: torch.Tensor | int | None, null: bool) -> torch.Tensor:
        model, spec = self.model, self.model.config
        with torch.no_grad():
            if null:
                return model.null_context()[0]
            if condition is None:
                return model.context()[0]
            if isinstance(condition, int):
                return model.context(torch.tensor([condition]))[0]
        expected = (spec.context_tokens, spec.context_dim)
        if tuple(condition.shape) != expected or not bool(torch.isfinite(condition).all()):
            raise TensorError(
                explain(
                    "condition",
                    got=tuple(condition.shape),
                    expected=f"finite {expected}",
                    fix="Give [context_tokens, context_dim], a class id or None.",
                )
            )
        return condition.detach().to(self.device, self._dtype)


def _wrapped(error: Exception) -> ArdiffError:
    if isinstance(error, ArdiffError):
        return error
    wrapped = ArdiffError(f"the stream was stopped by {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
