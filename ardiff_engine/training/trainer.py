# SPDX-License-Identifier: Apache-2.0
"""Stage 2: trains the AR-Diffusion transformer on latents, every frame of a clip at its own timestep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ardiff_engine.data.choice import uniform
from ardiff_engine.data.encoded_clips import CachedClips, EncodedClips, LatentSource
from ardiff_engine.data.latent_files import LatentFiles
from ardiff_engine.data.sources import clip_source
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.errors import ConfigError, DataError, explain
from ardiff_engine.files import write_atomic
from ardiff_engine.models import ARDiffusionTransformer, TiTok, check_cells, regroup
from ardiff_engine.parsing import read_toml
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.averages import Averages
from ardiff_engine.training.config import ScheduleConfig, TrainConfig
from ardiff_engine.training.distillation import teacher_folder
from ardiff_engine.training.dry_run import RunEstimate, check_room, dry_run
from ardiff_engine.training.ema import Ema
from ardiff_engine.training.loop import TrainingLoop, exported_at_the_end
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.precision import autocast, recompute_blocks, weights_dtype
from ardiff_engine.training.processes import enter, rank, world_size
from ardiff_engine.training.read_config import read_config, to_dict
from ardiff_engine.training.recipe import Cast, find_recipe, run_step
from ardiff_engine.training.wan_trainer import WanTrainConfig, WanTrainer
from ardiff_engine.weights import load_ar_diffusion, load_titok, save_model
from ardiff_engine.weights.scheduler_file import write_schedule

CACHE_FILE = "encoded_clips.safetensors"
VALIDATION_SEED = 1
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the noisiest level."""


class Trainer:
    """One optimizer step of stage 2: the mean of the objective over its clips (`training.objective`).

    The trained context table is part of the model and of the optimizer. Whatever a step draws depends on
    (seed, sample id).
    """

    def __init__(self, config: TrainConfig) -> None:
        run = enter(config.run)
        self.config = config = replace(config, run=run)
        check_room(lambda: ARDiffusionTransformer(config.model), run, averaged=config.ema.decay > 0)
        model = (
            load_ar_diffusion(config.init, config.model)
            if config.init
            else ARDiffusionTransformer(config.model)
        )
        self.model = model.to(run.device, weights_dtype(run))
        if run.recompute:
            recompute_blocks(self.model)
        self.vae = load_titok(config.vae).to(run.device).requires_grad_(False) if config.vae else None
        self._check_sizes()
        self.schedule = noise_schedule(config.schedule)
        if config.distillation.teacher:
            self._follow(self._teacher())
        self.denoising = self._task(self.model)
        self.optimizer = Optimizer(self.model, config.optimizer, run.steps)
        self.ema = Ema(self.model, config.ema.decay) if config.ema.decay else None
        self.recipe = find_recipe(
            config.loss.objective,
            Cast(
                self.model,
                self._task,
                self._teacher,
                self._asked,
                config.distillation,
                config.optimizer,
                run,
            ),
        )
        self.loop = TrainingLoop(
            run,
            {"model": self.model, **self.recipe.networks},
            {"model": self.optimizer, **self.recipe.optimizers},
            self.ema,
            config,
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
        """Means over this process's clips: of the loss, and of its parts where it has several."""
        run = self.config.run
        self.model.train()
        return run_step(
            self.recipe,
            self.loop.optimizers,
            run,
            step,
            lambda samples: self.clips(self.source, samples, run.seed),
        )

    def clips(
        self, source: LatentSource, samples: Sequence[int], seed: int, *, always_conditioned: bool = False
    ) -> Clips:
        """The clips with these sample ids, and their contexts: with probability `null_probability` that of
        "no condition"."""
        x0, classes = source.latents(samples)
        x0 = regroup(x0, self.config.model.tokens_per_frame).to(self.model.device, self.model.dtype)
        null = 0.0 if always_conditioned else self.config.loss.null_probability
        context = self._context(samples, classes, seed, null)
        return Clips(samples, x0, context, seed, self.model.null_context(len(samples)))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of held-out clips at fixed noise levels, all frames of a clip at one, and their mean; with
        teacher forcing in the run, also from clean frames before each.

        The same clips and noise every time; neither the rule of training nor the batch size counts.
        """
        run, averages = self.config.run, Averages()
        self.model.eval()
        source, seed = self.source.held_out(), run.seed + VALIDATION_SEED
        own = range(rank(), run.validation_clips, world_size())
        for first in range(0, len(own), run.batch):
            samples = own[first : first + run.batch]
            clips = self.clips(source, samples, seed, always_conditioned=True)
            for share in VALIDATION_LEVELS:
                level = round(share * (self.schedule.num_timesteps - 1))
                levels = torch.full(clips.frames.shape[:2], level)
                error = float(self.denoising.error(clips, levels).sum())
                averages.add("loss", error, len(samples))
                averages.add(f"loss_at_{share}", error, len(samples))
                if self.config.loss.teacher_forcing:
                    clean, t, _ = self.denoising.noised(clips, torch.zeros_like(levels), Purpose.HISTORY)
                    error = float(self.denoising.error(clips, levels, (clean, t)).sum())
                    averages.add("teacher_loss", error, len(samples))
        averages.gather()
        return averages.means()

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

    def _task(self, network: nn.Module, *, whole: bool = False, held_history: bool = False) -> Denoising:
        """Whether a network of this kind sees whole clips is said by its mask."""
        assert isinstance(network, ARDiffusionTransformer)

        def predict(
            noisy: Tensor, t: Tensor, context: Tensor, history: Tensor | None, history_t: Tensor | None
        ) -> Tensor:
            # No frame sees the last one of the history, and this network does not take it.
            past = () if history is None or history_t is None else (history[:, :-1], history_t[:, :-1])
            with autocast(self.config.run):
                return network.forward_clip(noisy, t, context, *past).to(noisy.dtype)

        return Denoising(predict, self.schedule, self.config.loss)

    def _teacher(self) -> ARDiffusionTransformer:
        """ConfigError: one of other frames or conditions."""
        teacher = load_ar_diffusion(teacher_folder(self.config.distillation))
        own, other = self.model.spec, teacher.spec
        expected = (own.tokens_per_frame, own.channels, own.condition.shape, self.config.model.num_classes)
        got = (other.tokens_per_frame, other.channels, other.condition.shape, teacher.config.num_classes)
        if got != expected:
            raise ConfigError(
                f"distillation.teacher: got tokens of a frame, channels, conditions and classes {got}, "
                f"expected the student's {expected}."
            )
        return teacher.to(self.config.run.device, weights_dtype(self.config.run)).requires_grad_(False)

    def _follow(self, teacher: ARDiffusionTransformer) -> None:
        """Begin with the teacher's weights, unless there are others; keep its conditions.

        ConfigError: a student of another size, without weights of its own.
        """
        if not self.config.init:
            if teacher.config != self.config.model:
                raise ConfigError(
                    f"distillation.teacher: got {teacher.config}, expected [model], {self.config.model}. "
                    "Set `init` to the weights that a student of another size begins with."
                )
            self.model.load_state_dict(teacher.state_dict())
        with torch.no_grad():
            self.model.context_embedding.copy_(teacher.context_embedding)
        self.model.context_embedding.requires_grad_(False)

    def _asked(self, clips: Clips) -> list[dict[str, Any]]:
        return [{"condition": context.detach()} for context in clips.condition]

    def _context(
        self, samples: Sequence[int], classes: Tensor | None, seed: int, probability: float
    ) -> Tensor:
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


def trainer_of(config_path: str | Path, overrides: Sequence[str] = ()) -> Trainer | WanTrainer:
    """From a TOML file and `section.name=value` overrides. `network = "wan"` in it: see
    `training.wan_trainer`."""
    if read_toml(Path(config_path), ConfigError).get("network") == "wan":
        return WanTrainer(read_config(WanTrainConfig, config_path, overrides))
    return Trainer(read_config(TrainConfig, config_path, overrides))


def run_train(config_path: str | Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """`train` with a TOML file and `section.name=value` overrides."""
    return trainer_of(config_path, overrides).train(resume=resume)


def dry_run_train(config_path: str | Path, overrides: Sequence[str] = ()) -> RunEstimate:
    """What that takes. Clips are encoded when they are asked for, and the latents of none are kept."""
    return dry_run(trainer_of(config_path, [*overrides, "data.clips=0"]))


def _required(vae: TiTok | None) -> TiTok:
    if vae is None:
        raise ConfigError(explain("vae", got="nothing", expected="a folder of stage 1", fix="Set `vae`."))
    return vae
