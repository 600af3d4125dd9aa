# SPDX-License-Identifier: Apache-2.0
"""Stage 2: trains the AR-Diffusion transformer on latents, every frame of a clip at its own timestep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from ardiff_engine.data.choice import uniform
from ardiff_engine.data.encoded_clips import CachedClips, EncodedClips, LatentSource
from ardiff_engine.data.latent_files import LatentFiles
from ardiff_engine.data.sources import clip_source
from ardiff_engine.device import usable_device
from ardiff_engine.diffusion.noise import noise_keys
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.errors import ConfigError, DataError, explain
from ardiff_engine.files import write_atomic
from ardiff_engine.models import ARDiffusionTransformer, TiTok, check_cells, regroup
from ardiff_engine.ops import add_noise
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.config import ScheduleConfig, TrainConfig
from ardiff_engine.training.ema import Ema
from ardiff_engine.training.loop import TrainingLoop, exported_at_the_end
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.processes import average_gradients, join, world_size
from ardiff_engine.training.read_config import read_config, to_dict
from ardiff_engine.training.timesteps import is_teacher_forced, teacher_timesteps, training_timesteps
from ardiff_engine.training.vae_trainer import sample_ids
from ardiff_engine.weights import load_ar_diffusion, load_titok, save_model
from ardiff_engine.weights.scheduler_file import write_schedule

CACHE_FILE = "encoded_clips.safetensors"
VALIDATION_SEED = 1


class Trainer:
    """One optimizer step of stage 2: L = mean (target - network(noisy, t, context))² over frames, tokens and
    channels.

    The trained context table is part of the model and of the optimizer. Whatever a step draws depends on
    (seed, sample id).
    """

    def __init__(self, config: TrainConfig) -> None:
        run = config.run
        usable_device(run.device)
        join(run.device)
        if run.threads:
            torch.set_num_threads(run.threads)
        torch.manual_seed(run.seed)
        self.config = config
        model = (
            load_ar_diffusion(config.init, config.model)
            if config.init
            else ARDiffusionTransformer(config.model)
        )
        self.model = model.to(run.device)
        self.vae = load_titok(config.vae).to(run.device).requires_grad_(False) if config.vae else None
        self._check_sizes()
        self.schedule = noise_schedule(config.schedule)
        self.optimizer = Optimizer(self.model, config.optimizer, run.steps)
        self.ema = Ema(self.model, config.ema.decay) if config.ema.decay else None
        self.loop = TrainingLoop(
            run, {"model": self.model}, {"model": self.optimizer}, self.ema, to_dict(config)
        )
        self.source = self._source()

    def train(self, *, resume: bool = False) -> Path:
        """All steps; returns the run's folder, which then also is a pipeline folder with the averaged
        weights.

        Raises Stopped after SIGINT or SIGTERM; the folder then holds the model as far as it came.
        """
        with exported_at_the_end(lambda: self.export(self.loop.folder)):
            self.loop.run(self.step, self.validate, resume=resume)
        return self.loop.folder

    def step(self, step: int) -> dict[str, float]:
        run = self.config.run
        total = 0.0
        self.model.train()
        for micro in range(run.accumulate):
            samples = sample_ids(step, micro, run.batch, run.accumulate)
            teach = is_teacher_forced(step * run.accumulate + micro, self.config.loss, run.seed)
            loss = (self.teacher_loss if teach else self.loss)(self.source, samples, run.seed)
            (loss / run.accumulate).backward()
            total += float(loss.detach()) / run.accumulate
        average_gradients(self.optimizer.parameters.values())
        norm = self.optimizer.update(step)
        return {"loss": total, "gradient_norm": norm, "lr": self.optimizer.lr(step)}

    def loss(self, source: LatentSource, samples: Sequence[int], seed: int) -> Tensor:
        """Scalar loss of the clips with these sample ids."""
        config = self.config
        x0, classes = source.latents(samples)
        x0 = regroup(x0, config.model.tokens_per_frame).to(config.run.device)
        t = training_timesteps(samples, x0.shape[1], self.schedule.num_timesteps, config.loss, seed)
        noisy, target = self._noise(x0, t, samples, Purpose.TRAIN, seed)
        output = self.model.forward_clip(noisy, t.to(x0.device), self._context(samples, classes, seed))
        return (output - target).square().mean()

    def teacher_loss(self, source: LatentSource, samples: Sequence[int], seed: int) -> Tensor:
        """The same with every frame predicted from clean frames before it (teacher forcing)."""
        config = self.config
        x0, classes = source.latents(samples)
        x0 = regroup(x0, config.model.tokens_per_frame).to(config.run.device)
        t, history_t = teacher_timesteps(samples, x0.shape[1], self.schedule.num_timesteps, seed)
        noisy, target = self._noise(x0, t, samples, Purpose.TRAIN, seed)
        history, _ = self._noise(x0[:, :-1], history_t, samples, Purpose.HISTORY, seed)
        context = self._context(samples, classes, seed)
        device = x0.device
        output = self.model.forward_clip(noisy, t.to(device), context, history, history_t.to(device))
        return (output - target).square().mean()

    def _noise(
        self, x0: Tensor, t: Tensor, samples: Sequence[int], purpose: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """(noisy frames, what the network is to say), both like x0 [B, F, L, C], at timesteps t [B, F]."""
        clips, frames = x0.shape[:2]
        streams = [sample % 2**32 for sample in samples for _ in range(frames)]
        steps = [sample // 2**32 for sample in samples for _ in range(frames)]
        keys = noise_keys(seed, streams, list(range(frames)) * clips, purpose, steps).to(x0.device)
        level = t.reshape(-1)
        noised = add_noise(
            x0.flatten(0, 1),
            self.schedule.signal(level).float().to(x0.device),
            self.schedule.sigma(level).float().to(x0.device),
            keys=keys,
            target=self.config.loss.prediction,
        )
        target = x0 if noised.target is None else noised.target.reshape(x0.shape)
        return noised.noisy.reshape(x0.shape), target

    def validate(self) -> dict[str, float]:
        """The loss on held-out clips, with the same clips, timesteps and noise every time."""
        run = self.config.run
        self.model.eval()
        source = self.source.held_out()
        batches = [
            range(index * run.batch, (index + 1) * run.batch) for index in range(run.validation_batches)
        ]
        seed = run.seed + VALIDATION_SEED
        kinds = {"loss": self.loss}
        if self.config.loss.teacher_forcing:
            kinds["teacher_loss"] = self.teacher_loss
        return {
            name: sum(float(loss(source, samples, seed)) for samples in batches) / len(batches)
            for name, loss in kinds.items()
        }

    def export(self, folder: Path) -> None:
        """The pipeline folder: transformer (averaged weights), vae, scheduler.json, training_config.json."""
        if self.ema is not None:
            self.ema.exchange(self.model)
        try:
            save_model(self.model, folder / "transformer")
        finally:
            if self.ema is not None:
                self.ema.exchange(self.model)
        if self.vae is not None:
            save_model(self.vae, folder / "vae")
        write_schedule(folder / "scheduler.json", self.schedule, self.config.loss.prediction)
        text = json.dumps(to_dict(self.config), indent=2)
        write_atomic(folder / "training_config.json", f"{text}\n".encode())

    def _context(self, samples: Sequence[int], classes: Tensor | None, seed: int) -> Tensor:
        """Context of each clip; with probability `null_probability` that of "no condition"."""
        probability = self.config.loss.null_probability
        null = torch.tensor([uniform(seed, Purpose.NULL, sample, 1)[0] < probability for sample in samples])
        if self.config.model.num_classes is None:
            context = self.model.context(None, len(samples))
        elif classes is None:
            raise DataError(
                explain(
                    "model.num_classes",
                    got=f"{self.config.model.num_classes}, and data without classes",
                    expected="a class for every clip",
                    fix="Name latent files ..._classid<n>_.npy (`ardiff encode` does so for videos named "
                    "..._classid<n>), or leave model.num_classes out.",
                )
            )
        else:
            context = self.model.context(classes.to(self.config.run.device))
        return torch.where(
            null.to(context.device)[:, None, None], self.model.null_context(len(samples)), context
        )

    def _source(self) -> LatentSource:
        config, data = self.config, self.config.data
        if data.source == "latents":
            files = LatentFiles(data.path, data.num_frames, data.held_out, seed=config.run.seed)
            model = config.model
            check_cells("model", (model.tokens_per_frame, model.channels), files.cell)
            return files
        vae = _required(self.vae)
        if not data.clips:
            return EncodedClips(clip_source(data, vae.config.image_size, config.run.seed), vae)
        long_clips = replace(data, num_frames=data.clip_frames)
        settings = json.dumps([data.clip_frames, data.source, data.path, asdict(data.digits)])
        return CachedClips(
            EncodedClips(clip_source(long_clips, vae.config.image_size, config.run.seed), vae),
            data.clips,
            data.num_frames,
            config.run.seed,
            self.loop.folder / CACHE_FILE if world_size() == 1 else None,
            settings,
        )

    def _check_sizes(self) -> None:
        model = self.config.model
        if self.vae is None:
            return
        latents = (self.vae.config.num_latent_tokens, self.vae.config.token_size)
        check_cells("model", (model.tokens_per_frame, model.channels), latents)


def noise_schedule(config: ScheduleConfig) -> NoiseSchedule:
    if config.kind == "cosine":
        return NoiseSchedule.cosine(config.num_timesteps)
    build = NoiseSchedule.sqrt_linear if config.kind == "sqrt_linear" else NoiseSchedule.linear
    return build(config.beta_start, config.beta_end, config.num_timesteps)


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Trains stage 2 and returns the pipeline folder."""
    return Trainer(config).train(resume=resume)


def run_train(config_path: str | Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """`train` with a TOML file and `section.name=value` overrides."""
    return train(read_config(TrainConfig, config_path, overrides), resume=resume)


def _required(vae: TiTok | None) -> TiTok:
    if vae is None:
        raise ConfigError(explain("vae", got="nothing", expected="a folder of stage 1", fix="Set `vae`."))
    return vae
