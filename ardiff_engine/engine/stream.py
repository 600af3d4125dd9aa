# SPDX-License-Identifier: Apache-2.0
"""One video being generated: the handle that the user holds, and what the engine keeps for it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ardiff_engine import ops
from ardiff_engine.diffusion.noise import PURPOSE_INITIAL, noise_keys
from ardiff_engine.engine.feed import Feed, Feeder
from ardiff_engine.engine.request import Request
from ardiff_engine.errors import ArdiffError, StreamClosedError, explain
from ardiff_engine.memory.page_manager import Lease
from ardiff_engine.memory.page_pool import PagePool
from ardiff_engine.models.ar_diffusion_config import ModelSpec
from ardiff_engine.plan import Plan

if TYPE_CHECKING:
    from ardiff_engine.engine.engine import Engine


@dataclass(frozen=True, slots=True, eq=False)
class LatentFrame:
    """A frame that has become clean. latent: [tokens, channels]; seconds: since its stream was submitted."""

    index: int
    latent: torch.Tensor
    seconds: float


class Stream:
    """Made by `Engine.submit`. Iterate it (also with `async for`) for frames in order, or take `result()`.

    Leaving the loop and `cancel()` give all pages back. Iterating drives the engine: every pass serves all
    running streams. A stream that is neither read nor cancelled keeps its pages until it is finished.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        plan: Plan,
        feeder: Feeder,
        conditions: torch.Tensor,
        weights: tuple[float, ...],
        lease: Lease,
        sinks: int,
    ) -> None:
        self.request = request
        self.plan = plan
        self.conditions = conditions
        self.weights = weights
        self.feeder = feeder
        self.lease = lease
        self._sinks = sinks
        self.latents: dict[int, torch.Tensor] = {}
        self.context_pages: list[list[int]] = []
        self.frame_pages: list[dict[int, list[int]]] = [{} for _ in weights]
        self._engine = engine
        self._ready: deque[LatentFrame] = deque()
        self._kept: list[torch.Tensor] | None = [] if request.num_frames is not None else None
        self._error: ArdiffError | None = None
        self._finished = False
        self._cancelled = False
        self._collecting = False
        self._started = time.perf_counter()
        self.first_frame_seconds: float | None = None
        # Copied now: the caller may reuse the tensor while the stream still has frames to start from it.
        self._start: torch.Tensor | None = None
        if request.latents is not None:
            self._start = request.latents.detach().to(engine.device, torch.float32, copy=True)
        if request.prefix is not None:
            prefix = request.prefix.detach().to(engine.device, torch.float32, copy=True)
            self.latents.update(enumerate(prefix.unbind(0)))
            if self._kept is not None:
                self._kept.extend(prefix.unbind(0))

    # --- for users

    @property
    def done(self) -> bool:
        """True once nothing more will be computed: finished, cancelled or failed."""
        return self._finished or self._cancelled or self._error is not None

    @property
    def frames_ready(self) -> int:
        """Clean frames that wait to be read."""
        return len(self._ready)

    def take_ready(self) -> list[LatentFrame]:
        """The frames that are ready now, without running anything."""
        # One by one: another thread may be adding frames meanwhile.
        return [self._ready.popleft() for _ in range(len(self._ready))]

    @property
    def ticks_done(self) -> int:
        return self.feeder.tick

    def cancel(self) -> None:
        """Stop, and give all pages back at once. Frames that are ready can still be read."""
        with self._engine.lock:
            if not self.done:
                self._cancelled = True
                self.close()

    def result(self) -> torch.Tensor:
        """Run to the end: clean latents [num_frames, tokens, channels], a given prefix included.

        Frames that were not read by then can still be iterated.
        """
        if self._kept is None:
            raise StreamClosedError(
                explain(
                    "result() of an endless stream",
                    got="num_frames=None",
                    expected="a finite video",
                    fix="Iterate the stream instead.",
                )
            )
        self._collecting = True
        while not self.done:
            self._engine.step()
        self.raise_if_failed()
        if self._cancelled:
            raise StreamClosedError(
                explain(
                    "result() of a cancelled stream",
                    got="an unfinished video",
                    expected="a finished one",
                    fix="Submit a new request.",
                )
            )
        return torch.stack(self._kept)

    def raise_if_failed(self) -> None:
        """Raise the error that ended this stream, if one did."""
        if self._error is not None:
            raise self._error

    def __iter__(self) -> Iterator[LatentFrame]:
        try:
            while (frame := self._next_ready()) is not None:
                yield frame
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[LatentFrame]:
        try:
            while True:
                # A pass takes long compared with a thread hop, and the event loop must stay free meanwhile.
                frame = self._ready.popleft() if self._ready else await asyncio.to_thread(self._next_ready)
                if frame is None:
                    return
                yield frame
        finally:
            self.cancel()

    # --- for the engine

    @property
    def runnable(self) -> bool:
        limit = self.request.ahead_limit
        return not self.done and (limit is None or self._collecting or len(self._ready) < limit)

    def prepare(self, feed: Feed, pool: PagePool, spec: ModelSpec) -> None:
        """Give back pages that nobody sees any more; take pages and noise for the frames that start."""
        for pages in self.frame_pages:
            for frame in [f for f in pages if self._sinks <= f < feed.first_held]:
                self.lease.give_back(pages.pop(frame))
        for frame in [f for f in self.latents if f < feed.first_held]:
            del self.latents[frame]
        if not self.context_pages:
            need = pool.pages_for(spec.context_tokens)
            self.context_pages = [self.lease.take(need) for _ in self.weights]
        for cell in feed.frames:
            if cell.frame not in self.latents:
                self.latents[cell.frame] = self._initial_noise(cell.frame, spec)
            for pages in self.frame_pages:
                if cell.frame not in pages:
                    pages[cell.frame] = self.lease.take(pool.pages_for(spec.tokens_per_frame))

    def view(self, branch: int, first: int, last: int) -> list[int]:
        """Page ids of the sinks before `first` and of the frames first..last, in order."""
        pages = self.frame_pages[branch]
        frames = [*range(min(self._sinks, first)), *range(first, last + 1)]
        return [page for frame in frames for page in pages[frame]]

    def sinks_before(self, first: int) -> int:
        return min(self._sinks, first)

    def deliver(self, frames: list[int]) -> None:
        """Hand frames that became clean to the reader."""
        seconds = time.perf_counter() - self._started
        for frame in frames:
            # Cloned twice: out of the batch that it is a row of, and away from what the reader may do to it.
            latent = self.latents[frame] = self.latents[frame].clone()
            if self.first_frame_seconds is None:
                self.first_frame_seconds = seconds
            if self._kept is not None:
                self._kept.append(latent)
            self._ready.append(LatentFrame(frame, latent.clone(), seconds))

    def finish(self) -> None:
        self._finished = True
        self.close()

    def fail(self, error: ArdiffError) -> None:
        self._error = error
        self.close()

    def close(self) -> None:
        self.lease.close()
        self.frame_pages, self.context_pages = [], []
        self.latents.clear()

    # --- private

    def _initial_noise(self, frame: int, spec: ModelSpec) -> torch.Tensor:
        request, device = self.request, self._engine.device
        if self._start is not None:
            return self._start[frame - request.prefix_frames]
        shape = (spec.tokens_per_frame, spec.channels)
        if request.generator is not None:
            return torch.randn(shape, generator=request.generator, device=request.generator.device).to(device)
        keys = noise_keys(request.seed, request.noise_stream, frame, PURPOSE_INITIAL, 0).to(device)
        return ops.philox_normal(keys, shape[0] * shape[1]).reshape(shape)

    def _next_ready(self) -> LatentFrame | None:
        while not self._ready and not self.done:
            self._engine.step()
        if self._ready:
            return self._ready.popleft()
        self.raise_if_failed()
        return None
