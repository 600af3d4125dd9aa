# SPDX-License-Identifier: Apache-2.0
"""Stage 1: trains the frame autoencoder (TiTok-KL) on frames or clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.data.sources import clip_source
from ardiff_engine.diffusion.noise import noise_keys
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.files import make_folder
from ardiff_engine.media import contact_sheet
from ardiff_engine.models import TiTok, to_tokens
from ardiff_engine.ops import philox_normal
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.averages import Averages
from ardiff_engine.training.config import VaeTrainConfig
from ardiff_engine.training.discriminator import PatchDiscriminator
from ardiff_engine.training.dry_run import RunEstimate, check_room, dry_run
from ardiff_engine.training.earlier_run import earlier_run
from ardiff_engine.training.ema import Ema
from ardiff_engine.training.fan_in import initialise_by_fan_in
from ardiff_engine.training.frame_vae_trainer import FrameVaeTrainConfig, FrameVaeTrainer
from ardiff_engine.training.latent_spread import LatentSpread
from ardiff_engine.training.loop import TrainingLoop, begun, exported_at_the_end
from ardiff_engine.training.losses import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    kl_divergence,
)
from ardiff_engine.training.lpips import Lpips
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.precision import autocast, recompute_blocks, weights_dtype
from ardiff_engine.training.processes import average_gradients, enter, rank, sample_ids, together, world_size
from ardiff_engine.training.read_config import read_config, read_values
from ardiff_engine.weights import load_titok, save_model

VAE_FOLDER = "vae"
CLASSIFIER_WIDTH = 128
MAX_CLASSES = 1024
PICTURES = 16
DECODER_PREFIXES = ("decoder.", "pixel_quantize_conv.", "pixel_decoder.")

Terms = dict[str, tuple[float, Tensor]]


class VaeTrainer:
    """One optimizer step of stage 1.

    L = l1·mean|x - x̂| + l2·mean(x - x̂)² + kl·KL + lpips·LPIPS(x, x̂) + classes·CE + gan·w·(-mean D(x̂)),
    with w the adaptive weight. From `gan_start` on, every step moves both networks: first the autoencoder,
    then the discriminator on the same images (the official code gives each of them every other step). Both
    are clipped.
    """

    def __init__(self, config: VaeTrainConfig) -> None:
        run = enter(config.run)
        self.config = config = replace(config, run=run)
        check_room(lambda: TiTok(config.model), run, averaged=config.ema.decay > 0)
        given = config.init and not begun(run)
        self.model = (
            load_titok(earlier_run("init", config.init), config.model) if given else TiTok(config.model)
        ).to(run.device, weights_dtype(run))
        if run.recompute:
            recompute_blocks(self.model)
        if not config.init and config.initialisation == "fan_in":
            initialise_by_fan_in(self.model)
        _select_parameters(self.model, config.trainable)
        if config.channels_last:
            _set_memory_format(self.model, torch.channels_last)
        self.classifier = _classifier(config).to(run.device, weights_dtype(run))
        self.perceptual = Lpips(config.loss.lpips_weights).to(run.device) if config.loss.lpips else None
        self.discriminator = (
            PatchDiscriminator(config.model.image_channels).to(run.device) if config.loss.gan else None
        )
        trained = nn.ModuleDict({"model": self.model, "classifier": self.classifier})
        self.optimizer = Optimizer(trained, config.optimizer, run.steps)
        self.ema = Ema(self.model, config.ema.decay) if config.ema.decay else None
        self.source = clip_source(config.data, config.model.image_size, run.seed)
        modules: dict[str, nn.Module] = {"model": self.model, "classifier": self.classifier}
        optimizers = {"model": self.optimizer}
        if self.discriminator is not None:
            modules["discriminator"] = self.discriminator
            optimizers["discriminator"] = Optimizer(self.discriminator, config.optimizer, run.steps)
        self.optimizers = optimizers
        self.loop = TrainingLoop(run, modules, optimizers, self.ema, config)

    def train(self, *, resume: bool = False) -> Path:
        """All steps; returns the folder with the exported model (`output/vae`).

        Raises Stopped after SIGINT or SIGTERM; the folder then holds the model as far as it came.
        """
        folder = self.loop.folder / VAE_FOLDER
        with exported_at_the_end(lambda: None if rank() else self._export(folder)):
            self.loop.run(self.step, self.validate, resume=resume)
        return folder

    def _export(self, folder: Path) -> None:
        if self.ema is not None:
            self.ema.exchange(self.model)
        _set_memory_format(self.model, torch.contiguous_format)
        save_model(self.model, folder)

    def step(self, step: int) -> Averages:
        run, averages = self.config.run, Averages()
        self.model.train()
        for micro in range(run.accumulate):
            samples = sample_ids(step, micro, run.batch, run.accumulate)
            images, classes = self.source.clips(samples)
            images = images.to(run.device, weights_dtype(run))
            reconstruction, terms = self.terms(images, classes, samples)
            loss = _weighted(terms)
            values = {"loss": loss} | {name: term for name, (_, term) in terms.items()}
            if self.discriminator is not None and step >= self.config.loss.gan_start:
                values |= self._adversarial(images.flatten(0, 1), reconstruction, loss)
            else:
                (loss / run.accumulate).backward()
            for name, value in values.items():
                averages.add(name, float(value.detach()))
        for name, optimizer in self.optimizers.items():
            if name == "model" or step >= self.config.loss.gan_start:
                average_gradients(optimizer.parameters.values())
                norm = optimizer.update(step)
                if name == "model":
                    averages.add("gradient_norm", norm)
        return averages

    def terms(
        self, images: Tensor, classes: Tensor | None, samples: Sequence[int] | None
    ) -> tuple[Tensor, Terms]:
        """Reconstruction [B·T, 3, H, W] and weighted loss terms of clips [B, T, 3, H, W]; with noise if
        their ids are given."""
        loss = self.config.loss
        frames = images.flatten(0, 1)
        with autocast(self.config.run):
            mean, log_variance = self.model.moments(frames)
        mean, log_variance = mean.to(frames.dtype), log_variance.to(frames.dtype)
        z = mean
        if samples is not None:
            seed = self.config.run.seed
            if loss.sample_posterior and loss.kl:
                z = z + torch.exp(0.5 * log_variance) * _noise(z, len(images), seed, samples, 0)
            if loss.latent_noise:
                z = F.normalize(z, dim=1, eps=1e-12)
                z = z + loss.latent_noise * _noise(z, len(images), seed, samples, 1)
        with autocast(self.config.run):
            decoded = self.model.decode(z.unflatten(0, images.shape[:2]), frames_per_pass=frames.shape[0])
        reconstruction = decoded.flatten(0, 1).to(frames.dtype)
        error = reconstruction - frames
        terms: Terms = {"l1": (loss.l1, error.abs().mean())}
        if loss.l2:
            terms["l2"] = (loss.l2, error.square().mean())
        if loss.classes:
            terms["classes"] = (loss.classes, self._class_loss(z, classes, images.shape[1]))
        if loss.kl:
            terms["kl"] = (loss.kl, kl_divergence(mean, log_variance))
        if self.perceptual is not None:
            terms["lpips"] = (loss.lpips, self.perceptual(frames, reconstruction).mean())
        return reconstruction, terms

    @torch.no_grad()
    def validate(self) -> Averages:
        """Mean loss and L1 on held-out frames, without noise and without the adversarial term, and how much
        their latents vary. Writes a picture of originals and reconstructions."""
        run, averages, spread = self.config.run, Averages(), LatentSpread()
        self.model.eval()
        source = self.source.held_out()
        own = range(rank(), run.validation_clips, world_size())
        shown: tuple[Tensor, ...] = ()
        for first in range(0, len(own), run.batch):
            samples = own[first : first + run.batch]
            images, classes = source.clips(samples)
            images = images.to(run.device, weights_dtype(run))
            reconstruction, terms = self.terms(images, classes, None)
            spread.add(to_tokens(self.model.encode(images)))
            if first == 0:
                shown = images.flatten(0, 1), reconstruction
            averages.add("loss", float(_weighted(terms)) * len(samples), len(samples))
            averages.add("l1", float(terms["l1"][1]) * len(samples), len(samples))
        if spread.pictures:
            averages.add("latent_spread", spread.value)
        if rank() == 0:
            spread.warn()
        together(lambda: self._show(*shown) if rank() == 0 else None, run.device)
        averages.gather()
        return averages

    def _show(self, images: Tensor, reconstructions: Tensor) -> None:
        """Of the first held-out pictures: originals above reconstructions."""
        rows = [
            part[:PICTURES].movedim(1, -1).float().clamp(0, 1).cpu().numpy()
            for part in (images, reconstructions)
        ]
        path = make_folder(self.loop.folder / "reconstructions") / f"step-{self.loop.finished:08d}.png"
        contact_sheet(rows, ["original", "reconstruction"], path, columns=PICTURES)

    def _class_loss(self, z: Tensor, classes: Tensor | None, frames: int) -> Tensor:
        if classes is None:
            raise ConfigError(
                explain(
                    "loss.classes",
                    got="data without classes",
                    expected="moving_digits",
                    fix="Set loss.classes = 0.",
                )
            )
        return F.cross_entropy(self.classifier(z), classes.to(z.device).repeat_interleave(frames))

    def _adversarial(self, real: Tensor, fake: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """Backward of both networks; the discriminator collects no gradient from the autoencoder's pass."""
        discriminator, config = self.discriminator, self.config
        if discriminator is None:
            return {}
        discriminator.requires_grad_(False)
        generator = hinge_generator_loss(discriminator(fake))
        weight = adaptive_weight(loss, generator, self.model.pixel_decoder.conv_out.weight)
        ((loss + config.loss.gan * weight * generator) / config.run.accumulate).backward()
        discriminator.requires_grad_(True)
        judged = hinge_discriminator_loss(discriminator(real), discriminator(fake.detach()))
        (judged / config.run.accumulate).backward()
        return {"generator": generator, "discriminator": judged}


def train_vae(config: VaeTrainConfig, *, resume: bool = False) -> Path:
    """Trains stage 1 and returns the folder of the exported autoencoder."""
    return VaeTrainer(config).train(resume=resume)


def vae_trainer_of(config_path: str | Path, overrides: Sequence[str] = ()) -> VaeTrainer | FrameVaeTrainer:
    """From a TOML file and `section.name=value` overrides. `autoencoder = "frame_vae"` in it: the small one
    of `training.frame_vae_trainer`."""
    if "autoencoder" in read_values(config_path, overrides):
        return FrameVaeTrainer(read_config(FrameVaeTrainConfig, config_path, overrides))
    return VaeTrainer(read_config(VaeTrainConfig, config_path, overrides))


def run_train_vae(config_path: str | Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """`train_vae` with a TOML file and `section.name=value` overrides."""
    return vae_trainer_of(config_path, overrides).train(resume=resume)


def dry_run_train_vae(config_path: str | Path, overrides: Sequence[str] = ()) -> RunEstimate:
    """What that takes."""
    return dry_run(vae_trainer_of(config_path, overrides))


def _weighted(terms: Terms) -> Tensor:
    return torch.stack([weight * term for weight, term in terms.values()]).sum()


def _select_parameters(model: TiTok, trainable: str) -> None:
    for name, parameter in model.named_parameters():
        if trainable == "temporal":
            parameter.requires_grad_("temporal" in name)
        elif trainable == "decoder":
            parameter.requires_grad_(name.startswith(DECODER_PREFIXES))


def _classifier(config: VaeTrainConfig) -> nn.Sequential:
    """Latents [N, c, 1, K] -> class logits; empty without the `classes` term."""
    if not config.loss.classes:
        return nn.Sequential()
    size = config.model.token_size * config.model.num_latent_tokens
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, CLASSIFIER_WIDTH), nn.GELU(), nn.Linear(CLASSIFIER_WIDTH, MAX_CLASSES)
    )


def _set_memory_format(model: TiTok, memory_format: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _noise(z: Tensor, clips: int, seed: int, samples: Sequence[int], draw: int) -> Tensor:
    """Standard normal like z [clips·frames, ...]; that of a clip depends on (seed, sample id, draw) alone."""
    keys = noise_keys(seed, [n % 2**32 for n in samples], draw, Purpose.TRAIN, [n // 2**32 for n in samples])
    return philox_normal(keys.to(z.device), z.numel() // clips).reshape(z.shape).to(z.dtype)
