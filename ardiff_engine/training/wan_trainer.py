# SPDX-License-Identifier: Apache-2.0
"""Stage 2 of Wan transformers that are trained from nothing: text, an action for every frame, flow matching.

Every block of frames stands at a noise level of its own. A share of the clips is teacher-forced: each block
is predicted from clean blocks before it, as it is when the engine makes a video block by block.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ardiff_engine.conditions.captions import CaptionEncoder, CaptionEncoderConfig
from ardiff_engine.data.choice import uniform
from ardiff_engine.data.moving_shapes import ACTIONS
from ardiff_engine.data.steered_clips import SteeredShapes
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.errors import ConfigError
from ardiff_engine.files import write_atomic
from ardiff_engine.models.frame_vae import SCALE, FrameVAE
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.models.wan.video import ACTIONS as ACTIONS_INPUT
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.averages import Averages
from ardiff_engine.training.config import (
    DataConfig,
    DiffusionLossConfig,
    EmaConfig,
    OptimizerConfig,
    RunConfig,
)
from ardiff_engine.training.distillation import DistillationConfig, teacher_folder
from ardiff_engine.training.dry_run import check_room
from ardiff_engine.training.ema import Ema
from ardiff_engine.training.loop import TrainingLoop, exported_at_the_end
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.precision import autocast, recompute_blocks, weights_dtype
from ardiff_engine.training.processes import enter, rank, world_size
from ardiff_engine.training.read_config import to_dict
from ardiff_engine.training.recipe import Cast, find_recipe, run_step
from ardiff_engine.weights import load_model, save_model

VALIDATION_SEED = 1
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the noisiest level."""


@dataclass(frozen=True, slots=True)
class WanTrainConfig:
    """`ardiff train` with network = "wan".

    vae: a folder of `ardiff train-vae` with autoencoder = "frame_vae". shift: of the flow's noise levels.
    init: a folder of an earlier run, whose weights it begins with. `loss.prediction` is "flow".
    """

    network: str
    run: RunConfig
    vae: str
    model: WanConfig
    text: CaptionEncoderConfig = field(default_factory=CaptionEncoderConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(source="moving_shapes"))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: DiffusionLossConfig = field(default_factory=lambda: DiffusionLossConfig(prediction="flow"))
    ema: EmaConfig = field(default_factory=EmaConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    shift: float = 1.0
    init: str = ""

    def __post_init__(self) -> None:
        if self.data.source != "moving_shapes":
            raise ConfigError(
                f"data.source: got {self.data.source!r}, expected 'moving_shapes': Wan transformers are "
                "trained on clips with captions."
            )
        if self.loss.prediction != "flow":
            raise ConfigError(f"loss.prediction: got {self.loss.prediction!r}, expected 'flow'.")
        if (self.model.text_dim, self.model.text_tokens) != (self.text.width, self.text.tokens):
            raise ConfigError(
                f"model.text_dim, model.text_tokens: got {self.model.text_dim}, {self.model.text_tokens}, "
                f"expected those of [text], {self.text.width}, {self.text.tokens}."
            )
        if self.model.actions != len(ACTIONS) - 1 or self.model.image_dim or self.model.fps_embedding:
            raise ConfigError(
                f"model: got actions {self.model.actions}, image_dim {self.model.image_dim}, fps_embedding "
                f"{self.model.fps_embedding}; expected {len(ACTIONS) - 1} actions and neither of the others."
            )
        if self.data.num_frames % self.loss.block:
            raise ConfigError(
                f"data.num_frames: got {self.data.num_frames}, expected whole blocks of loss.block, "
                f"{self.loss.block}."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """The condition of B clips: text [B, rows, width], actions [B, F, numbers]."""

    text: Tensor
    actions: Tensor

    def __getitem__(self, rows: Tensor) -> Steering:
        return Steering(self.text[rows], self.actions[rows])


class WanTrainer:
    """One optimizer step: the mean of the objective over its clips (`training.objective`)."""

    def __init__(self, config: WanTrainConfig) -> None:
        run = enter(config.run)
        self.config = config = replace(config, run=run)
        check_room(lambda: WanTransformer(config.model), run, averaged=config.ema.decay > 0)
        self.vae = _frame_vae(config).to(run.device)
        self.model = WanTransformer(config.model)
        _initialise(self.model)
        self.text = CaptionEncoder(config.text)
        if folder := config.init or config.distillation.teacher:
            self._begin(Path(folder))
        both = nn.ModuleDict({"transformer": self.model, "text": self.text})
        self.both = both.to(run.device, weights_dtype(run))
        if run.recompute:
            recompute_blocks(self.model)
        self.schedule = FlowSchedule(config.shift)
        self.denoising = self._task(self.model)
        self.optimizer = Optimizer(self.both, config.optimizer, run.steps)
        self.ema = Ema(self.both, config.ema.decay) if config.ema.decay else None
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
            {"model": self.both, **self.recipe.networks},
            {"model": self.optimizer, **self.recipe.optimizers},
            self.ema,
            config,
        )
        self.source = SteeredShapes(config.data.shapes, self.vae, config.data.num_frames)

    def train(self, *, resume: bool = False) -> Path:
        """All steps; returns the run's folder, which then is a folder of a steered model too, with the
        averaged weights. Stopped after SIGINT or SIGTERM; the folder then holds it as far as it came."""
        with exported_at_the_end(lambda: self.export(self.loop.folder)):
            self.loop.run(self.step, self.validate, resume=resume)
        return self.loop.folder

    def step(self, step: int) -> dict[str, float]:
        """Means over this process's clips: of the loss, and of its parts where it has several."""
        run, null = self.config.run, self.config.loss.null_probability
        self.both.train()
        return run_step(
            self.recipe,
            self.loop.optimizers,
            run,
            step,
            lambda samples: self.clips(self.source, samples, run.seed, null),
        )

    def clips(self, source: SteeredShapes, samples: Sequence[int], seed: int, null: float) -> Clips:
        """The clips with these sample ids; a share `null` of them without caption."""
        device, dtype = self.model.device, self.model.dtype
        made = source.clips(samples)
        told = torch.tensor([uniform(seed, Purpose.NULL, sample, 1)[0] >= null for sample in samples])
        text = self.text(self.text.ids(made.captions).to(device)) * told.to(device)[:, None, None]
        steering = Steering(text, made.actions.to(device, dtype))
        empty = Steering(torch.zeros_like(text), steering.actions)
        return Clips(samples, made.latents.to(device, dtype), steering, seed, empty)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses of held-out clips at fixed noise levels, all frames of a clip at one, each block from clean
        ones before it. The same clips and noise every time."""
        run, averages = self.config.run, Averages()
        self.both.eval()
        source, seed = self.source.held_out(), run.seed + VALIDATION_SEED
        own = range(rank(), run.validation_clips, world_size())
        for first in range(0, len(own), run.batch):
            samples = own[first : first + run.batch]
            clips = self.clips(source, samples, seed, 0.0)
            for share in VALIDATION_LEVELS:
                levels = torch.full(clips.frames.shape[:2], round(share * (self.schedule.num_timesteps - 1)))
                clean, t, _ = self.denoising.noised(clips, torch.zeros_like(levels), Purpose.HISTORY)
                error = float(self.denoising.error(clips, levels, (clean, t)).sum())
                averages.add("loss", error, len(samples))
                averages.add(f"loss_at_{share}", error, len(samples))
        averages.gather()
        return averages.means()

    def export(self, folder: Path) -> None:
        """transformer/ and text_encoder/ (averaged weights), vae/, training_config.json."""
        if self.ema is not None:
            self.ema.exchange(self.both)
        try:
            save_model(self.model, folder / "transformer")
            save_model(self.text, folder / "text_encoder")
        finally:
            if self.ema is not None:
                self.ema.exchange(self.both)
        save_model(self.vae, folder / "vae")
        text = json.dumps(to_dict(self.config), indent=2)
        write_atomic(folder / "training_config.json", f"{text}\n".encode())

    def _task(self, network: nn.Module, *, whole: bool = False, held_history: bool = False) -> Denoising:
        assert isinstance(network, WanTransformer)
        block = (whole and self.config.distillation.teacher_block) or self.config.loss.block

        def predict(
            noisy: Tensor, t: Tensor, condition: Steering, history: Tensor | None, history_t: Tensor | None
        ) -> Tensor:
            with autocast(self.config.run):
                out = network.forward_clip(
                    noisy,
                    t.to(noisy.dtype),
                    condition.text,
                    block,
                    history=history,
                    history_t=None if history_t is None else history_t.to(noisy.dtype),
                    hold_history=held_history,
                    actions=condition.actions,
                )
            return out.to(noisy.dtype)

        return Denoising(predict, self.schedule, self.config.loss)

    def _teacher(self) -> WanTransformer:
        """ConfigError: one of other latents, texts or actions."""
        folder, own = teacher_folder(self.config.distillation), self.config.model
        teacher = load_model(folder)
        if not isinstance(teacher, WanTransformer) or _seen(teacher.config) != _seen(own):
            got = _seen(teacher.config) if isinstance(teacher, WanTransformer) else type(teacher).__name__
            raise ConfigError(
                f"distillation.teacher: {folder} has {got}, expected the student's channels, patch, text "
                f"and actions, {_seen(own)}."
            )
        return teacher.to(self.config.run.device, weights_dtype(self.config.run)).requires_grad_(False)

    def _begin(self, folder: Path) -> None:
        """With the weights of an earlier run. A student's captions are embedded as its teacher does, for
        good. ConfigError: a run of other sizes."""
        self.model.load_state_dict(_loaded(folder / "transformer", self.model, "model").state_dict())
        if teacher := self.config.distillation.teacher:
            folder = Path(teacher)
        self.text.load_state_dict(_loaded(folder / "text_encoder", self.text, "text").state_dict())
        self.text.requires_grad_(not teacher)

    def _asked(self, clips: Clips) -> list[dict[str, Any]]:
        size = tuple(clips.frames.shape[3:])
        return [
            {"condition": text.detach(), "frame_inputs": {ACTIONS_INPUT: actions}, "size": size}
            for text, actions in zip(clips.condition.text, clips.condition.actions, strict=True)
        ]


def _initialise(model: WanTransformer) -> None:
    """As DiT (Peebles and Xie 2023): what is added to the stream and the output begin at zero, so that a deep
    network learns from the first step on."""
    zeroed = (
        "modulation",
        "time_projection.1.weight",
        "time_projection.1.bias",
        "head.head.weight",
        "head.head.bias",
    )
    for name, parameter in model.named_parameters():
        if name.endswith(zeroed):
            nn.init.zeros_(parameter)


def _seen(config: WanConfig) -> tuple[object, ...]:
    return (config.channels, config.patch, config.text_dim, config.text_tokens, config.actions)


T = TypeVar("T", WanTransformer, CaptionEncoder)


def _loaded(folder: Path, own: T, section: str) -> T:
    found = load_model(folder)
    if not isinstance(found, type(own)) or found.config != own.config:
        got = found.config if isinstance(found, type(own)) else type(found).__name__
        raise ConfigError(f"{folder}: got {got}, expected [{section}], {own.config}.")
    return found


def _frame_vae(config: WanTrainConfig) -> FrameVAE:
    vae = load_model(config.vae)
    if not isinstance(vae, FrameVAE):
        raise ConfigError(f"vae: {config.vae} holds a {type(vae).__name__}, expected a frame_vae.")
    channels, side = vae.config.channels, vae.config.image_size // SCALE
    rows, columns = config.model.patch[1:]
    if (
        (config.model.channels, config.model.out_channels) != (channels, channels)
        or side % rows
        or side % columns
    ):
        raise ConfigError(
            f"model.channels, out_channels, patch: got {config.model.channels}, {config.model.out_channels}, "
            f"{config.model.patch}; expected those of latents [{channels}, {side}, {side}]."
        )
    if config.data.shapes.canvas != vae.config.image_size:
        raise ConfigError(
            f"data.shapes.canvas: got {config.data.shapes.canvas}, expected {vae.config.image_size}, as vae."
        )
    return vae.requires_grad_(False)
