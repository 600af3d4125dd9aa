# SPDX-License-Identifier: Apache-2.0
"""Systems on the engine: a stream of each that shares the network, all in one pass, and each alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ardiff_engine as ade
from ardiff_engine import systems
from ardiff_engine.errors import ConfigError
from ardiff_engine.memory import Recached, Shots, Window
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.systems import System

CONFIG = WanConfig(48, 2, 2, 64, channels=3, out_channels=3, text_dim=10, text_tokens=8)
LENGTHS = {"magi-1": 4, "streamdiffusion-v2": 8, "soulx-liveact": 22, "longlive2": 16, "mmpl": 21}
"""Frames of the systems whose blocks are not of three or one."""

LONGLIVE = systems.get("longlive")
CASES: dict[str, System] = {name: systems.get(name) for name in systems.names()} | {
    "longlive, a new prompt": replace(
        LONGLIVE, memory=Recached(Window(3, sink=1), prompts=(6,), keeps_sink=False)
    ),
    "longlive2, a cut": replace(LONGLIVE, memory=Shots(Window(3, sink=1), starts=(6,), pin=3, offset=8)),
    "infinity-rope, a cut": replace(
        systems.get("infinity-rope"), memory=Shots(Window(5, sink=1), (6,), positions="window", hard=(6,))
    ),
}


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.7 * parameter[0].numel() ** -0.5)
    return model


def short(system: System) -> System:
    """The same with few steps, where a solver takes any number."""
    if isinstance(system.solver, ade.solvers.UniPC):
        return replace(system, solver=replace(system.solver, num_inference_steps=3))
    if isinstance(system.solver, ade.solvers.RisingEuler):
        return replace(system, solver=ade.solvers.RisingEuler([0.0, 0.2, 0.4, 0.7, 1.0]))
    return system


def request(name: str, seed: int) -> ade.Request:
    system = short(CASES[name])
    frames = LENGTHS.get(name, 9)
    prefix = None
    if system.given_frames:
        prefix = torch.randn(system.given_frames, 3, 2, 4, generator=torch.Generator().manual_seed(9))
    condition = torch.randn(5, 10, generator=torch.Generator().manual_seed(seed))
    return system.request(
        ade.Request(num_frames=frames, size=(2, 4), condition=condition, seed=seed, prefix=prefix)
    )


def engine(model: WanTransformer, pages: int) -> ade.Engine:
    return ade.Engine(model, solver=ade.solvers.Euler(ade.FlowSchedule(5.0), 2), max_pages=pages)


def served(model: WanTransformer) -> list[str]:
    fit = []
    for name, system in CASES.items():
        try:
            system.check(model.spec, LENGTHS.get(name, 9))
            fit.append(name)
        except ConfigError:
            continue
    return fit


def test_alone_is_batched_to_the_bit(model: WanTransformer) -> None:
    """One pass serves all of them: a pass of plans, memories, solvers, copies and places of every kind."""
    names = served(model)
    assert len(names) >= 19
    together = engine(model, 4000)
    streams = [together.submit(request(name, seed)) for seed, name in enumerate(names)]
    while together.step():
        pass
    for seed, (name, stream) in enumerate(zip(names, streams, strict=True)):
        alone = engine(model, 1000).submit(request(name, seed)).result()
        assert torch.isfinite(alone).all(), name
        assert torch.equal(stream.result(), alone), name


def test_guidance_of_the_release_comes_with_a_negative_prompt() -> None:
    wan = systems.get("wan")
    text = torch.zeros(3, 10)
    assert wan.request(ade.Request(condition=text)).guidance_scale == 1.0
    assert wan.request(ade.Request(condition=text, negative_condition=text)).guidance_scale == wan.guidance
    own = ade.Request(condition=text, negative_condition=text, guidance_scale=3.0)
    assert wan.request(own).guidance_scale == 3.0


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("longlive", {"movable": False}),
        ("self-forcing", {"forgets": False}),
        ("infinity-rope", {"frame_angles": None}),
    ],
)
def test_a_network_that_cannot_run_a_system_is_refused(model: WanTransformer, name: str, facts: dict) -> None:
    system = systems.get(name)
    system.check(model.spec)
    with pytest.raises(ConfigError):
        system.check(replace(model.spec, **facts))


@torch.no_grad()
def test_wan_is_the_plain_loop_over_whole_clips(model: WanTransformer) -> None:
    noise = torch.randn(4, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    text = torch.randn(5, 10, generator=torch.Generator().manual_seed(2))
    system = short(systems.get("wan"))
    asked = ade.Request(num_frames=4, size=(2, 4), condition=text, latents=noise)
    found = engine(model, 200).submit(system.request(asked)).result()
    x, past = noise.double(), []
    solver = system.solver
    assert isinstance(solver, ade.solvers.UniPC)
    for step, (p, q, a, b, _, *weights, _) in enumerate(solver.coefficients.tolist()):
        t = torch.full((1, 4), float(solver.timesteps[step]))
        out = model.forward_clip(x[None].float(), t, text[None], block=None)[0].double()
        x0 = p * x + q * out
        x = a * x + b * x0 + sum(c * h for c, h in zip(weights, past, strict=False))
        past.insert(0, x0)
    torch.testing.assert_close(found.double(), x, rtol=0, atol=2e-4)
