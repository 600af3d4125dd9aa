# SPDX-License-Identifier: Apache-2.0
"""Small networks trained on moving digits or shapes, alike but for one thing: the arms of `trained_digits`.

A frame is one token, the numbers that the autoencoder of a bundled model makes of it. In every clip the
first frames are known, a random number of them, and the rule of the arm draws the levels of the others: all
arms learn to continue a clip, and differ in how its new frames stand to each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from ardiff_engine.data.config import DataConfig
from ardiff_engine.data.encoded_clips import LatentSource
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM, Euler, Solver
from ardiff_engine.evaluation.worlds import FRAMES, World
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer
from ardiff_engine.training.config import (
    DiffusionLossConfig,
    EmaConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.timesteps import KNOWN_LEVELS
from ardiff_engine.training.trainer import Trainer
from ardiff_engine.weights import load_ar_diffusion

Rule = Literal["fopp", "iid", "shared", "uniform", "ptss"]
Predicted = Literal["x0", "eps", "v", "flow"]
SCALE = 2.0
"""Of refined trainings."""


@dataclass(frozen=True, slots=True)
class Arm:
    """rule: of timesteps. prediction: of the network; "flow" learns on a straight path, the others on
    AR-Diffusion's schedule."""

    rule: Rule
    prediction: Predicted = "x0"

    @property
    def name(self) -> str:
        return f"{self.rule} {self.prediction}"

    def solver(self, steps: int) -> Solver:
        if self.prediction == "flow":
            return Euler(FlowSchedule(), steps, prediction="flow")
        return DDIM(NoiseSchedule.sqrt_linear(), steps, prediction=self.prediction)


@dataclass(frozen=True, slots=True)
class Training:
    """What all arms share. steps: of the optimizer, of `batch` windows each. clips: that are stored, and seen
    in windows. width, depth: of the network. refined: see `refined_denoising`; without it a prediction that
    holds noise learns little in so few steps."""

    steps: int
    batch: int = 16
    clips: int = 2048
    width: int = 96
    depth: int = 3
    refined: bool = False

    @property
    def scale(self) -> float:
        """What latents are multiplied by before the network sees them."""
        return SCALE if self.refined else 1.0


def refined_denoising(denoising: Denoising, clips: Clips) -> Tensor:
    """An objective: (target - network)² of the frames that are to be made, [B], of doubled latents.

    The noise in a known frame cannot be told from the frame. A target that holds noise would have a loss of 1
    there, in half of the frames, which no network lowers. Latents have a deviation of 1/2: beside their noise
    they would count for a fifth of such a target.
    """
    clips = replace(clips, frames=SCALE * clips.frames)
    levels = denoising.levels(clips)
    noisy, t, target = denoising.noised(clips, levels)
    error = (denoising.predict(noisy, t, clips.condition, None, None) - target).square().flatten(2).mean(2)
    return (error * (levels >= KNOWN_LEVELS).to(error)).mean(1)


class ArmTrainer(Trainer):
    """Of one arm; `latents` is where the encoded clips lie, for all arms."""

    def __init__(self, config: TrainConfig, arm: Arm, world: World, clips: int, latents: Path) -> None:
        self._arm, self._world, self._clips, self._latents = arm, world, clips, latents
        super().__init__(config)

    def _source(self) -> LatentSource:
        return self._world.source(self._clips, self.config.run.seed, self._latents)

    def _task(self, network: nn.Module, *, whole: bool = False, held_history: bool = False) -> Denoising:
        task = super()._task(network, whole=whole, held_history=held_history)
        if self._arm.prediction != "flow":
            return task
        return Denoising(task.predict, FlowSchedule(), replace(task.settings, prediction="flow"))


def run_name(arm: Arm, seed: int, training: Training, world: str) -> str:
    """Of its folder."""
    run = f"{arm.rule}-{arm.prediction}-{seed}" + "-refined" * training.refined
    return run if world == "digits" else f"{world}-{run}"


def train_arm(arm: Arm, seed: int, training: Training, folder: Path, world: World) -> ARDiffusionTransformer:
    """The network with averaged weights; trained below `folder` unless that is done, on from its
    checkpoint."""
    own = folder / run_name(arm, seed, training, world.name)
    config = arm_config(arm, seed, training, own, world.numbers)
    trainer = ArmTrainer(config, arm, world, training.clips, folder / f"{world.name}_latents.safetensors")
    checkpoints = own / "checkpoints"
    trainer.train(resume=checkpoints.is_dir() and any(checkpoints.iterdir()))
    return load_ar_diffusion(own / "transformer").eval()


def arm_config(arm: Arm, seed: int, training: Training, folder: Path, numbers: int) -> TrainConfig:
    """Of one run, in `folder`. numbers: of a frame."""
    run = RunConfig(
        str(folder),
        training.steps,
        batch=training.batch,
        seed=seed,
        threads=1,
        log_every=100,
        validate_every=0,
        checkpoint_every=200,
    )
    model = ARDiffusionConfig(
        num_frames=FRAMES,
        tokens_per_frame=1,
        channels=numbers,
        width=training.width,
        depth=training.depth,
        heads=4,
        context_tokens=1,
        context_dim=8,
    )
    # The config of a flow is refused with [schedule]; its trainer has a schedule of its own.
    prediction = "x0" if arm.prediction == "flow" else arm.prediction
    loss = DiffusionLossConfig(
        timesteps=arm.rule, prediction=prediction, null_probability=0.0, known_probability=1.0
    )
    if training.refined:
        loss = replace(loss, objective=f"{__name__}:{refined_denoising.__name__}")
    data = DataConfig(source="latents", path="kept clips", num_frames=FRAMES)
    optimizer = OptimizerConfig(
        lr=3e-3, beta2=0.99, weight_decay=0.01, schedule="cosine", warmup=100, final_lr=0.02
    )
    return TrainConfig(run, model, data, optimizer, loss, ema=EmaConfig(decay=0.99))
