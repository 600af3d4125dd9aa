# SPDX-License-Identifier: Apache-2.0
"""Recipes of distillation against plain PyTorch, in float64: losses and gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from helpers import plain_recipes as plain
from helpers.small_wan import CONFIG, small_wan
from torch import Tensor, nn

from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.errors import ConfigError
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.training.config import DiffusionLossConfig, OptimizerConfig, RunConfig
from ardiff_engine.training.distillation import DistillationConfig
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.recipe import Cast, Recipe, find_recipe

SHIFT, FRAMES, SEED = 3.0, 4, 5
SCHEDULE = FlowSchedule(SHIFT)


class Bench:
    """A small student and another small teacher, and four clips of four frames in blocks of two."""

    def __init__(self, dtype: torch.dtype = torch.float64, **settings: Any) -> None:
        self.loss = DiffusionLossConfig(
            prediction="flow", timesteps="iid", block=2, teacher_forcing=1.0, history_levels=(0, 40)
        )
        self.student, self.teacher = small_wan().to(dtype), small_wan().to(dtype)
        with torch.no_grad():
            for weight in self.teacher.parameters():
                weight.mul_(0.8).add_(0.01)
        self.settings = DistillationConfig(guidance_scale=2.5, **settings)
        own = torch.Generator().manual_seed(1)
        frames = torch.randn(4, FRAMES, 3, 4, 6, generator=own, dtype=torch.float64).to(dtype)
        text = torch.randn(4, 9, CONFIG.text_dim, generator=own, dtype=torch.float64).to(dtype)
        self.clips = Clips(range(8, 12), frames, text, SEED, torch.zeros_like(text))

    def task(self, network: nn.Module, *, whole: bool = False, held_history: bool = False) -> Denoising:
        def predict(
            x: Tensor, t: Tensor, text: Tensor, history: Tensor | None, history_t: Tensor | None
        ) -> Tensor:
            block = FRAMES if whole and self.settings.teacher_block else 2
            assert isinstance(network, WanTransformer)
            return network.forward_clip(
                x, t.to(x.dtype), text, block, history=history,
                history_t=None if history_t is None else history_t.to(x.dtype),
            )  # fmt: skip

        return Denoising(predict, SCHEDULE, self.loss)

    def asked(self, clips: Clips) -> Sequence[Mapping[str, Any]]:
        return [{"condition": text, "size": tuple(clips.frames.shape[3:])} for text in clips.condition]

    def recipe(self, name: str) -> Recipe:
        run = RunConfig(output="", steps=100)
        given = Cast(
            self.student, self.task, lambda: self.teacher, self.asked, self.settings,
            OptimizerConfig(lr=1e-2), run,
        )  # fmt: skip
        return find_recipe(name, given)

    def velocity(self, network: WanTransformer, text: Tensor, *history: Tensor) -> plain.Network:
        past = dict(zip(("history", "history_t"), history, strict=False))
        return lambda x, t: network.forward_clip(x, t, text, 2, **past)

    def guided(self, *history: Tensor) -> plain.Network:
        both = (self.clips.condition, self.clips.null)
        return plain.guided(*(self.velocity(self.teacher, text, *history) for text in both), 2.5)


def drawn_noise(bench: Bench) -> Tensor:
    """Of the clips, as a step draws it: noisy frames are all noise at σ = 1."""
    task = bench.task(bench.student)
    return task.noised(bench.clips, torch.full((4, FRAMES), 999))[0]


def gradients(network: nn.Module, losses: Tensor) -> list[Tensor]:
    network.zero_grad()
    losses.sum().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()]


def assert_same(bench: Bench, got: Tensor, expected: Tensor) -> None:
    assert got.shape == (4,) and torch.allclose(got, expected, rtol=1e-10, atol=0)
    both = (gradients(bench.student, losses) for losses in (got, expected))
    for ours, theirs in zip(*both, strict=True):
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm() + 1e-14
    assert all(p.grad is None for p in bench.teacher.parameters() if p.requires_grad)


def history_of(bench: Bench) -> tuple[Tensor, Tensor]:
    return bench.task(bench.student).history(bench.clips)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_consistency(share: float) -> None:
    bench = Bench(teacher_steps=6)
    bench.loss = DiffusionLossConfig(
        prediction="flow", timesteps="iid", block=2, teacher_forcing=share, history_levels=(0, 40)
    )
    bench.teacher.requires_grad_(False)
    recipe = bench.recipe("consistency")
    average = recipe.networks["average"]
    assert isinstance(average, WanTransformer)
    with torch.no_grad():
        for weight in average.parameters():
            weight.mul_(1.1)
    rising = [166, 332, 499, 666, 832, 999]
    grid = replace(bench.loss, level_list=tuple(rising))
    drawn = replace(bench.task(bench.student), settings=grid).levels(bench.clips)
    assert drawn.min() == 166
    past = history_of(bench) if share else ()
    text = bench.clips.condition
    (got,) = recipe.phases[0].loss(bench.clips).values()  # type: ignore[union-attr]
    expected = plain.consistency(
        bench.velocity(bench.student, text, *past), bench.velocity(average, text, *past),
        bench.guided(*past), bench.clips.frames, drawn_noise(bench), drawn, rising, plain.table(SHIFT),
    )  # fmt: skip
    assert_same(bench, got, expected)


def test_the_average_follows_the_student() -> None:
    bench = Bench(target_decay=0.75)
    recipe = bench.recipe("consistency")
    before = copy.deepcopy(recipe.networks["average"])
    with torch.no_grad():
        for weight in bench.student.parameters():
            weight.add_(1.0)
    recipe.after()
    for old, new in zip(before.parameters(), recipe.networks["average"].parameters(), strict=True):
        assert torch.allclose(new, old + 0.25)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_ode_initialisation(share: float) -> None:
    bench = Bench(teacher_steps=5)
    settings = partial(DiffusionLossConfig, prediction="flow", timesteps="iid", block=2)
    bench.loss = settings(teacher_forcing=share, history_levels=(0, 40), level_list=(999, 699, 250))
    recipe = bench.recipe("ode_initialisation")
    drawn = bench.task(bench.student).levels(bench.clips)
    assert {250, 699} < set(drawn.flatten().tolist())
    past = history_of(bench) if share else ()
    (got,) = recipe.phases[0].loss(bench.clips).values()  # type: ignore[union-attr]
    expected = plain.ode(
        bench.velocity(bench.student, bench.clips.condition, *past), bench.guided(*past),
        drawn_noise(bench), drawn, [999, 799, 699, 599, 399, 250, 199], plain.table(SHIFT),
    )  # fmt: skip
    assert_same(bench, got, expected)


@pytest.mark.parametrize("name", ["nothing", "", "recipes"])
def test_names_that_are_no_recipe(name: str) -> None:
    with pytest.raises(ConfigError, match="objective"):
        Bench().recipe(name)


def test_settings_that_cannot_be() -> None:
    for name, value in (("teacher_steps", 1), ("target_decay", 1.5), ("fake_updates", -1), ("fake_lr", -1.0)):
        with pytest.raises(ConfigError, match=name):
            DistillationConfig(**{name: value})
    small = Bench(teacher_steps=40)
    small.task = lambda network, **_: Denoising(  # type: ignore[method-assign,assignment]
        lambda x, *_: x, FlowSchedule(1.0, num_timesteps=20), small.loss
    )
    with pytest.raises(ConfigError, match="teacher_steps"):
        small.recipe("consistency")
    blind = Bench()
    recipe = blind.recipe("consistency")
    with pytest.raises(ConfigError, match="guidance_scale"):
        recipe.phases[0].loss(Clips(range(4), blind.clips.frames, blind.clips.condition, SEED))
