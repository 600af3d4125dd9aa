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
from ardiff_engine.diffusion.noise import noise_keys
from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.errors import ConfigError
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.ops.philox_normal import philox_normal
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.config import DiffusionLossConfig, OptimizerConfig
from ardiff_engine.training.distillation import DistillationConfig
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.recipe import Cast, Recipe, find_recipe
from ardiff_engine.training.roll_out import RollOut, roll_out

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
                history_t=None if history_t is None else history_t.to(x.dtype), hold_history=held_history,
            )  # fmt: skip

        return Denoising(predict, SCHEDULE, self.loss)

    def asked(self, clips: Clips) -> Sequence[Mapping[str, Any]]:
        return [{"condition": text, "size": tuple(clips.frames.shape[3:])} for text in clips.condition]

    def recipe(self, name: str) -> Recipe:
        given = Cast(
            self.student, self.task, lambda: self.teacher, self.asked, self.settings,
            OptimizerConfig(lr=1e-2),
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


def self_forcing(dtype: torch.dtype, name: str = "self_forcing", **settings: float) -> tuple[Bench, Recipe]:
    bench = Bench(dtype, fake_updates=2, **settings)
    bench.teacher.requires_grad_(False)
    bench.loss = replace(bench.loss, level_list=(999, 600, 300))
    recipe = bench.recipe(name)
    with torch.no_grad():
        for weight in recipe.networks["fake_score"].parameters():
            weight.mul_(1.05)
    return bench, recipe


def noise_of(bench: Bench, purpose: int, step: int) -> Tensor:
    """float32 [B, F, 3, 4, 6], as an engine counts it: that of steps in the order of tokens."""
    streams = [n for n in bench.clips.samples for _ in range(FRAMES)]
    drawn = philox_normal(noise_keys(SEED, streams, list(range(FRAMES)) * 4, purpose, step), 72)
    if purpose == Purpose.STEP:
        drawn = bench.student.from_tokens(drawn.reshape(-1, 6, 12), (4, 6))
    return drawn.reshape(4, FRAMES, 3, 4, 6)


def ends_of(bench: Bench) -> list[int]:
    return [int(3 * share) for share in bench.clips.uniform(Purpose.EXIT, 1)[:, 0].tolist()]


def score_sigma(bench: Bench) -> Tensor:
    share = bench.clips.uniform(Purpose.SCORE_LEVEL, 1)
    sigma = plain.table(SHIFT)[(1000 * share).long()]
    assert float(sigma.min()) > 0.02 and float(sigma.max()) < 0.98
    return sigma.expand(-1, FRAMES)


def test_roll_outs_of_the_engine_are_those_of_a_plain_cache() -> None:
    bench, recipe = self_forcing(torch.float32)
    assert [phase.network for phase in recipe.phases] == ["fake_score", "fake_score", "model"]
    ends, sigmas = ends_of(bench), plain.table(SHIFT)[[999, 600, 300]].float()
    assert len(set(ends)) > 1
    eps = torch.stack([noise_of(bench, Purpose.STEP, step) for step in range(2)], 2)
    expected = plain.roll_out(
        bench.student, bench.clips.condition, noise_of(bench, Purpose.INITIAL, 0), eps, ends, sigmas, 2
    )
    video = video_of(bench, ends)
    plainly = expected.detach().flatten(1)
    off = (video.frames.flatten(1) - plainly).norm(dim=1) / plainly.norm(dim=1)
    assert float(off.max()) < 1e-5
    # Training: the gradient of the whole loss, through the last step of each block, and nothing else.
    got = recipe.phases[-1].loss(bench.clips)
    assert isinstance(got, Tensor)
    text, null = bench.clips.condition, bench.clips.null
    real = plain.guided(*(bench.velocity(bench.teacher, c) for c in (text, null)), 2.5)
    fake = bench.velocity(recipe.networks["fake_score"], text)  # type: ignore[arg-type]
    sigma = score_sigma(bench)
    scored = plain.dmd(expected, real, fake, bench_noise(bench, Purpose.SCORE), sigma.float())
    both = [gradients(bench.student, losses) for losses in (got, scored)]
    for ours, theirs in zip(*both, strict=True):
        assert (ours - theirs).norm() <= 2e-4 * theirs.norm() + 1e-7
    assert all(p.grad is None for p in recipe.networks["fake_score"].parameters())


def bench_noise(bench: Bench, purpose: Purpose) -> Tensor:
    task = bench.task(bench.student)
    return task.noised(bench.clips, torch.full((4, FRAMES), 999), purpose)[0]


def video_of(bench: Bench, ends: Sequence[int]) -> RollOut:
    steps = SCHEDULE.timesteps.flip(0)[[999, 600, 300]].tolist()
    return roll_out(
        bench.student, bench.asked(bench.clips), [Renoise(SCHEDULE, steps[: end + 1]) for end in ends],
        bench.clips.frames, 2, SEED, bench.clips.samples,
    )  # fmt: skip


def plainly_scored(bench: Bench, recipe: Recipe, video: RollOut) -> tuple[Tensor, Tensor, plain.Network]:
    """(x, DMD's loss of it, the fake score), from the engine's own video and noisy frames: one step for each
    block over a held cache."""
    text, blocks = bench.clips.condition, []
    network = plain.Cached(bench.student, text)
    sigma = plain.table(SHIFT)[[999, 600, 300]][ends_of(bench)][:, None].expand(-1, 2)
    for first in (0, 2):
        own = slice(first, first + 2)
        step = partial(network, first=first)
        blocks.append(plain.x0(lambda x, t, step=step: step(x, t), video.noisy[:, own], sigma))  # type: ignore[misc]
        with torch.no_grad():
            network(video.frames[:, own], torch.zeros(4, 2, dtype=torch.float64), first, keep=True)
    x = torch.cat(blocks, 1)
    real = plain.guided(*(bench.velocity(bench.teacher, c) for c in (text, bench.clips.null)), 2.5)
    fake = bench.velocity(recipe.networks["fake_score"], text)  # type: ignore[arg-type]
    return x, plain.dmd(x, real, fake, bench_noise(bench, Purpose.SCORE), score_sigma(bench)), fake


def assert_same_gradients(network: nn.Module, got: Tensor, expected: Tensor) -> None:
    both = [gradients(network, losses) for losses in (got, expected)]
    for ours, theirs in zip(*both, strict=True):
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm() + 1e-13


def test_n_steps_against_n_and_one() -> None:
    bench, recipe = self_forcing(torch.float64, "adversarial_self_distillation", adversarial_weight=0.3)
    assert [phase.network for phase in recipe.phases] == ["fake_score", "fake_score", "judge", "model"]
    judge, ends = recipe.networks["judge"], ends_of(bench)
    logits = partial(plain.judged, list(judge.parameters()))
    assert {end < 2 for end in ends} == {True, False}
    x, scored, _ = plainly_scored(bench, recipe, video_of(bench, ends))
    got = recipe.phases[-1].loss(bench.clips)
    assert not isinstance(got, Tensor) and set(got) == {"dmd_loss", "step_loss"}
    held = [weight.detach() for weight in judge.parameters()]
    told = torch.stack(
        [-0.3 * plain.judged(held, x[row : row + 1]).mean() for row in range(4) if ends[row] < 2]
    )
    assert_same_gradients(bench.student, torch.cat(list(got.values())), torch.cat([scored, told]))
    assert torch.allclose(got["step_loss"], told, rtol=1e-10, atol=0)
    assert all(p.grad is None for p in judge.parameters())
    # The judge: the same noise, one step more.
    fewer = [int(2 * share) for share in bench.clips.uniform(Purpose.EXIT, 1)[:, 0].tolist()]
    real, own = (logits(video_of(bench, [n + plus for n in fewer]).frames) for plus in (1, 0))
    hinge = 0.5 * (torch.relu(1 - real) + torch.relu(1 + own)).flatten(1).mean(1)
    judged = recipe.phases[-2].loss(bench.clips)
    assert isinstance(judged, Tensor) and torch.allclose(judged, hinge, rtol=1e-10, atol=0)
    assert_same_gradients(judge, judged, hinge)


def test_one_step_has_nothing_to_be_matched_with() -> None:
    bench = Bench()
    bench.loss = replace(bench.loss, level_list=(999,))
    with pytest.raises(ConfigError, match="level_list"):
        bench.recipe("adversarial_self_distillation")


def test_the_gradient_of_a_roll_out_in_float64() -> None:
    bench, recipe = self_forcing(torch.float64)
    video = video_of(bench, ends_of(bench))
    _, scored, fake = plainly_scored(bench, recipe, video)
    got = recipe.phases[-1].loss(bench.clips)
    assert isinstance(got, Tensor)
    assert_same_gradients(bench.student, got, scored)
    # The fake score learns the student's videos.
    learnt = recipe.phases[0].loss(bench.clips)
    assert isinstance(learnt, Tensor)
    sigma, noise = score_sigma(bench), bench_noise(bench, Purpose.TRAIN)
    noisy = (1 - plain.of(sigma, noise)) * video.frames + plain.of(sigma, noise) * noise
    out = fake(noisy, plain.times(sigma))
    wanted = (out - (noise - video.frames)).square().flatten(1).mean(1)
    assert torch.allclose(learnt, wanted, rtol=1e-10, atol=0)


@pytest.mark.parametrize("levels", [(), (600, 300), (999, 999)])
def test_steps_that_are_no_video(levels: tuple[int, ...]) -> None:
    bench = Bench()
    bench.loss = replace(bench.loss, level_list=levels)
    with pytest.raises(ConfigError, match="level_list"):
        bench.recipe("self_forcing")
