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
from ardiff_engine.models import ARDiffusionTransformer, TiTok, check_cells, regroup
from ardiff_engine.pipeline import Pipeline
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.config import ScheduleConfig, TrainConfig
from ardiff_engine.training.diffusion_trainer import DiffusionTrainer, Judged
from ardiff_engine.training.distillation import teacher_folder
from ardiff_engine.training.dry_run import RunEstimate, check_room, dry_run
from ardiff_engine.training.earlier_run import earlier_run, token_autoencoder
from ardiff_engine.training.loop import begun
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.precision import autocast, weights_dtype
from ardiff_engine.training.processes import enter, world_size
from ardiff_engine.training.read_config import read_config, read_values
from ardiff_engine.training.wan_trainer import WanTrainConfig, WanTrainer
from ardiff_engine.weights import load_ar_diffusion, save_model
from ardiff_engine.weights.scheduler_file import write_schedule

CACHE_FILE = "encoded_clips.safetensors"


class Trainer(DiffusionTrainer[TrainConfig, ARDiffusionTransformer, LatentSource]):
    """The trained context table is part of the model and of the optimizer."""

    def __init__(self, config: TrainConfig) -> None:
        run = enter(config.run)
        self.config = config = replace(config, run=run)
        sizes = config.model
        kept = config.data.num_frames * sizes.tokens_per_frame * sizes.width * sizes.depth
        check_room(lambda: ARDiffusionTransformer(sizes), run, averaged=config.ema.decay > 0, kept=kept)
        self.model = (
            load_ar_diffusion(_weights(earlier_run("init", config.init)), config.model)
            if config.init and not begun(run)
            else ARDiffusionTransformer(config.model)
        )
        self.vae = token_autoencoder(config.vae).to(run.device).requires_grad_(False) if config.vae else None
        self._check_sizes()
        if config.distillation.teacher:
            self._follow(self._teacher())
        judged = [Judged("loss", from_clean=False, by_level=True)]
        if config.loss.teacher_forcing:
            judged.append(Judged("teacher_loss", from_clean=True, by_level=False))
        self.noise_schedule = noise_schedule(config.schedule)
        super().__init__(config, self.model, self.model, self.noise_schedule, judged)
        if self.recipe.from_history:
            config.check_history()
        self.source = self._source()

    def clips(self, source: LatentSource, samples: Sequence[int], seed: int, null: float) -> Clips:
        x0, classes = source.latents(samples)
        x0 = regroup(x0, self.config.model.tokens_per_frame).to(self.model.device, self.model.dtype)
        context = self._context(samples, classes, seed, null)
        return Clips(samples, x0, context, seed, self.model.null_context(len(samples)))

    def _exported(self) -> dict[str, nn.Module]:
        return {"transformer": self.model}

    def _samples(self, count: int, steps: int) -> tuple[list[Tensor], list[Tensor]]:
        tokens, classes = self.source.held_out().latents(range(count))
        pipe = Pipeline(self.model, _required(self.vae), self.noise_schedule, self.config.loss.prediction)
        clean = regroup(tokens, self.config.model.tokens_per_frame)
        made = pipe(
            clean.shape[1],
            steps,
            min(5, steps),
            num_videos=count,
            seed=self.config.run.seed,
            class_id=None if classes is None or self.config.model.num_classes is None else classes.tolist(),
            progress=False,
        )
        return [pipe.decode(clip) for clip in clean], list(made.frames)

    def _save_more(self, folder: Path) -> None:
        if self.vae is not None:
            save_model(self.vae, folder / "vae")
        write_schedule(folder / "scheduler.json", self.noise_schedule, self.config.loss.prediction)

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
        settings = json.dumps([data.clip_frames, data.source, asdict(data.digits), asdict(data.shapes)])
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
    if "network" in read_values(config_path, overrides):
        return WanTrainer(read_config(WanTrainConfig, config_path, overrides))
    return Trainer(read_config(TrainConfig, config_path, overrides))


def run_train(config_path: str | Path, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """`train` with a TOML file and `section.name=value` overrides."""
    return trainer_of(config_path, overrides).train(resume=resume)


def dry_run_train(config_path: str | Path, overrides: Sequence[str] = ()) -> RunEstimate:
    """What that takes. Clips are encoded when they are asked for, and the latents of none are kept."""
    return dry_run(trainer_of(config_path, [*overrides, "data.clips=0"]))


def _weights(init: Path) -> Path:
    """init: a folder or file of weights, or the folder of a run."""
    return init / "transformer" if (init / "transformer").is_dir() else init


def _required(vae: TiTok | None) -> TiTok:
    if vae is None:
        raise ConfigError(explain("vae", got="nothing", expected="a folder of stage 1", fix="Set `vae`."))
    return vae
