# SPDX-License-Identifier: Apache-2.0
"""Runs the network and the solver over packed cells, and keeps what goes wrong with the stream it belongs to.

An error of a pass that serves many streams may be any one's fault. So the pass is run again stream by stream:
every fed cell writes its K/V before anyone reads them, so running twice changes nothing, and a row's result
does not depend on its neighbours. A stream that fails alone has an error; the others go on as if it had never
been there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from ardiff_engine import ops
from ardiff_engine.device import DEVICE_WIDE_CALLS, upload
from ardiff_engine.engine.batch import Batch, Packer
from ardiff_engine.engine.cuda.graphs import Computed, PassGraphs
from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.layout import Work
from ardiff_engine.engine.page_lists import ranges
from ardiff_engine.engine.scheduler import Turn
from ardiff_engine.engine.schedules import Schedules
from ardiff_engine.engine.state import StreamState
from ardiff_engine.errors import wrapped
from ardiff_engine.host_copy import HostCopy
from ardiff_engine.models.agreement import check_output
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.ops.cuda_launch import ErrorWords, own_words
from ardiff_engine.ranges import annotate

T = TypeVar("T")
Solved = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Latents, whether those of a frame are finite, and the history of the next step."""


class Forward:
    """The device work of a pass: the network over all cells, then the solver over those that move.

    Precision is decided here and nowhere else. The network runs in the dtype of its weights, and so do K/V in
    their pages and the model's tables. Latents, guidance, noise and the solver are float32: an update is a
    small difference of large numbers, and S of them in bfloat16 would leave their rounding in the video.

    On CUDA the call reads no value back, copies nothing from the host and allocates by shapes alone: a CUDA
    graph can hold it.

    model_seconds, solver_seconds: host time of all calls.
    """

    def __init__(self, model: VideoModel, schedules: Schedules) -> None:
        self._model = model
        self._schedules = schedules
        self.dtype = model.dtype
        self.model_seconds = self.solver_seconds = 0.0

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Solved:
        """Latents float32 [Y, C] at their next level, as in Batch; bool [U]: whether all numbers of a frame
        are finite; the history of the next step, as in Batch."""
        started = time.perf_counter()
        with annotate("ardiff.model"):
            condition = None if batch.condition is None else batch.condition.to(self.dtype)
            x = batch.x.to(self.dtype)
            out = self._model(x, batch.cells, self._schedules.tables, condition).float()
            check_output(self._model, x, out)
        computed = time.perf_counter()
        with annotate("ardiff.solver"):
            latents, finite, history = self._solve(batch, out)
        self.model_seconds += computed - started
        self.solver_seconds += time.perf_counter() - computed
        return latents, finite, history

    def _solve(self, batch: Batch, out: torch.Tensor) -> Solved:
        """Frames of one size at a time, each of them a row of the solver."""
        solved = [self._solve_span(part, own) for part, own in batch.by_span(out)]
        if len(solved) == 1:
            return solved[0]
        latents, finite, histories = zip(*solved, strict=True)
        history = None if batch.history is None else torch.cat(histories, dim=1)
        return torch.cat(latents), torch.cat(finite), history

    def _solve_span(self, batch: Batch, out: torch.Tensor) -> Solved:
        cells, history = batch.branch_cells, batch.history
        branches, updates = cells.shape
        if not updates:
            return batch.x[:0], batch.weights.new_zeros(0, dtype=torch.bool), history
        (span,) = batch.spans
        past = [None] * 3
        if history is not None:
            past = [*history.reshape(len(history), updates, -1), None, None][:3]
        new = ops.solver_step(
            batch.x.reshape(span.cells, -1)[cells[0]],
            out.reshape(span.cells, -1)[cells.reshape(-1)].reshape(branches, updates, -1),
            batch.weights,
            self._schedules.coefficients[batch.coefficients],
            history1=past[0],
            history2=past[1],
            history3=past[2],
            keys=batch.keys,
            noise=None if batch.noise is None else batch.noise.reshape(updates, -1),
        )
        channels = batch.x.shape[1]
        if history is not None:
            history = torch.cat([new.x0.reshape(1, -1, channels), history[:-1]])
        # NaN and infinity survive a sum of absolute values, and nothing else makes one of them.
        finite = torch.isfinite(new.x.abs().sum(dim=1, dtype=torch.float64))
        return new.x.reshape(-1, channels), finite, history


class PassTimes(NamedTuple):
    """Host seconds of one pass. began, ended: time.perf_counter(). model, solver: 0 if a graph repeats it."""

    began: float
    pack: float
    model: float
    solver: float
    ended: float


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Of passes that followed each other over the same work.

    work: the streams, and what each fed in the last pass. latents: [Y, C], of the frames that the last pass
    moved, stream by stream, at their next level. history: theirs, as in Batch. findings: of each pass.
    cells: that all passes fed. sound: whether all numbers are finite; None: see the findings.
    """

    work: Work
    latents: torch.Tensor
    history: torch.Tensor | None
    findings: list[HostCopy]
    cells: int
    sound: bool | None

    @property
    def passes(self) -> int:
        return len(self.findings)

    @property
    def updates(self) -> int:
        """Of one pass."""
        return sum(len(feed.first.updated) for _, feed in self.work)

    def parts(self) -> list[tuple[StreamState, Feed, torch.Tensor, torch.Tensor | None]]:
        """Every stream, the latents [updates * tokens, channels] of its frames, and its history
        [P, updates, ...]."""
        counts = [len(feed.first.updated) for _, feed in self.work]
        tokens = [count * state.tokens for count, (state, _) in zip(counts, self.work, strict=True)]
        latents = self.latents.split_with_sizes(tokens)
        planes: list[torch.Tensor | None] = [None] * len(self.work)
        if self.history is not None:
            own = zip(self.history.split(tokens, dim=1), counts, self.work, strict=True)
            planes = [plane.unflatten(1, (count, state.tokens)) for plane, count, (state, _) in own]
        rows = zip(self.work, latents, planes, strict=True)
        return [(state, feed, own, plane) for (state, feed), own, plane in rows]


@dataclass(slots=True, eq=False)
class Run:
    """What a turn came to. outcomes: one, or where that failed one per stream. failed: streams that cannot be
    served, with their errors. times: of each pass. compute_seconds: spent in network and solver."""

    outcomes: list[Outcome] = field(default_factory=list)
    failed: list[tuple[StreamState, Exception]] = field(default_factory=list)
    times: list[PassTimes] = field(default_factory=list)
    compute_seconds: float = 0.0


class Runner:
    """stop: whether something waits to be done between two passes. retried: passes run again, so far.
    delay: steps that may be on their way when the next one has been started; 0 on the CPU, 1 on a GPU.
    error_words: what kernels of this engine find; those of another one do not reach its streams."""

    def __init__(
        self, packer: Packer, forward: Forward, graphs: PassGraphs, stop: Callable[[], bool]
    ) -> None:
        self.packer = packer
        self.graphs = graphs
        self.delay = 1 if packer.device.type == "cuda" else 0
        self.retried = 0
        self.error_words: ErrorWords = {}
        self._forward = forward
        self._stop = stop

    def run(self, turn: Turn) -> Run:
        run = Run()
        self._run(turn.work, turn.passes, run, may_free=True)
        return run

    def free_workspace(self) -> None:
        self.packer.forget()
        self.graphs.clear()
        gc.collect()
        if torch.cuda.is_available():
            with DEVICE_WIDE_CALLS:
                torch.cuda.empty_cache()

    def tried_again(self, call: Callable[[], T]) -> T:
        """What `call` returns; where memory is short, workspace is freed and it is called once more."""
        try:
            return call()
        except Exception as error:
            if not out_of_memory(error):
                raise
            self.free_workspace()
        return call()

    def _run(self, work: Work, passes: int, run: Run, may_free: bool) -> None:
        try:
            run.outcomes.append(self._passes(work, passes, run))
            return
        except Exception as error:
            self.retried += 1
            if may_free and out_of_memory(error):
                self.free_workspace()
                self._run(work, 1, run, may_free=False)
                return
            if len(work) == 1:
                run.failed.append((work[0][0], wrapped(error)))
                return
        for one in work:
            self._run([one], 1, run, may_free)

    def _passes(self, work: Work, passes: int, run: Run) -> Outcome:
        """Raises if the first one does. A later one that fails has not been: it is done again."""
        batch, computed, sound = self._pass(partial(self.packer.pack, work, passes), run)
        latents, findings, cells = computed.latents, [computed.findings], batch.num_cells
        if sound is False:
            passes = 1
        given = batch.x
        source = _source(work, given.device) if passes > 1 else None
        for _ in range(1, passes):
            if self._stop():
                break
            try:
                x = latents if source is None else torch.cat([latents, given])[source]
                batch, later, fine = self._pass(partial(batch.following, x, computed.history), run)
            except Exception:
                break
            if fine is False:
                break
            computed, latents = later, later.latents
            findings.append(computed.findings)
            cells += batch.num_cells
        if len(findings) > 1:
            work = [(state, feed.later(len(findings) - 1)) for state, feed in work]
        return Outcome(work, latents, computed.history, findings, cells, sound)

    def _pass(self, pack: Callable[[], Batch], run: Run) -> tuple[Batch, Computed, bool | None]:
        """The pass, and whether it computed finite numbers: None where nobody waits to know."""
        forward = self._forward
        began, model, solver = time.perf_counter(), forward.model_seconds, forward.solver_seconds
        with annotate("ardiff.pack"):
            batch = pack()
        packed = time.perf_counter()
        try:
            with own_words(self.error_words):
                self.packer.turn_pages(batch)
                computed = self.graphs.run(batch)
            sound = None if self.delay else good(computed.findings)
        finally:
            ended = time.perf_counter()
            run.compute_seconds += ended - packed
        model, solver = forward.model_seconds - model, forward.solver_seconds - solver
        run.times.append(PassTimes(began, packed - began, model, solver, ended))
        return batch, computed, sound


def good(findings: HostCopy) -> bool:
    """Whether a pass computed finite numbers, and no kernel met ids that do not exist. Waits for the pass."""
    finite, *found = findings.wait()
    return bool(finite.all()) and not (found and int(found[0]))


def out_of_memory(error: Exception) -> bool:
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)


def _source(work: Work, device: torch.device) -> torch.Tensor | None:
    """int64 [X]: where each token's next input lies in what the solver returns, followed by the inputs of the
    first pass over this work.

    None if the first is all: every cell that is fed again moves, and has one branch.
    """
    if all(len(state.weights) == 1 and (f.planned.once or all(f.planned.updates)) for state, f in work):
        return None
    given = sum(len(feed.planned.updated) * state.tokens for state, feed in work)
    begins: list[int] = []
    lengths: list[int] = []
    moved = 0
    for state, feed in work:
        for roster in state.rosters(feed):
            at = moved
            for updates in roster.updates:
                if updates or not feed.planned.once:
                    begins.append(at if updates else given)
                    lengths.append(state.tokens)
                at += updates * state.tokens
                given += state.tokens
        moved += len(feed.planned.updated) * state.tokens
    return upload(torch.from_numpy(ranges(np.array(begins), np.array(lengths))), device)
