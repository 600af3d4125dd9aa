# SPDX-License-Identifier: Apache-2.0
"""Faults, and how they get into an engine: by wrapping the part of a pass that a place names."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from inside import inside, poison

from ardiff_engine import ops
from ardiff_engine.engine import Engine, Stream
from ardiff_engine.engine.batch import Batch, Packer
from ardiff_engine.engine.layout import Work
from ardiff_engine.engine.state import StreamState
from ardiff_engine.models.dit.native_block import NativeBlocks

ONCE = ("out of memory, once", "cancel", "dead worker")
SHORT_MEMORY = (
    MemoryError("an injected fault"),
    torch.OutOfMemoryError("an injected fault"),
    RuntimeError("DefaultCPUAllocator: not enough memory (an injected fault)"),
)


class Fault:
    """Strikes in passes that feed the victim, from its tick `tick` on: once, or each time until it has ended.

    host: the stream during whose part of the pass it strikes. Only a cancel can come in another one's part:
        the collector may run the end of a forgotten reader anywhere.
    """

    def __init__(self, kind: str, place: str, tick: int, layers: int, chance: random.Random) -> None:
        self.kind, self.place, self.tick = kind, place, tick
        self.layer = chance.randrange(layers)
        self.early = chance.random() < 0.5
        self.struck = 0
        self.victim: Stream | None = None
        self.host: Stream | None = None
        self._short = chance.choice(SHORT_MEMORY)
        self._elsewhere = chance.random() < 0.5
        self._threads: list[threading.Thread] = []

    def due(self) -> bool:
        victim = self.victim
        if victim is None or victim.done or victim.ticks_done < self.tick:
            return False
        return self.kind not in ONCE or not self.struck

    def strike(self) -> None:
        """Raise or cancel. NaN is written by whoever calls this: where depends on the place."""
        self.struck += 1
        if self.kind == "exception":
            raise RuntimeError("an injected fault")
        if self.kind.startswith("out of memory"):
            raise self._short
        if self.kind == "dead worker":
            raise SystemExit
        if self.kind == "cancel":
            assert self.victim is not None
            if self._elsewhere:
                self._threads.append(threading.Thread(target=self.victim.cancel))
                self._threads[-1].start()
            else:
                self.victim.cancel()

    def wait(self) -> None:
        """Let a cancel that another thread asked for come through."""
        while self._threads:
            self._threads.pop().join()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with the fault before it or after it."""

        def with_fault(*arguments: Any, **options: Any) -> Any:
            if self.early and self.due():
                self.strike()
            result = call(*arguments, **options)
            if not self.early and self.due():
                self.strike()
            return result

        return with_fault

    def call_back(self, stream: Stream) -> None:
        """The `on_step` of all streams where the place is the callback."""
        if stream is self.host and self.due():
            if self.kind == "nan":
                poison(stream)
            self.strike()


@contextmanager
def installed(fault: Fault, engine: Engine) -> Iterator[None]:
    """The fault is in the engine while the block runs. `fault.victim` and `fault.host` are set before."""
    pass_ = _Pass(fault, engine)
    with ExitStack() as stack:

        def wrap(owner: object, name: str, by: Callable[..., Any]) -> None:
            stack.enter_context(mock.patch.object(owner, name, by))

        host = fault.host
        assert host is not None

        def of_host(name: str) -> Callable[..., Any]:
            call = getattr(StreamState, name)
            faulty = fault.around(call)
            return lambda state, *rest: (faulty if state is inside(host) else call)(state, *rest)

        wrap(Packer, "pack", lambda _, *given: pass_.pack(*given))
        wrap(Batch, "following", lambda batch, *inputs: pass_.following(batch, *inputs))
        if fault.place == "plan":
            wrap(inside(host).feeder, "next", fault.around(inside(host).feeder.next))
        elif fault.place == "pages":
            wrap(StreamState, "prepare", of_host("prepare"))
        # Block by block: the fault comes between two of them.
        if fault.place in ("layer k", "commit"):
            wrap(NativeBlocks, "run", lambda blocks, *given: pass_.blocks(blocks, *given))
        if fault.place == "layer k":
            # Networks that never run as one native call here have no such layers.
            for block in getattr(engine.model, "layers", ())[fault.layer : fault.layer + 1]:
                stack.callback(block.register_forward_hook(pass_.layer).remove)
        elif fault.place == "commit":
            wrap(ops, "norm_rope_write_", pass_.write)
        elif fault.place == "solver":
            wrap(ops, "solver_step", pass_.solve)
        elif fault.place == "hand-over":
            wrap(StreamState, "settled", of_host("settled"))
        yield


class _Pass:
    """The parts of a pass that serve all streams at once, with the fault in them."""

    def __init__(self, fault: Fault, engine: Engine) -> None:
        self._fault, self._spec = fault, engine.model.spec
        pack, packer = Packer.pack, engine._runner.packer
        self._pack, self._following = partial(pack, packer), Batch.following
        self._write, self._solve = ops.norm_rope_write_, ops.solver_step
        self._run = NativeBlocks.run
        self._work: Work = []
        self._updates: list[StreamState] = []
        self._layer = 0

    def _due(self) -> bool:
        return self._fault.due() and any(state is self._victim for state, _ in self._work)

    @property
    def _victim(self) -> StreamState:
        assert self._fault.victim is not None
        return inside(self._fault.victim)

    def pack(self, work: Work, passes: int = 1) -> Batch:
        self._work = work
        return self._packing(partial(self._pack, work, passes))

    def following(self, batch: Batch, *inputs: Any) -> Batch:
        return self._packing(partial(self._following, batch, *inputs))

    def _packing(self, pack: Callable[[], Batch]) -> Batch:
        self._layer = 0
        here = self._fault.place == "pack" and self._due()
        if here and self._fault.kind == "nan":
            assert self._fault.victim is not None
            poison(self._fault.victim)
        if here and self._fault.early:
            self._fault.strike()
        batch = pack()
        self._updates = [state for state, feed in self._work for _ in feed.roster.updated]
        if here and not self._fault.early and self._fault.due():
            self._fault.strike()
        return batch

    def layer(self, _module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        if not self._due():
            return output
        self._fault.strike()
        if self._fault.kind == "nan":
            return torch.where(self._rows(commits_only=False)[:, None], torch.nan, output)
        return output

    def write(
        self, qkv: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, *rest, **options
    ):
        return self._committing(k, v, slots, lambda: self._write(qkv, k, v, slots, *rest, **options))

    def blocks(self, blocks, h, modulation, cells, positions, frequencies) -> None:
        for layer in range(len(modulation)):
            one, only = copy.copy(blocks), slice(layer, layer + 1)
            one._native, one._specs = blocks._native[only], blocks._specs[only]
            k, v = cells.k_pages[only], cells.v_pages[only]
            wanted = cells.wanted if layer == len(modulation) - 1 else None
            held = cells.conditions
            if held is not None:
                held = replace(held, k=held.k[only], v=held.v[only])
            part = replace(cells, k_pages=k, v_pages=v, wanted=wanted, conditions=held)
            run = partial(self._run, one, h, modulation[only], part, positions, frequencies)
            if self._fault.place == "commit":
                self._committing(k[0], v[0], cells.slots, run)
            else:
                run()
                if layer == self._fault.layer:
                    h.copy_(self.layer(None, None, h))

    def _committing(
        self, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, write: Callable[[], Any]
    ) -> Any:
        here, self._layer = self._layer == self._fault.layer, self._layer + 1
        rows = self._rows(commits_only=True) if here and self._due() else torch.zeros(1, dtype=torch.bool)
        if rows.any() and self._fault.early and self._fault.kind != "nan":
            self._fault.strike()
        written = write()
        if rows.any() and self._due():
            if self._fault.kind == "nan":
                page, row = slots[rows] // k.shape[2], slots[rows] % k.shape[2]
                k[page, :, row] = v[page, :, row] = torch.nan
            if not self._fault.early or self._fault.kind == "nan":
                self._fault.strike()
        return written

    def solve(self, *arguments: Any, **options: Any) -> Any:
        here = self._due()
        if here and self._fault.early:
            self._fault.strike()
        result = self._solve(*arguments, **options)
        if here and self._fault.kind == "nan":
            rows = [i for i, state in enumerate(self._updates) if state is self._victim]
            result.x[rows] = torch.nan
        if here and not self._fault.early and self._fault.due():
            self._fault.strike()
        return result

    def _rows(self, *, commits_only: bool) -> torch.Tensor:
        """bool [T]: the victim's tokens in the pass; contexts come first, then frames, branch by branch."""
        contexts: list[bool] = []
        frames: list[bool] = []
        for state, feed in self._work:
            ours, branches = state is self._victim, len(state.weights)
            if feed.roster.feeds_context:
                contexts += [ours and not commits_only] * (branches * self._spec.context_tokens)
            for updates in feed.roster.updates * branches:
                tokens = self._spec.tokens(state.request.size)
                frames += [ours and not (commits_only and updates)] * tokens
        return torch.tensor(contexts + frames)
