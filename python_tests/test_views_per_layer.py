# SPDX-License-Identifier: Apache-2.0
"""Layers with views of their own: one table for each, and the dense network under one mask for each."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from dense_oracle import DenseTransformer, visibility
from helpers.small_wan import prompt, small_wan
from test_ar_diffusion import tiny

import ardiff_engine as ade
from ardiff_engine import plan
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.engine.batch import on_device
from ardiff_engine.errors import ConfigError
from ardiff_engine.evaluation.gaussian_video import GaussianVideo
from ardiff_engine.memory import Full, MemoryPolicy, PerLayer, Placed, Restarted, Window

SCHEDULE = NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)
SOLVER = solvers.DDIM(SCHEDULE, num_inference_steps=3)
MIXED = PerLayer((Window(2), Full(), Window(4, sink=1)), (0, 1, 2))
LOCAL = PerLayer((Window(4, sink=1), Window(3)), (1, 0, 1))
HEADED = PerLayer((Window(2), Full(), Window(4, sink=1)), ((0, 0, 1, 2), 1, (2, 1, 2, 0)))


class LayeredDense(DenseTransformer):
    """masks: of each layer, or of each head of it."""

    masks: Sequence[torch.Tensor]

    def attention(
        self, n: int, u: torch.Tensor, position: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        return super().attention(n, u, position, self.masks[n])


def sees(memory: Full | Window, ours: plan.Plan, query: int, key: int) -> bool:
    stop = ours.block(query).stop
    near = isinstance(memory, Full) or key >= stop - memory.size or key < memory.sink
    return key < stop and near


def network(positions: str = "rope", **sizes):
    return tiny("separate_norm", "temporal_causal", positions, num_frames=16, **sizes)


@torch.no_grad()
def dense_video(model, memory: PerLayer, ours: plan.Plan, noise, context) -> torch.Tensor:
    dense, x = LayeredDense(model), noise.double()
    frames = range(len(x))
    dense.masks = [
        torch.stack(
            [
                visibility(model.config, len(x), lambda q, k: sees(memory.memories[n], ours, q, k))  # noqa: B023
                for n in (own if isinstance(own, tuple) else (own,))
            ]
        )
        for own in memory.of_layer
    ]
    for tick in range(ours.num_ticks):
        levels, moves = [ours.level(f, tick) for f in frames], ours.tick(tick).frames
        out = dense(x, SOLVER.timesteps[levels], context.double(), dense.masks[0])
        for f in moves:
            p, q, a, b = SOLVER.coefficients[levels[f], :4]
            x[f] = a * x[f] + b * (p * x[f] + q * out[f])
    return x


@pytest.mark.parametrize("as_modules", [False, True])
@pytest.mark.parametrize("rule", [plan.blocks(1, lag=2), plan.blocks(2)], ids=["lag", "blocks"])
@pytest.mark.parametrize("memory", [MIXED, LOCAL, HEADED], ids=["mixed", "local", "heads"])
def test_the_dense_network_under_a_mask_for_each_layer(memory, rule, as_modules) -> None:
    model, generator = network(), torch.Generator().manual_seed(1)
    model.as_modules = as_modules
    noise = torch.randn(10, 3, model.config.channels, generator=generator)
    condition = torch.randn(5, 12, generator=generator)
    want = dense_video(model, memory, rule.plan(10, (3,)), noise, condition)
    engine = Engine(model, solver=SOLVER, memory=memory, max_pages=100)
    got = engine.submit(Request(10, plan=rule, latents=noise, condition=condition)).result()
    assert float((got - want).norm() / want.norm()) < 1e-5
    # Another view makes another video.
    full = dense_video(model, PerLayer((Full(),), (0, 0, 0)), rule.plan(10, (3,)), noise, condition)
    assert float((got - full).norm() / full.norm()) > 1e-2


def test_alone_and_together_are_the_same_bits() -> None:
    model = network()
    requests = [
        Request(8, plan=plan.blocks(2), seed=1, memory=MIXED),
        Request(8, lag=2, seed=2, memory=LOCAL, guidance_scale=2.0),
        Request(8, lag=1, seed=3, memory=Window(3)),
        Request(8, lag=2, seed=7, memory=HEADED, guidance_scale=2.0),
        Request(8, plan=plan.blocks(2), seed=4, memory=Placed(Window(4), "window")),
        Request(
            6,
            seed=5,
            lag=3,
            memory=MIXED,
            branches=[ade.Branch(None, 2.0), ade.Branch(None, -1.0, ade.Past(1))],
        ),
    ]
    alone = [Engine(model, solver=SOLVER).submit(own).result() for own in requests]
    for padded in (False, True):
        engine = Engine(model, solver=SOLVER, max_pages=800, cuda_graphs=padded)
        streams = [engine.submit(own) for own in requests]
        for stream, expected in zip(streams, alone, strict=True):
            assert torch.equal(stream.result(), expected)
        stats = engine.stats()
        assert stats.pages_held == stats.pages_promised == 0


def test_one_view_for_all_layers_is_that_memory() -> None:
    model, branches = network(), [ade.Branch(None, 2.0), ade.Branch(None, -1.0, ade.Past(1))]
    for memory in (Full(), Window(3, sink=1)):
        same = PerLayer((memory,), (0, 0, 0))
        a, b = (
            Engine(model, solver=SOLVER, memory=own).submit(Request(8, lag=2, branches=branches)).result()
            for own in (memory, same)
        )
        assert torch.equal(a, b)


def test_a_memory_around_one_for_each_layer_asks_it() -> None:
    model = network()

    def video(memory: MemoryPolicy) -> torch.Tensor:
        return Engine(model, solver=SOLVER, memory=memory).submit(Request(8, lag=2, seed=3)).result()

    assert torch.equal(video(Restarted(MIXED, limit=20, first=0)), video(MIXED))
    window = Window(3, sink=1)
    again = video(Restarted(PerLayer((window,), (0, 0, 0)), limit=5, first=2))
    assert torch.equal(again, video(Restarted(window, limit=5, first=2)))
    assert not torch.equal(again, video(window))


def test_wan_sees_by_layers() -> None:
    model = small_wan()
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), 2)

    def video(memory: MemoryPolicy) -> torch.Tensor:
        engine = ade.Engine(model, solver=solver, memory=memory, max_pages=200)
        return engine.submit(
            Request(6, plan=plan.blocks(2), size=(4, 6), condition=prompt(1), seed=4)
        ).result()

    near, far = video(Window(2)), video(Full())
    layered = video(PerLayer((Window(2), Full()), (0, 1)))
    assert torch.equal(layered[:2], far[:2])
    assert not torch.allclose(layered, near, rtol=1e-2) and not torch.allclose(layered, far, rtol=1e-2)
    # The native call in two stretches, and the blocks op by op.
    model.freeze = lambda: None  # type: ignore[method-assign]
    model._native = None
    torch.testing.assert_close(video(PerLayer((Window(2), Full()), (0, 1))), layered, rtol=1e-4, atol=1e-4)


def test_wan_sees_by_heads() -> None:
    """Each head by its own window, natively and op by op; both alike is that window."""
    model = small_wan()
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), 2)

    def video(memory: MemoryPolicy) -> torch.Tensor:
        engine = ade.Engine(model, solver=solver, memory=memory, max_pages=200)
        request = Request(6, plan=plan.blocks(2), size=(4, 6), condition=prompt(1), seed=4)
        return engine.submit(request).result()

    near, far = video(Window(2)), video(Full())
    both = video(PerLayer((Window(2), Full()), ((0, 1), (1, 0))))
    for other in (near, far, video(PerLayer((Window(2), Full()), ((1, 0), (0, 1))))):
        assert not torch.allclose(both, other, rtol=1e-2)
    assert torch.equal(video(PerLayer((Window(2),), ((0, 0), 0))), near)
    model.freeze = lambda: None  # type: ignore[method-assign]
    model._native = None
    again = video(PerLayer((Window(2), Full()), ((0, 1), (1, 0))))
    torch.testing.assert_close(again, both, rtol=1e-4, atol=1e-4)


def test_a_batch_on_its_device_is_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    engine = Engine(network(), solver=SOLVER, memory=MIXED)
    tick = engine._runner.graphs._forward
    monkeypatch.setattr(engine._runner.graphs, "_forward", lambda batch: batches.append(batch) or tick(batch))
    engine.submit(Request(4, lag=2)).result()
    same = on_device(batches[-1], torch.device("cpu"))
    assert torch.equal(same.cells.slots, batches[-1].cells.slots) and len(same.cells.layers) == 3


REFUSED = {
    "other numbers of layers": lambda: PerLayer((Window(2), Full()), (0, 1)),
    "a memory of no layer": lambda: PerLayer((Window(2), Full()), (0, 0, 0)),
    "joint and not": lambda: PerLayer((Window(2), Full(joint=True)), (0, 1, 0)),
    "other numbers of heads": lambda: PerLayer((Window(2), Full()), ((0, 1), 0, 0)),
    "heads that differ in number": lambda: PerLayer((Window(2), Full()), ((0, 1, 1, 0), (0, 1), 0)),
    "another kind": lambda: PerLayer((Window(2), LOCAL), (0, 1, 0)),
    "placed": lambda: Placed(LOCAL, "window"),
    "placed, further in": lambda: Placed(Restarted(LOCAL, 20, 0), "window"),
    "of placed ones": lambda: PerLayer((Placed(Window(2), "window"), Full()), (0, 1, 0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served(name: str) -> None:
    engine = Engine(network(), solver=SOLVER, memory=Full())
    with pytest.raises(ConfigError):
        engine.submit(Request(4, lag=2, memory=REFUSED[name]()))
    assert engine.stats().pages_promised == 0


def test_a_network_with_one_view_refuses_more() -> None:
    foreign = GaussianVideo([(0.9, 8.0)], SCHEDULE, tokens=2, causal=True)
    engine = Engine(foreign, solver=SOLVER, memory=Full())
    with pytest.raises(ConfigError, match="view"):
        engine.submit(Request(4, lag=2, memory=PerLayer((Window(2),), (0,) * foreign.spec.layers)))
