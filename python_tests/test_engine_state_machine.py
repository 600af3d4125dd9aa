# SPDX-License-Identifier: Apache-2.0
"""Any order of submitting, stepping, editing, failing and dropping streams keeps the page pool's books right.

The network is replaced by a cheap function, so that tens of thousands of transitions run in a test; plans,
policies, pages, packing and the solver are the real ones. ARDIFF_STATE_MACHINE_EXAMPLES sets the number of
runs of up to 100 transitions (630 by default, 50,000 transitions).
"""

from __future__ import annotations

import gc
import os
from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from effort import examples
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from inside import inside, poison
from test_engine import SCHEDULE

from ardiff_engine import plan
from ardiff_engine.diffusion import solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.errors import ArdiffError, NumericalError, OutOfPagesError
from ardiff_engine.memory import Full, PerLayer, PerLevel, Placed, Ranges, RecomputedWindow, Window
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer

POOL = 60
MEMORIES = (RecomputedWindow(4), Window(3), Window(2, sink=2), Full())
# Blocks, step lists of their own, other orders; and memories that keep copies, or see by level.
OTHER_MEMORIES = (
    Full(joint=True),
    Window(4, joint=True),
    Placed(Window(4), "window"),
    Placed(Window(2, sink=2), "anchored"),
    PerLayer((Window(2), Window(4, sink=1)), (0, 1, 0)),
    Window(4, clean=False),
    PerLevel(Full()),
    PerLevel(Window(4), "same"),
    Ranges((3, 2), 2),
)
TRACKS = tuple(solvers.DDIM(SCHEDULE, num_inference_steps=steps) for steps in (6, 4, 2))
PLANS = (
    (plan.blocks(2), None),
    (plan.blocks(2, first=1), TRACKS),
    (plan.blocks(1), TRACKS),
    (plan.blocks(2, lag=3), None),
    (plan.rolling(2, 2), None),
    (plan.pyramid(0.5), None),
    (plan.stage_major(2), None),
    (plan.stage_major(1, pipelined=True), None),
    (plan.sets([[0, 3], [1], [2, 4]]), None),
)


class CheapModel(ARDiffusionTransformer):
    """Checks what it is given and returns something cheap."""

    def forward(self, x, batch, tables, condition=None):
        slots = batch.slots.tolist()
        assert len(set(slots)) == len(slots), "two tokens write the same row"
        assert len(batch.frame_ids) == len(slots) and int(batch.frame_ids.max()) < tables.rows
        return 0.9 * x


MODEL = CheapModel(
    ARDiffusionConfig(
        num_frames=4,
        tokens_per_frame=2,
        channels=2,
        width=4,
        depth=1,
        heads=2,
        context_tokens=3,
        context_dim=2,
        num_classes=3,
    )
)


class EngineMachine(RuleBasedStateMachine):
    transitions = 0
    """Of all runs: the books are looked at once before the first and after each."""

    def __init__(self) -> None:
        super().__init__()
        EngineMachine.transitions -= 1
        solver = solvers.DDIM(SCHEDULE, num_inference_steps=6)
        self.engine = Engine(MODEL, solver=solver, max_pages=POOL, max_waiting=2, max_batch_tokens=24)
        self.streams: list = []

    def pick(self, which: int):
        return self.streams[which % len(self.streams)]

    def attempt(self, call) -> None:
        """A refused call changes nothing in the books."""
        manager = self.engine.pool.manager
        before = (manager.free, manager.unpromised)
        try:
            call()
        except ArdiffError:
            assert before == (manager.free, manager.unpromised)

    @rule(
        memory=st.sampled_from(MEMORIES),
        frames=st.one_of(st.none(), st.integers(1, 7)),
        lag=st.sampled_from([0, 1, 2, 3, 6]),
        scale=st.sampled_from([1.0, 2.0]),
        prefix=st.integers(0, 3),
        ahead=st.sampled_from([None, 2]),
    )
    def submit(self, memory, frames, lag, scale, prefix, ahead) -> None:
        request = {
            "num_frames": frames,
            "lag": lag,
            "guidance_scale": scale,
            "memory": memory,
            "max_ahead": ahead,
        }
        given = {"prefix": torch.zeros(prefix, 2, 2)} if prefix else {}
        try:
            self.streams.append(self.engine.submit(Request(**request, **given)))
        except OutOfPagesError as error:
            assert str(POOL) in str(error)
        except ArdiffError:
            pass

    @rule(
        memory=st.sampled_from((*MEMORIES, *OTHER_MEMORIES)),
        frames=st.one_of(st.none(), st.integers(1, 7)),
        own=st.sampled_from(PLANS),
        prefix=st.integers(0, 2),
    )
    def submit_a_plan(self, memory, frames, own, prefix) -> None:
        given = {"prefix": torch.zeros(prefix, 2, 2)} if prefix else {}
        request = Request(num_frames=frames, plan=own[0], solver=own[1], memory=memory, **given)
        self.attempt(lambda: self.streams.append(self.engine.submit(request)))

    @rule()
    def step(self) -> None:
        self.engine.step(1)

    @rule(count=st.integers(2, 12))
    def steps(self, count) -> None:
        for _ in range(count):
            self.engine.step()

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 9))
    def read(self, which) -> None:
        self.pick(which).take_ready()

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 9))
    def cancel(self, which) -> None:
        self.pick(which).cancel()

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 9))
    def drop(self, which) -> None:
        self.streams.pop(which % len(self.streams))

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 9), seed=st.sampled_from([None, 5]))
    def fork(self, which, seed) -> None:
        self.attempt(lambda: self.streams.append(self.pick(which).fork(seed=seed)))

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 9), back=st.integers(0, 4))
    def rollback(self, which, back) -> None:
        stream = self.pick(which)
        self.attempt(lambda: stream.rollback(inside(stream).feeder.oldest_unfinished - back))

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 9), frames=st.integers(1, 3))
    def extend(self, which, frames) -> None:
        self.attempt(lambda: self.pick(which).extend(frames))

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 9), resume=st.booleans())
    def pause(self, which, resume) -> None:
        stream = self.pick(which)
        self.attempt(stream.resume if resume else stream.suspend)

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 9), effect=st.sampled_from(["keep", "recommit", "reset"]))
    def set_condition(self, which, effect) -> None:
        self.attempt(lambda: self.pick(which).set_condition(1, effect=effect))

    @precondition(lambda self: self.streams)
    @rule(which=st.integers(0, 9))
    def fail(self, which) -> None:
        poison(self.pick(which))

    @invariant()
    def books_are_right(self) -> None:
        EngineMachine.transitions += 1
        engine, manager = self.engine, self.engine.pool.manager
        stats = engine.stats()
        assert manager.free + manager.held == POOL
        holders: Counter = Counter()
        promised = 0
        for stream in self.streams:
            error = inside(stream).error
            assert error is None or isinstance(error, NumericalError), "only a poisoned stream fails"
            pages = inside(stream).pages
            if stream.done or stream.state in ("waiting", "suspended"):
                assert pages.lease is None
                continue
            placed = [page for frames in pages.placed for held in frames.values() for page in held]
            ids = [*pages.ids, *placed]
            assert len(set(ids)) == len(ids) == pages.lease.held <= pages.lease.most
            holders.update(ids)
            promised += pages.lease.most
            state = inside(stream)
            started = min(
                state.feeder.plan.newest(state.feeder.tick - 1) + 1, getattr(state.policy, "sink", 0)
            )
            if state.feeder.tick:
                for sink in range(state.feeder.floor, started):
                    assert (sink, 0) in pages.frames[0], "a sink was evicted"
        assert manager.held == len(holders), "a page is held by nobody, or free and in use"
        assert all(manager.holders(page) == count for page, count in holders.items())
        assert stats.pages_promised == promised

    def teardown(self) -> None:
        for stream in self.streams:
            stream.cancel()
        self.streams.clear()
        gc.collect()
        stats = self.engine.stats()
        assert stats.pages_held == stats.pages_promised == 0 and not self.engine._scheduler.streams


RUNS, STEPS = int(os.environ.get("ARDIFF_STATE_MACHINE_EXAMPLES", examples(630))), 100

EngineMachine.TestCase.settings = settings(
    max_examples=RUNS,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestEngineMachine = EngineMachine.TestCase


def test_as_many_transitions_ran_as_were_asked_for() -> None:
    if not EngineMachine.transitions:
        pytest.skip("the state machine has not run")
    print(f"{EngineMachine.transitions} transitions")
    # Some runs end early: 87 to 95 transitions a run were seen. 630 runs make 50,000.
    assert EngineMachine.transitions >= 0.8 * RUNS * STEPS
