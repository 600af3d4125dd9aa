# SPDX-License-Identifier: Apache-2.0
"""Stage 1 of Wan transformers: trains the small autoencoder of frames (`models.frame_vae`).

L = l1·mean|x - x̂| + l2·mean(x - x̂)²,   x̂ = decoder(latents + latent_noise·ε)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ardiff_engine.data.buckets import alike, check_sizes
from ardiff_engine.data.config import DataConfig
from ardiff_engine.data.sources import clip_source
from ardiff_engine.diffusion.noise import noise_keys
from ardiff_engine.errors import ConfigError
from ardiff_engine.files import make_folder
from ardiff_engine.media import contact_sheet
from ardiff_engine.models.frame_vae import SCALE, FrameVAE, FrameVAEConfig
from ardiff_engine.ops import philox_normal
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.averages import Averages
from ardiff_engine.training.config import OptimizerConfig, RunConfig, of_stage_1
from ardiff_engine.training.log_config import LogConfig
from ardiff_engine.training.loop import TrainingLoop, exported_at_the_end
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.precision import autocast, weights_dtype
from ardiff_engine.training.processes import (
    average_gradients,
    enter,
    rank,
    sample_ids,
    step_clips,
    together,
    world_size,
)
from ardiff_engine.weights import save_model

VAE_FOLDER = "vae"
PICTURES = 16


@dataclass(frozen=True, slots=True)
class FrameVaeLoss:
    """Weights of the loss. latent_noise: standard deviation of noise on the latents, whose own is 1: near
    latents then decode to near images, which stage 2 needs because its samples are never exact."""

    l1: float = 1.0
    l2: float = 0.0
    latent_noise: float = 0.1

    def __post_init__(self) -> None:
        for name in ("l1", "l2", "latent_noise"):
            if not 0 <= getattr(self, name) <= 1e6:
                raise ConfigError(f"loss.{name}: got {getattr(self, name)}, expected a number from 0 on.")


@dataclass(frozen=True, slots=True)
class FrameVaeTrainConfig:
    """`ardiff train-vae` with autoencoder = "frame_vae"."""

    autoencoder: Literal["frame_vae"]
    run: RunConfig
    model: FrameVAEConfig = field(default_factory=FrameVAEConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(num_frames=1))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: FrameVaeLoss = field(default_factory=FrameVaeLoss)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        of_stage_1(self.log, self.data)
        check_sizes(self.data.shapes_of_clips, SCALE, SCALE)


class FrameVaeTrainer:
    """One optimizer step. What a step draws depends on (seed, sample id)."""

    def __init__(self, config: FrameVaeTrainConfig) -> None:
        run = enter(config.run)
        self.config = config = replace(config, run=run)
        self.model = FrameVAE(config.model).to(run.device, weights_dtype(run))
        self.optimizer = Optimizer(self.model, config.optimizer, run.steps)
        clips = step_clips(run.batch, run.accumulate)
        self.source = clip_source(config.data, config.model.image_size, run.seed, clips)
        self.loop = TrainingLoop(run, {"model": self.model}, {"model": self.optimizer}, None, config)

    def train(self, *, resume: bool = False) -> Path:
        """All steps; returns the folder of the autoencoder (`output/vae`). Stopped after SIGINT or SIGTERM;
        the folder then holds it as far as it came."""
        folder = self.loop.folder / VAE_FOLDER
        with exported_at_the_end(lambda: None if rank() else save_model(self.model, folder)):
            self.loop.run(self.step, self.validate, resume=resume)
        return folder

    def step(self, step: int) -> Averages:
        run, averages = self.config.run, Averages()
        self.model.train()
        for micro in range(run.accumulate):
            samples = sample_ids(step, micro, run.batch, run.accumulate)
            loss, _, _ = self.loss(samples)
            (loss / run.accumulate).backward()
            averages.add("loss", float(loss.detach()))
        average_gradients(self.optimizer.parameters.values())
        averages.add("gradient_norm", self.optimizer.update(step))
        return averages

    def loss(self, samples: Sequence[int], *, held_out: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Of clips by id, with images and reconstructions [N, 3, H, W]; held-out clips get no noise."""
        run, weights = self.config.run, self.config.loss
        clips, _ = (self.source.held_out() if held_out else self.source).clips(samples)
        images = clips.flatten(0, 1).to(run.device, weights_dtype(run))
        with autocast(run):
            latents = self.model.latents(images)
            if not held_out and weights.latent_noise:
                latents = latents + weights.latent_noise * self._noise(latents, samples)
            reconstructed = self.model.images(latents).to(images.dtype)
        error = reconstructed - images
        return weights.l1 * error.abs().mean() + weights.l2 * error.square().mean(), images, reconstructed

    @torch.no_grad()
    def validate(self) -> Averages:
        """Loss and peak signal-to-noise ratio in dB of held-out clips, and a picture of the first ones."""
        run, averages = self.config.run, Averages()
        self.model.eval()
        own = range(rank(), run.validation_clips, world_size())
        shown: tuple[Tensor, Tensor] | None = None
        for samples in alike(self.source.held_out(), own, run.batch):
            loss, images, reconstructed = self.loss(samples, held_out=True)
            shown = shown or (images, reconstructed)
            squares = (reconstructed.clamp(0, 1) - images).square().flatten(1).mean(1)
            averages.add("loss", float(loss) * len(samples), len(samples))
            averages.add(
                "psnr", float(-10 * squares.clamp(min=1e-10).log10().mean()) * len(samples), len(samples)
            )
        together(lambda: self._show(*shown) if rank() == 0 and shown else None, run.device)
        averages.gather()
        return averages

    def _noise(self, latents: Tensor, samples: Sequence[int]) -> Tensor:
        keys = noise_keys(
            self.config.run.seed,
            [n % 2**32 for n in samples],
            1,
            Purpose.TRAIN,
            [n // 2**32 for n in samples],
        )
        noise = philox_normal(keys.to(latents.device), latents.numel() // len(samples))
        return noise.reshape(latents.shape).to(latents.dtype)

    def _show(self, images: Tensor, reconstructed: Tensor) -> None:
        """Originals above reconstructions."""
        rows = [
            part[:PICTURES].movedim(1, -1).float().clamp(0, 1).cpu().numpy()
            for part in (images, reconstructed)
        ]
        path = make_folder(self.loop.folder / "reconstructions") / f"step-{self.loop.finished:08d}.png"
        contact_sheet(rows, ["original", "reconstruction"], path, columns=PICTURES)
