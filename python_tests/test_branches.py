# SPDX-License-Identifier: Apache-2.0
"""Guidance by any number of branches: against a dense float64 model that runs them all, tick by tick, and bit
for bit alone and together."""

from __future__ import annotations

import pytest
import torch
from dense_oracle import DenseTransformer, visibility
from helpers.branched import (
    ALONE,
    CASES,
    HISTORY,
    S3,
    S4,
    SCHEDULE,
    TEXT,
    W4,
    Branch,
    Past,
    engine_of,
    network,
    prompt,
)
from inside import inside
from test_ar_diffusion import tiny

from ardiff_engine import ops, plan
from ardiff_engine.diffusion import noise_keys
from ardiff_engine.engine import Request
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.memory import RecomputedWindow, Window
from ardiff_engine.purposes import Purpose


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_stream_is_the_dense_model_that_runs_all_branches(name: str, cuda_graphs: bool) -> None:
    case, model, held = CASES[name], network(), []
    engine = engine_of(model, cuda_graphs=cuda_graphs)
    request = case.request(on_step=lambda stream: held.append(inside(stream).pages.held))
    stream = engine.submit(request)
    promised = engine.stats().pages_promised
    got = stream.result()
    expected = case.expected(model, lambda n: [branch.condition for branch in case.branches])
    assert float((got - expected).norm() / expected.norm()) < 1e-5
    assert engine.stats().pages_held == 0
    assert max(held) == promised


@pytest.mark.parametrize("view", [None, Past(frames=0), Past(frames=3)])
def test_a_branch_that_stores_nothing_holds_pages_of_frames_in_flight(view: Past | None) -> None:
    model = network()
    promised = []
    for branches in ([Branch()], [Branch(), Branch(view=view, writes=False)]):
        engine = engine_of(model)
        stream = engine.submit(Request(12, plan=plan.blocks(2), branches=branches))
        promised.append(engine.stats().pages_promised)
        stream.cancel()
    context, block = 1, 2
    assert promised == [context + 12, 2 * context + 12 + block]


def mixed() -> list[Request]:
    """Streams of one, two and three branches."""
    return [
        Request(6, lag=1, seed=1, condition=prompt(1)),
        *[case.request(latents=None, seed=2 + i) for i, case in enumerate(CASES.values())],
        Request(6, lag=4, seed=4, condition=prompt(3), guidance_scale=2.0, memory=Window(3)),
    ]


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_alone_and_together_are_the_same_bits(cuda_graphs: bool) -> None:
    model = network()
    alone = [engine_of(model).submit(own).result() for own in mixed()]
    engine = engine_of(model, max_pages=900, cuda_graphs=cuda_graphs)
    streams = [engine.submit(own) for own in mixed()[:2]]
    engine.step()
    streams += [engine.submit(own) for own in mixed()[2:]]
    for stream, expected in zip(streams, alone, strict=True):
        assert torch.equal(stream.result(), expected)


def test_the_simple_spelling_says_the_same() -> None:
    model = network()
    plainly = Request(5, lag=2, seed=1, condition=prompt(1), guidance_scale=2.5)
    branches = [Branch(prompt(1), 2.5), Branch("null", -1.5)]
    assert torch.equal(
        engine_of(model).submit(plainly).result(),
        engine_of(model).submit(Request(5, lag=2, seed=1, branches=branches)).result(),
    )


def test_history_guidance_of_a_network_in_which_all_frames_see_all() -> None:
    """Diffusion forcing: nothing is stored, and the branch without a past is fed its block alone."""
    model = tiny("separate_norm", "none", "rope", num_frames=4)
    given, noise = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0)).split([2, 2])
    engine = engine_of(model, memory=RecomputedWindow(4))
    rule = plan.blocks(2)
    request = Request(4, plan=rule, latents=noise, prefix=given, branches=HISTORY)
    got, dense = engine.submit(request).result()[2:], DenseTransformer(model)
    x = noise.double()
    with torch.no_grad():
        for level in range(4):
            t = torch.tensor([S4.timesteps[4]] * 2 + [S4.timesteps[level]] * 2)
            everything = visibility(model.config, 4, lambda q, k: True)
            alone = visibility(model.config, 2, lambda q, k: True)
            seen = dense(torch.cat([given.double(), x]), t, TEXT, everything)[2:]
            out = 2.5 * seen - 1.5 * dense(x, t[2:], TEXT, alone, first_frame=2)
            p, q, a, b = S4.coefficients[level, :4]
            x = a * x + b * (p * x + q * out)
    assert float((got - x).norm() / x.norm()) < 1e-5
    noised = [Branch(TEXT, 2.5), Branch(TEXT, -1.5, view=Past(level=1))]
    request = Request(4, plan=rule, latents=noise, prefix=given, branches=noised, seed=7)
    got = engine.submit(request).result()[2:]
    at = S4.timesteps[1].long()
    signal, sigma = SCHEDULE.alphas_cumprod[at].sqrt(), (1 - SCHEDULE.alphas_cumprod[at]).sqrt()
    x = noise.double()
    with torch.no_grad():
        for level in range(4):
            keys = noise_keys(7, 0, [0, 1], Purpose.HISTORY, level)
            history = signal * given.double() + sigma * ops.philox_normal(keys, 12).reshape(2, 3, 4)
            out = 0.0
            for weight, past, told in ((2.5, given.double(), 4), (-1.5, history, 1)):
                t = torch.tensor([S4.timesteps[told]] * 2 + [S4.timesteps[level]] * 2)
                out = out + weight * dense(torch.cat([past, x]), t, TEXT, everything)[2:]
            p, q, a, b = S4.coefficients[level, :4]
            x = a * x + b * (p * x + q * out)
    assert float((got - x).norm() / x.norm()) < 1e-5
    with pytest.raises(ConfigError, match="level"):
        engine.submit(Request(4, plan=rule, branches=[Branch(view=Past(level=4))]))
    with pytest.raises(ConfigError, match="fed again"):
        engine_of(network()).submit(Request(4, plan=rule, branches=[Branch(view=Past(level=1))]))
    with pytest.raises(ConfigError, match="nothing is stored"):
        engine.submit(Request(4, plan=rule, branches=[Branch(), Branch(writes=False)]))


@pytest.mark.parametrize(
    ("kind", "options"),
    {
        "too few weights": (ConfigError, {"branches": [Branch(weight=[1.0, 2.0])]}),
        "weights of one track": (
            ConfigError,
            {"branches": [Branch(weight=W4)], "solver": (S4, S3), "plan": plan.blocks(2)},
        ),
        "no branches": (ConfigError, {"branches": []}),
        "no branch": (ConfigError, {"branches": [3]}),
        "beside a scale": (ConfigError, {"branches": [Branch()], "guidance_scale": 2.0}),
        "beside a condition": (ConfigError, {"branches": [Branch()], "condition": prompt(1)}),
        "a wrong condition": (TensorError, {"branches": [Branch(), Branch(prompt(1)[:3])]}),
        "nothing to read": (ConfigError, {"branches": [Branch(writes=False), Branch(view=ALONE)]}),
        "no past at all": (ConfigError, {"branches": [Branch(view=ALONE)]}),
        "another word": (TensorError, {"branches": [Branch("none")]}),
    }.values(),
)
def test_what_cannot_be_served_takes_nothing(kind: type[Exception], options: dict) -> None:
    engine = engine_of(network())
    with pytest.raises(kind):
        engine.submit(Request(4, **({"lag": 2} | options)))
    stats = engine.stats()
    assert stats.pages_promised == stats.streams_running == 0
