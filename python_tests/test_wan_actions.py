# SPDX-License-Identifier: Apache-2.0
"""Wan transformers that are told an action for every frame: whole clips, and block by block in the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_wan import CONFIG, prompt, small_wan

from ardiff_engine import plan
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.solvers import Euler
from ardiff_engine.engine import Engine, Request
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.memory import Full
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.weights import load_model, save_model

BLOCK, FRAMES, SIZE, STEPS = 2, 6, (4, 6), 3
SOLVER = Euler(FlowSchedule(3.0), STEPS)
ACTIONS = torch.randn(FRAMES, 3, generator=torch.Generator().manual_seed(4))


def steered() -> WanTransformer:
    plain = small_wan()
    model = WanTransformer(replace(CONFIG, actions=3)).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.manual_seed(9)
    torch.nn.init.normal_(model.action_embedding.weight)
    return model.requires_grad_(False)


def request(actions: object, seed: int = 0, **options: object) -> Request:
    given = {
        "num_frames": FRAMES,
        "size": SIZE,
        "condition": prompt(1),
        "seed": seed,
        "plan": plan.blocks(BLOCK),
    }
    return Request(**given | options, frame_inputs={"actions": actions})  # type: ignore[arg-type]


def engine(model: WanTransformer) -> Engine:
    return Engine(model, solver=SOLVER, memory=Full(), max_pages=256)


def by_clips(model: WanTransformer, noise: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """What the engine is to make of starting noise [F, C, h, w], from whole clips alone."""
    x, text, sigma = noise.clone(), prompt(1)[None], SOLVER.timesteps / 1000
    for first in range(0, FRAMES, BLOCK):
        own = slice(first, first + BLOCK)
        for step in range(STEPS):
            t = torch.zeros(1, FRAMES)
            t[:, own] = float(SOLVER.timesteps[step])
            v = model.forward_clip(x[None], t, text, BLOCK, actions=actions[None])[0]
            x[own] += float(sigma[step + 1] - sigma[step]) * v[own]
    return x


@pytest.mark.parametrize("native", [True, False])
def test_the_engine_makes_what_whole_clips_make(native: bool) -> None:
    model = steered()
    noise = torch.randn(FRAMES, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    runner = engine(model)
    if not native:
        model._native = None
    made = runner.submit(request(ACTIONS, latents=noise)).result()
    expected = by_clips(steered(), noise, ACTIONS)
    assert (made - expected).norm() / expected.norm() < 1e-5
    assert (made - by_clips(steered(), noise, 0 * ACTIONS)).norm() / expected.norm() > 1e-2


def test_an_action_acts_from_its_block_on_and_on_no_other_stream() -> None:
    model, other = steered(), ACTIONS.clone()
    other[3] += 1
    runner = engine(model)
    streams = [runner.submit(request(own)) for own in (ACTIONS, other)]
    first, second = (stream.result() for stream in streams)
    assert torch.equal(first[:2], second[:2])
    assert all((first[f] - second[f]).abs().max() > 1e-4 for f in range(2, FRAMES))
    assert torch.equal(engine(model).submit(request(ACTIONS)).result(), first), (
        "alone and together: the same bits"
    )


def test_history_has_the_actions_of_its_frames() -> None:
    model = steered()
    x, clean = torch.randn(2, 1, FRAMES, 3, *SIZE, generator=torch.Generator().manual_seed(5)).unbind(0)
    t = torch.full((1, FRAMES), 700.0)
    forced = model.forward_clip(x, t, prompt(1)[None], BLOCK, history=clean, actions=ACTIONS[None])
    mixed, levels = clean.clone(), torch.zeros(1, FRAMES)
    mixed[:, 4:], levels[:, 4:] = x[:, 4:], 700.0
    alone = model.forward_clip(mixed, levels, prompt(1)[None], BLOCK, actions=ACTIONS[None])
    assert torch.allclose(forced[:, 4:], alone[:, 4:], atol=1e-5)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = steered()
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, WanTransformer) and again.config == model.config
    assert torch.equal(again.action_embedding.weight, model.action_embedding.weight)


def test_actions_that_do_not_fit() -> None:
    model, x, t = steered(), torch.zeros(1, FRAMES, 3, *SIZE), torch.zeros(1, FRAMES)
    for actions in (None, ACTIONS[None, :3], ACTIONS[None, :, :2], ACTIONS):
        with pytest.raises(TensorError, match="actions"):
            model.forward_clip(x, t, prompt(1)[None], BLOCK, actions=actions)
    with pytest.raises(TensorError, match="actions"):
        small_wan().forward_clip(x, t, prompt(1)[None], BLOCK, actions=ACTIONS[None])
    with pytest.raises(ConfigError, match="frame_inputs"):
        engine(model).submit(replace(request(ACTIONS), frame_inputs=None))
    with pytest.raises(ConfigError, match="actions"):
        replace(CONFIG, actions=0)
