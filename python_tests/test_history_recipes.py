# SPDX-License-Identifier: Apache-2.0
"""Recipes that change the history of teacher forcing, against plain PyTorch in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import plain_recipes as plain
from test_recipes import SEED, SHIFT, Bench, assert_same, bench_noise, drawn_noise, history_of
from test_trainer import write_config
from torch import Tensor

from ardiff_engine.data.choice import uniform
from ardiff_engine.errors import ConfigError
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.config import DiffusionLossConfig, TrainConfig
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.recipes.own_history import GAIN, first_blocks, learned, spoiled
from ardiff_engine.training.trainer import Trainer


def bench() -> Bench:
    made = Bench()
    made.loss = DiffusionLossConfig(prediction="flow", block=2, history_levels=(20, 90))
    return made


def sigma_of(bench: Bench) -> Tensor:
    levels = bench.task(bench.student).independent_levels(bench.clips)
    return plain.table(SHIFT)[levels]


def noisy(bench: Bench, noise: Tensor, sigma: Tensor) -> Tensor:
    x = bench.clips.frames
    return (1 - plain.of(sigma, x)) * x + plain.of(sigma, x) * noise


def told_clean(bench: Bench) -> Tensor:
    return torch.zeros(4, 4, dtype=torch.float64)


def test_noise_that_the_network_is_not_told_of() -> None:
    own = bench()
    (history, t), sigma, noise = history_of(own), sigma_of(own), drawn_noise(own)
    assert (t > told_clean(own)).all()
    network = own.velocity(own.student, own.clips.condition, history, told_clean(own))
    out = network(noisy(own, noise, sigma), plain.times(sigma))
    expected = (out - (noise - own.clips.frames)).square().flatten(1).mean(1)
    got = own.recipe("told_clean").phases[0].loss(own.clips)
    assert isinstance(got, Tensor)
    assert_same(own, got, expected)


def test_links_of_a_chain() -> None:
    own = bench()
    history, sigma, total = history_of(own), sigma_of(own), torch.zeros(4, dtype=torch.float64)
    for noise in (drawn_noise(own), bench_noise(own, Purpose.CHAIN)):
        x = noisy(own, noise, sigma)
        out = own.velocity(own.student, own.clips.condition, *history)(x, plain.times(sigma))
        total = total + (out - (noise - own.clips.frames)).square().flatten(1).mean(1)
        history = (x - plain.of(sigma, x) * out).detach(), told_clean(own)
    got = own.recipe("chained").phases[0].loss(own.clips)
    assert not isinstance(got, Tensor) and list(got) == ["link_1", "link_2"]
    assert_same(own, got["link_1"] + got["link_2"], total)


def own_history_of(own: Bench, given: Tensor, told: Tensor) -> Tensor:
    """Every other clip's, estimated as often as is drawn for it: each time of the estimate before, with new
    noise and levels. In first blocks the noisier half of the levels tells too little."""
    passes = [1 + int(3 * uniform(SEED, Purpose.PASSES, sample, 1)[0]) for sample in own.clips.samples]
    assert passes[1] != passes[3] and max(passes[1], passes[3]) == 3, "of the two that see their own"
    frames, history = own.clips.frames, given
    for number in range(3):
        again = bench()
        again.clips = replace(own.clips, frames=frames, seed=SEED + number)
        levels = own.task(own.student).independent_levels(again.clips)
        sigma = plain.table(SHIFT)[levels]
        x = noisy(again, bench_noise(again, Purpose.CHAIN), sigma)
        with torch.no_grad():
            network = own.velocity(own.student, own.clips.condition, history, told)
            estimate = plain.x0(network, x, sigma)
        taken = (levels < 500) | (torch.arange(4) >= 2)
        taken &= torch.tensor([row % 2 == 1 and passes[row] > number for row in range(4)])[:, None]
        assert number or (taken[1::2, :2].any() and not taken[1::2, :2].all())
        history = torch.where(plain.of(taken, x), estimate, history)
        frames = torch.where(plain.of(taken, x), estimate, frames)
    return history


def test_a_history_of_own_frames() -> None:
    own = bench()
    given, told = spoiled(own.task(own.student), own.clips)
    history = own_history_of(own, given, told)
    noise, sigma = drawn_noise(own), sigma_of(own)
    network = own.velocity(own.student, own.clips.condition, history, told)
    out = network(noisy(own, noise, sigma), plain.times(sigma))
    expected = (out - (noise - own.clips.frames)).square().flatten(1).mean(1)
    got = own.recipe("own_history").phases[0].loss(own.clips)
    assert isinstance(got, Tensor)
    assert_same(own, got, expected)


def test_clips_that_are_cut_to_their_first_block_count_as_that_block() -> None:
    own = bench()
    whole = own.recipe("own_history").phases[0].loss(own.clips)
    assert isinstance(whole, Tensor)
    draws = [uniform(SEED, Purpose.CUT, sample, 1)[0] for sample in own.clips.samples]
    own.loss = replace(own.loss, objective="own_history", first_blocks=sorted(draws)[2])
    recipe = own.recipe("own_history")
    losses = recipe.phases[0].loss(own.clips)
    assert not isinstance(losses, Tensor) and sorted(losses) == ["clip_loss", "first_loss"]
    rows = torch.tensor([draw < sorted(draws)[2] for draw in draws])
    assert torch.allclose(losses["clip_loss"], whole[~rows], rtol=1e-10)
    noise, sigma = drawn_noise(own), sigma_of(own)
    text, x = own.clips.condition[rows], noisy(own, noise, sigma)[rows, :2]
    out = own.velocity(own.student, text)(x, plain.times(sigma[rows, :2]))
    error = (out - (noise - own.clips.frames)[rows, :2]).square().flatten(1).mean(1)
    assert torch.allclose(losses["first_loss"], error / 2, rtol=1e-10)
    begins = torch.zeros(4, dtype=torch.bool)
    went_on = replace(own.clips, condition=SimpleNamespace(begins=begins))
    assert first_blocks(went_on, 1.0) == [], "of clips that go on the caption does not tell it"
    assert first_blocks(own.clips, 1.0) == [0, 1, 2, 3]


def test_a_spoiled_history_is_as_strong_as_its_data_on_average() -> None:
    own = bench()
    clips = replace(own.clips, samples=range(400), frames=torch.ones(400, 4, 3, 4, 6, dtype=torch.float64))
    given, told = spoiled(own.task(own.student), clips)
    assert (told == 0).all()
    strength = given.flatten(1).mean(1)
    assert abs(float(strength.mean()) - 1) < 0.02 and float(strength.std()) == pytest.approx(GAIN, rel=0.15)
    assert 0.05 < float((given - strength[:, None, None, None, None]).std()) < 0.3


@pytest.mark.parametrize("change", [{"history_dropped": 0.1}, {"history_levels": (0, 999)}])
def test_a_history_without_any_data_cannot_be_made_as_strong(change: dict[str, Any]) -> None:
    """It was divided by 0, and the network saw infinite numbers."""
    own = bench()
    own.loss = replace(own.loss, **change)
    with pytest.raises(ConfigError, match=next(iter(change))):
        own.recipe("own_history")
    own.loss = replace(own.loss, history_dropped=0.0, history_levels=(0, 998))
    assert all(values.isfinite().all() for values in spoiled(own.task(own.student), own.clips))
    own.recipe("own_history")


def test_first_blocks_of_clips_that_go_on_are_not_learned() -> None:
    own = bench()
    assert (learned(own.clips, 2) == 1).all(), "where nothing is said, clips begin"
    begins = SimpleNamespace(begins=torch.tensor([True, False, False, True]))
    rows = learned(replace(own.clips, condition=begins), 2)
    assert rows.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("objective", ["told_clean", "chained", "own_history"])
def test_the_other_network_learns_by_them(tmp_path: Path, objective: str) -> None:
    trainer = Trainer(
        read_config(
            TrainConfig, write_config(tmp_path, steps=40), [f"loss.objective={json.dumps(objective)}"]
        )
    )
    losses = [trainer.step(step)["loss"] for step in range(40)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_an_estimate_of_clean_frames_is_what_x0_gives() -> None:
    own = bench()
    task = own.task(own.student)
    x, t, _ = task.noised(own.clips, task.independent_levels(own.clips))
    output = task.predict(x, t, own.clips.condition, None, None)
    assert torch.equal(task.clean(x, t, output), task.x0(x, t, own.clips.condition))
    direct = replace(task, settings=replace(own.loss, prediction="x0"))
    assert torch.allclose(direct.clean(x, t, output), output)
