# SPDX-License-Identifier: Apache-2.0
"""Routed memory: the float64 network of dense attention under the chosen views, alone and together, and what
a router may not do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dense_oracle import DenseTransformer, visibility
from helpers.small_wan import prompt, small_wan
from inside import inside
from test_ar_diffusion import tiny

import ardiff_engine as ade
from ardiff_engine import plan
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory import MeanKeys, Placed, Routed, Window, highest, latest

SOLVER = solvers.DDIM(NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000), num_inference_steps=3)
CAMERA = torch.randn(40, 3, generator=torch.Generator().manual_seed(4))


def overlap(block: range, frame: int) -> float:
    """Of two cameras."""
    return float(CAMERA[block.start] @ CAMERA[frame])


NEAR = highest(overlap)


def network():
    return tiny("separate_norm", "temporal_causal", "rope", num_frames=16)


def chosen(ours: plan.Plan, memory: Routed, query: int) -> set[int]:
    """By hand: the frames that the block of `query` sees besides its window."""
    block = ours.block(query)
    window = min(block.stop - memory.memory.size, block.start)
    oldest = 0 if memory.history is None else max(0, window - memory.history)
    there = range(max(oldest, memory.memory.sink), max(0, window))
    return set(sorted(there, key=lambda f: float(CAMERA[block.start] @ CAMERA[f]))[-memory.count :])


@torch.no_grad()
def dense_video(model, memory: Routed, ours: plan.Plan, noise, context) -> torch.Tensor:
    def sees(query: int, key: int) -> bool:
        stop = ours.block(query).stop
        near = key >= stop - memory.memory.size or key < memory.memory.sink
        return key < stop and (near or key in chosen(ours, memory, query))

    dense, x = DenseTransformer(model), noise.double()
    visible = visibility(model.config, len(x), sees)
    for tick in range(ours.num_ticks):
        levels = [ours.level(f, tick) for f in range(len(x))]
        out = dense(x, SOLVER.timesteps[levels], context.double(), visible)
        for f in ours.tick(tick).frames:
            p, q, a, b = SOLVER.coefficients[levels[f], :4]
            x[f] = a * x[f] + b * (p * x[f] + q * out[f])
    return x


@pytest.mark.parametrize("history", [None, 4])
@pytest.mark.parametrize("rule", [plan.blocks(1), plan.blocks(2)], ids=["frames", "blocks"])
@pytest.mark.parametrize("sink", [0, 1])
def test_the_dense_network_under_the_chosen_views(sink: int, rule, history: int | None) -> None:
    model, generator = network(), torch.Generator().manual_seed(1)
    noise = torch.randn(12, 3, model.config.channels, generator=generator)
    condition = torch.randn(5, 12, generator=generator)
    memory = Routed(Window(3, sink), 2, NEAR, history)
    want = dense_video(model, memory, rule.plan(12, (3,)), noise, condition)
    engine = Engine(model, solver=SOLVER, memory=memory, max_pages=100)
    got = engine.submit(Request(12, plan=rule, latents=noise, condition=condition)).result()
    assert float((got - want).norm() / want.norm()) < 1e-5
    other = dense_video(model, replace(memory, count=1), rule.plan(12, (3,)), noise, condition)
    assert float((got - other).norm() / other.norm()) > 1e-3
    assert engine.stats().pages_held == engine.stats().pages_promised == 0


def test_the_latest_frames_are_a_longer_window() -> None:
    runs = []
    for memory in (Routed(Window(3, sink=1), 2, latest), Window(5, sink=1)):
        engine = Engine(network(), solver=SOLVER, memory=memory, max_pages=100)
        runs.append(engine.submit(Request(10, plan=plan.blocks(1), seed=3)).result())
    assert torch.equal(*runs)


def requests() -> list[tuple[Request, MeanKeys | None]]:
    made: list[tuple[Request, MeanKeys | None]] = []
    for seed in range(4):
        router = MeanKeys(4) if seed < 2 else None
        memory = Routed(Window(3), 2, router or NEAR, history=None if seed % 2 else 6)
        own = Placed(memory, "window") if seed != 3 else memory
        look = router.look if router else None
        asked = Request(
            12, size=(4, 6), condition=prompt(seed), seed=seed, plan=plan.blocks(1 + seed % 2), memory=own
        )
        made.append((replace(asked, on_step=look), router))
    return made


def wan_engine(pages: int = 2000) -> Engine:
    solver = ade.solvers.Renoise(ade.FlowSchedule(5.0), [1000, 500])
    return Engine(small_wan(), solver=solver, memory=Window(4), max_pages=pages)


def test_alone_and_together_are_the_same_bits() -> None:
    alone = [wan_engine().submit(own).result() for own, _ in requests()]
    engine = wan_engine()
    streams = [engine.submit(own) for own, _ in requests()]
    while engine.step():
        pass
    for stream, expected in zip(streams, alone, strict=True):
        assert torch.equal(stream.result(), expected)
    assert engine.stats().pages_held == engine.stats().pages_promised == 0


def test_choices_go_with_forks_and_are_made_again_after_going_back() -> None:
    request, _ = requests()[3]
    expected = wan_engine().submit(request).result()
    engine = wan_engine()
    stream = engine.submit(request)
    while stream.frames_ready < 7:
        engine.step(1)
    other = stream.fork()
    stream.rollback(6)
    assert torch.equal(other.result(), expected)
    assert torch.equal(stream.result(), expected)


def test_an_endless_video_keeps_its_history_alone() -> None:
    memory = Routed(Window(2), 2, NEAR, history=5)
    engine = Engine(network(), solver=SOLVER, memory=memory, max_pages=60)
    stream = engine.submit(Request(None, plan=plan.blocks(1), max_ahead=99))
    most = 0
    while stream.frames_ready < 30:
        engine.step(1)
        most = max(most, engine.stats().pages_held)
    assert most <= engine.stats().pages_promised < 20
    stream.cancel()


def test_mean_keys_do_not_depend_on_the_place() -> None:
    """Keys of the first layer are of the latents alone: the same wherever the frame was written."""
    kept = []
    for memory in (Window(3), Placed(Window(3), "window")):
        engine = wan_engine()
        asked = Request(6, size=(4, 6), condition=prompt(0), plan=plan.blocks(1), memory=memory, seed=1)
        stream = engine.submit(replace(asked, latents=torch.ones(6, 3, 4, 6)))
        found = {}
        while stream.frames_ready < 5:
            engine.step(1)
            newest = max(stream.latents)
            if inside(stream).feeder.levels.get(newest) == 1:  # its keys are those of its noise
                found[newest] = stream.mean_keys(newest)
        kept.append(found)
    first = kept[0][0][0]
    for found in kept:
        for keys in found.values():
            torch.testing.assert_close(keys[0], first, rtol=1e-4, atol=1e-5)
    assert len(kept[0]) >= 5


def test_mean_keys_are_the_mean_of_the_rows() -> None:
    engine = wan_engine()
    stream = engine.submit(Request(3, size=(4, 6), condition=prompt(0), plan=plan.blocks(1)))
    engine.step(1)
    pages = inside(stream).pages.frames[0][0, 0]
    tokens = engine.model.spec.tokens((4, 6))
    rows = torch.cat([engine.pool.k[:, page] for page in pages], dim=2)[:, :, :tokens]
    torch.testing.assert_close(stream.mean_keys(0), rows.double().mean(2).float())
    with pytest.raises(ConfigError, match="frame 2"):
        stream.mean_keys(2)


def test_what_a_router_may_not_do() -> None:
    def submit(router, **options):
        engine = Engine(network(), solver=SOLVER, max_pages=100)
        memory = Routed(Window(2), 2, router, **options)
        return engine.submit(Request(8, plan=plan.blocks(1), memory=memory))

    for bad in (
        lambda block, there, count: [0, 0, 0],
        lambda block, there, count: [block.start],
        lambda block, there, count: there,
    ):
        with pytest.raises(PlanError, match="router"):
            submit(bad).result()
    with pytest.raises(PlanError, match="router"):  # a frame that has left
        submit(lambda block, there, count: [0], history=2).result()
    for wrong in (
        lambda: Routed(Window(2), 0),
        lambda: Routed(Window(2), 3, history=2),
        lambda: Routed(Window(2, joint=True), 2),
        lambda: Routed(Window(2), 2, "nearest"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match="Routed"):
            wrong()
    with pytest.raises(PlanError, match="endless"):
        Engine(network(), solver=SOLVER).submit(Request(None, memory=Routed(Window(2), 2)))


def test_a_router_that_fails_later_fails_its_stream_alone() -> None:
    asked = []

    def moody(block, there, count):
        asked.append(block)
        return [99] if len(asked) > 3 else []

    engine = Engine(network(), solver=SOLVER, max_pages=100)
    bad = engine.submit(Request(8, plan=plan.blocks(1), memory=Routed(Window(2), 2, moody)))
    good = engine.submit(Request(8, plan=plan.blocks(1), memory=Window(2)))
    assert good.result().isfinite().all()
    with pytest.raises(PlanError, match="99"):
        bad.result()
    assert engine.stats().pages_held == engine.stats().pages_promised == 0


@pytest.mark.parametrize("name", ["causalcine", "memory-forcing"])
def test_the_systems_see_what_their_papers_say(name: str) -> None:
    """A chunk of CausalCine: five frames at 0 to 4, nine of the window after them, then its own three."""
    system = ade.systems.get(name)
    wide = name == "causalcine"
    routed = system.memory.memory if wide else system.memory
    asked = replace(routed, router=NEAR)
    own = replace(system, memory=Placed(asked, "window") if wide else asked)
    made = own.trace(num_frames=39)
    block = 3 if wide else 1
    for call, frame in zip(*made.updated.nonzero(), strict=True):
        start = int(frame) // block * block
        window = max(0, start + block - (12 if wide else 9))
        best = sorted(range(window), key=lambda f: float(CAMERA[start] @ CAMERA[f]))[-routed.count :]
        seen = sorted([*best, *range(window, start + block)])
        assert made.visible[call, frame].nonzero()[0].tolist() == seen
        places = list(range(len(seen))) if wide else seen
        assert made.position[call, seen].tolist() == places
