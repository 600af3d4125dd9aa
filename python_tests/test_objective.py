# SPDX-License-Identifier: Apache-2.0
"""Objectives of one's own, and the levels that rules draw, against their laws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.small_training import write_config
from helpers.small_wan import prompt, small_wan
from torch import Tensor

from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.errors import ConfigError
from ardiff_engine.training.config import DiffusionLossConfig, OptimizerConfig, TrainConfig
from ardiff_engine.training.denoising import denoising
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.timesteps import training_levels
from ardiff_engine.training.trainer import Trainer

OWN_PURPOSE = 128


def noisy_history(denoising: Denoising, clips: Clips) -> dict[str, Tensor]:
    """Astra's: most histories are noised, and the network is told that they are clean."""
    levels = torch.zeros(clips.frames.shape[:2], dtype=torch.int64)
    noised = clips.uniform(OWN_PURPOSE, 1)[:, 0] < 0.8
    history, _, _ = denoising.noised(clips, torch.where(noised[:, None], levels + 10, levels), OWN_PURPOSE)
    own = denoising.independent_levels(clips)
    return {"noisy_history": denoising.error(clips, own, (history, denoising.timesteps(levels)))}


def two_links(denoising: Denoising, clips: Clips) -> Tensor:
    """Epona's chain, one link: what was predicted is noised again and predicted once more."""
    levels = denoising.levels(clips)
    noisy, t, _ = denoising.noised(clips, levels)
    first = denoising.predict(noisy, t, clips.condition, None, None)
    again, t, _ = denoising.noised(
        Clips(clips.samples, first, clips.condition, clips.seed), levels, OWN_PURPOSE
    )
    second = denoising.predict(again, t, clips.condition, None, None)
    return sum((x - clips.frames).square().flatten(1).mean(1) for x in (first, second))  # type: ignore[return-value]


def of_a_wrong_shape(denoising: Denoising, clips: Clips) -> Tensor:
    return denoising.error(clips, denoising.levels(clips)).mean()


def trainer(tmp_path: Path, objective: str) -> Trainer:
    change = f"loss.objective=test_objective:{objective}"
    return Trainer(read_config(TrainConfig, write_config(tmp_path, steps=60), [change]))


@pytest.mark.parametrize("objective", [noisy_history, two_links])
def test_an_objective_of_ones_own_learns(tmp_path: Path, objective: Callable[..., object]) -> None:
    own = trainer(tmp_path, objective.__name__)
    losses = [own.step(step)["loss"] for step in range(60)]
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


@pytest.mark.parametrize(
    "name", ["nowhere:f", "test_objective:missing", "test_objective", "test_objective:OWN_PURPOSE"]
)
def test_an_objective_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="objective"):
        Trainer(read_config(TrainConfig, write_config(tmp_path), [f"loss.objective={name}"]))


def test_an_objective_of_a_wrong_shape(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each clip"):
        trainer(tmp_path, "of_a_wrong_shape").step(0)


def test_a_flow_has_its_own_timesteps_and_target() -> None:
    schedule = FlowSchedule(shift=5.0)
    task = Denoising(lambda x, *_: x, schedule, DiffusionLossConfig(prediction="flow"))
    clips = Clips(range(2), torch.randn(2, 3, 4, 5), torch.zeros(2, 1), seed=3)
    wanted = torch.tensor([[0, 500, 999], [999, 1, 20]])
    noisy, t, target = task.noised(clips, wanted)
    assert float(t[0, 2]) == 1000.0 and torch.equal(t[0, 0].double(), schedule.timesteps[-1])
    sigma = schedule.sigma(t).float()[..., None, None]
    noise = target + clips.frames
    assert torch.allclose(noisy, (1 - sigma) * clips.frames + sigma * noise, atol=1e-5)
    assert torch.allclose(noisy[0, 2], noise[0, 2], atol=1e-6)


def test_a_wan_transformer_learns_with_teacher_forcing_and_without() -> None:
    model = small_wan().train()
    settings = DiffusionLossConfig(prediction="flow", timesteps="ptss", block=2, teacher_forcing=0.5)

    def predict(
        x: Tensor, t: Tensor, text: Tensor, history: Tensor | None, history_t: Tensor | None
    ) -> Tensor:
        return model.forward_clip(x, t, text, block=2, history=history, history_t=history_t)

    task = Denoising(predict, FlowSchedule(shift=3.0), settings)
    optimizer = Optimizer(model, OptimizerConfig(lr=3e-3), 60)
    frame = torch.randn(1, 1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    losses: dict[str, list[float]] = {"teacher_loss": [], "diffusion_loss": []}
    for step in range(60):
        clips = Clips(
            range(4 * step, 4 * step + 4), frame.expand(4, 4, -1, -1, -1), prompt(1).expand(4, -1, -1), 0
        )
        parts = denoising(task, clips)
        torch.stack([part.sum() for part in parts.values()]).sum().div(4).backward()
        optimizer.update(step)
        for name, part in parts.items():
            losses[name].append(float(part.detach().mean()))
    for name, values in losses.items():
        assert sum(values[-10:]) < 0.7 * sum(values[:10]), name


def levels(loss: DiffusionLossConfig, samples: int = 4000, frames: int = 6, total: int = 1000) -> Tensor:
    return training_levels(range(samples), frames, total, loss, seed=4)


def test_ptss_is_iid_or_shared() -> None:
    drawn = levels(DiffusionLossConfig(timesteps="ptss", independent_probability=0.2))
    together = (drawn == drawn[:, :1]).all(1)
    assert abs(float(together.double().mean()) - 0.8) < 0.02
    apart = drawn[~together].double()
    assert abs(float(torch.corrcoef(apart.T)[0, 1])) < 0.12
    assert abs(float(drawn.double().mean()) - 499.5) < 15


@pytest.mark.parametrize("rule", ["fopp", "uniform", "iid", "shared", "ptss"])
def test_frames_of_a_block_stand_at_one_level(rule: str) -> None:
    drawn = levels(DiffusionLossConfig(timesteps=rule, block=4, known_probability=0.5), 200)  # type: ignore[arg-type]
    assert (drawn[:, :4] == drawn[:, :1]).all() and (drawn[:, 4:] == drawn[:, 4:5]).all()
    assert (drawn[:, 0] != drawn[:, 4]).any()


def test_only_listed_levels_are_drawn_each_as_often() -> None:
    drawn = levels(DiffusionLossConfig(timesteps="iid", level_list=(999, 250, 500, 750)))
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [250, 500, 750, 999]
    assert (counts / counts.sum() - 0.25).abs().max() < 0.01
    ordered = levels(DiffusionLossConfig(timesteps="uniform", level_list=(999, 250, 500, 750)), 200)
    assert (ordered.diff(dim=1) >= 0).all()


def test_logit_normal_levels() -> None:
    drawn = levels(DiffusionLossConfig(timesteps="iid", logit_normal=(0.5, 1.2)), total=100_000).double()
    logits = torch.logit((drawn.flatten() + 0.5) / 100_000)
    assert abs(float(logits.mean()) - 0.5) < 0.03 and abs(float(logits.std()) - 1.2) < 0.03


@pytest.mark.parametrize(
    "change",
    [
        "loss.level_list=[40]",
        "loss.level_list=[-1]",
        "loss.history_levels=[5]",
        "loss.history_levels=[9, 2]",
        "loss.history_levels=[40, 41]",
        "loss.logit_normal=[0.0]",
        "loss.logit_normal=[0.0, 0.0]",
        "loss.block=0",
        "loss.prediction=flow",
        "loss.history_dropped=1.5",
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, change: str) -> None:
    with pytest.raises(ConfigError, match=change.partition("=")[0]):
        read_config(TrainConfig, write_config(tmp_path), [change])
