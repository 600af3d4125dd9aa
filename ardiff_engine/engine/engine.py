# SPDX-License-Identifier: Apache-2.0
"""Many streams, one model, one page pool: every `step()` runs one forward pass over the cells of all running
streams.
"""

from __future__ import annotations

import threading
import time

import torch

from ardiff_engine import ops
from ardiff_engine.diffusion.guidance import Guidance
from ardiff_engine.diffusion.solvers import Solver
from ardiff_engine.engine.batch import Batch, Packer
from ardiff_engine.engine.feed import Feeder
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.stats import EngineStats
from ardiff_engine.engine.stream import Stream
from ardiff_engine.errors import ArdiffError, NumericalError, TensorError, explain
from ardiff_engine.memory import MemoryPolicy, PagePool, RecomputedWindow
from ardiff_engine.models.ar_diffusion import ARDiffusionTransformer
from ardiff_engine.plan import lag as lag_plan


class Engine:
    """Serves a model. Not tied to a thread: `step()` may be called from any, one at a time.

    memory: RecomputedWindow(model's num_frames) if not given. max_pages: size of the page pool.
    """

    def __init__(
        self,
        model: ARDiffusionTransformer,
        *,
        solver: Solver,
        memory: MemoryPolicy | None = None,
        max_pages: int = 1024,
    ) -> None:
        self.model = model.eval()
        self.solver = solver
        self.memory = memory if memory is not None else RecomputedWindow(model.spec.num_frames)
        self.lock = threading.RLock()
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
        request.check(spec)
        plan = lag_plan(request.num_frames, self.solver.num_steps, request.lag, prefix=request.prefix_frames)
        self.memory.check(plan, spec)
        weights = Guidance(request.guidance_scale).weights()
        conditions = [self._condition(request.condition, null=False)]
        if len(weights) > 1:
            conditions.append(
                self._condition(request.negative_condition, null=request.negative_condition is None)
            )
        per_frame = self.pool.pages_for(spec.tokens_per_frame)
        need = len(weights) * (
            self.pool.pages_for(spec.context_tokens) + self.memory.max_frames(plan) * per_frame
        )
        with self.lock:
            lease = self.pool.manager.lease(need)
            feeder = Feeder(plan, self.memory, request.prefix_frames, spec.cacheable)
            stream = Stream(
                self, request, plan, feeder, torch.stack(conditions), weights, lease, self.memory.sinks()
            )
            self._streams.append(stream)
        return stream

    def step(self) -> bool:
        """One pass over all streams that can run; False if there was none."""
        with self.lock:
            started = time.perf_counter()
            self._streams = [stream for stream in self._streams if not stream.done]
            work = [(stream, stream.feeder.next()) for stream in self._streams if stream.runnable]
            if not work:
                return False
            try:
                for stream, feed in work:
                    stream.prepare(feed, self.pool, self.model.spec)
                batch = self._packer.pack(work)
                broken = self._run(batch)
            except Exception as error:
                # The pass served all of them, so none can go on: half-written pages would be silent garbage.
                for stream, _ in work:
                    stream.fail(error if isinstance(error, ArdiffError) else _wrapped(error))
                raise
            for stream, feed in work:
                if stream in broken:
                    stream.fail(broken[stream])
                    continue
                clean = stream.feeder.advance(feed)
                stream.deliver(clean)
                self._frames += len(clean)
                if self._first_frame_seconds is None:
                    self._first_frame_seconds = stream.first_frame_seconds
                self._call_back(stream)
                if stream.feeder.done and not stream.done:
                    stream.finish()
                    self._finished += 1
            self._ticks += 1
            self._cells += batch.x.shape[0]
            self._updates += len(batch.updates)
            self._seconds += time.perf_counter() - started
            return True

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

    # --------------------------------------------------------------------------------------------------
    # private

    @torch.no_grad()
    def _run(self, batch: Batch) -> dict[Stream, ArdiffError]:
        """Forward and solver; writes the new latents back. Streams whose numbers broke, with their errors."""
        condition = None if batch.condition is None else batch.condition.to(self._dtype)
        out = self.model(batch.x.to(self._dtype), batch.cells, self._modulation, condition).float()
        if not batch.updates:
            return {}
        out = out.flatten(1)
        outs = out[batch.branch_cells.reshape(-1)].reshape(*batch.branch_cells.shape, -1)
        x = batch.x.flatten(1)[batch.branch_cells[0]]
        new = ops.solver_step(
            x,
            outs,
            batch.weights,
            self._coefficients[batch.levels],
            keys=batch.keys if self._draws_noise else None,
            clamp=self.solver.clamp,
        ).x
        finite = torch.isfinite(new).all(dim=1).tolist()
        broken: dict[Stream, ArdiffError] = {}
        for (stream, frame), ok, latent in zip(
            batch.updates, finite, new.unflatten(1, batch.x.shape[1:]).unbind(0), strict=True
        ):
            stream.latents[frame] = latent
            if not ok:
                broken[stream] = NumericalError(
                    explain(
                        f"latents of frame {frame} at tick {stream.ticks_done}",
                        got="NaN or infinity",
                        expected="finite numbers",
                        fix="Check the weights and the condition.",
                    )
                )
        return broken

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
    wrapped = ArdiffError(f"the stream was stopped by {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
