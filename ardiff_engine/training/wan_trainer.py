# SPDX-License-Identifier: Apache-2.0
"""Stage 2 of Wan transformers that are trained from nothing: text, an action for every frame, flow matching.

Every block of frames stands at a noise level of its own. A share of the clips is teacher-forced: each block
is predicted from clean blocks before it, as it is when the engine makes a video block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ardiff_engine.conditions.captions import CaptionEncoder, CaptionEncoderConfig
from ardiff_engine.data.buckets import Bucket, check_sizes
from ardiff_engine.data.captioned_videos import CaptionedVideos
from ardiff_engine.data.choice import uniform
from ardiff_engine.data.config import DataConfig
from ardiff_engine.data.moving_shapes import ACTIONS
from ardiff_engine.data.sources import video_folder
from ardiff_engine.data.steered_clips import SteeredShapes
from ardiff_engine.data.stored_shapes import StoredShapes
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.errors import ConfigError
from ardiff_engine.models.frame_vae import SCALE, FrameVAE
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.models.wan.places import place_channels, with_places
from ardiff_engine.models.wan.video import ACTIONS as ACTIONS_INPUT
from ardiff_engine.models.wan.video import PICTURES
from ardiff_engine.pipeline.steered import SteeredPipeline, rhythm_of, write_captions
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.config import DiffusionLossConfig, EmaConfig, OptimizerConfig, RunConfig
from ardiff_engine.training.diffusion_trainer import DiffusionTrainer, Judged
from ardiff_engine.training.distillation import DistillationConfig, teacher_folder
from ardiff_engine.training.dry_run import check_room
from ardiff_engine.training.earlier_run import earlier_run
from ardiff_engine.training.log_config import LogConfig
from ardiff_engine.training.loop import begun
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.precision import autocast, weights_dtype
from ardiff_engine.training.processes import enter, rank, step_clips, together
from ardiff_engine.training.read_config import to_dict
from ardiff_engine.weights import load_model, save_model


@dataclass(frozen=True, slots=True)
class WanTrainConfig:
    """`ardiff train` with network = "wan".

    vae: a folder of `ardiff train-vae` with autoencoder = "frame_vae". shift: of the flow's noise levels.
    init: a folder of an earlier run, whose weights it begins with. `loss.prediction` is "flow".
    guidance: scale that its videos are made with where nothing else is asked.
    solver: of their steps, "euler", or "renoise": fresh noise after each, for models that know few levels.
    """

    network: Literal["wan"]
    run: RunConfig
    vae: str
    model: WanConfig
    text: CaptionEncoderConfig = field(default_factory=CaptionEncoderConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(source="moving_shapes"))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: DiffusionLossConfig = field(default_factory=lambda: DiffusionLossConfig(prediction="flow"))
    ema: EmaConfig = field(default_factory=EmaConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    shift: float = 1.0
    init: str = ""
    guidance: float = 1.0
    solver: Literal["euler", "renoise"] = "euler"

    def __post_init__(self) -> None:
        if self.data.source not in ("moving_shapes", "videos"):
            raise ConfigError(
                f"data.source: got {self.data.source!r}, expected 'moving_shapes' or 'videos': a Wan "
                "transformer learns from clips with captions, which latent files do not hold. Set it to "
                "'videos' and data.path to their folder; say a class in words in each video's .txt file."
            )
        if self.data.beginnings < 1 and self.loss.objective != "own_history":
            raise ConfigError(
                f"data.beginnings: got {self.data.beginnings} with loss.objective {self.loss.objective!r}, "
                "expected 1: 'own_history' alone leaves out first blocks that the caption does not tell. "
                "Leave it out."
            )
        if self.loss.prediction != "flow":
            raise ConfigError(f"loss.prediction: got {self.loss.prediction!r}, expected 'flow'.")
        if not 0 < self.guidance <= 100:
            raise ConfigError(f"guidance: got {self.guidance}, expected a number above 0, at most 100.")
        self.loss.check_levels(FlowSchedule(self.shift).num_timesteps)
        if (self.model.text_dim, self.model.text_tokens) != (self.text.width, self.text.rows):
            raise ConfigError(
                f"model.text_dim, model.text_tokens: got {self.model.text_dim}, {self.model.text_tokens}, "
                f"expected those of [text], {self.text.width}, {self.text.rows}."
            )
        keys = self.model.actions in (None, len(ACTIONS) - 1)
        if not keys or self.model.image_dim or self.model.fps_embedding:
            raise ConfigError(
                f"model: got actions {self.model.actions}, image_dim {self.model.image_dim}, fps_embedding "
                f"{self.model.fps_embedding}; expected {len(ACTIONS) - 1} actions or none, and neither "
                "of the others."
            )
        buckets = self.data.shapes_of_clips
        check_sizes(buckets, SCALE * self.model.patch[1], SCALE * self.model.patch[2])
        for frames in [bucket.frames for bucket in buckets] or [self.data.num_frames]:
            if frames % self.loss.block:
                raise ConfigError(
                    f"data.num_frames, data.buckets: got clips of {frames} frames, expected whole blocks of "
                    f"loss.block, {self.loss.block}."
                )


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """The condition of B clips: text [B, rows, width], actions [B, F, numbers] for models that take them.
    begins, bool [B]: the text says what is seen from the first frame on, and not what began before it."""

    text: Tensor
    actions: Tensor | None
    begins: Tensor

    def __getitem__(self, rows: Tensor) -> Steering:
        actions = None if self.actions is None else self.actions[rows]
        return Steering(self.text[rows], actions, self.begins[rows])

    def first(self, frames: int) -> Steering:
        """Of clips that are cut to their first frames."""
        return self if self.actions is None else replace(self, actions=self.actions[:, :frames])


Source = SteeredShapes | StoredShapes | CaptionedVideos
STORED_FILE = "encoded_clips.safetensors"


class Steered(nn.Module):
    """What is trained together."""

    def __init__(self, transformer: WanTransformer, text: CaptionEncoder) -> None:
        super().__init__()
        self.transformer, self.text = transformer, text


class WanTrainer(DiffusionTrainer[WanTrainConfig, WanTransformer, Source]):
    """Captions and the transformer are trained together."""

    def __init__(self, config: WanTrainConfig) -> None:
        run = enter(config.run)
        self.config = config = replace(config, run=run)
        self.vae = _frame_vae(config).to(run.device)
        averaged, kept = config.ema.decay > 0, _kept(config, self.vae.config.image_size)
        check_room(lambda: WanTransformer(config.model), run, averaged=averaged, kept=kept)
        self.model = WanTransformer(config.model)
        _initialise(self.model)
        self.text = CaptionEncoder(config.text)
        teacher = config.distillation.teacher
        if (folder := config.init or teacher) and not begun(run):
            self._begin(earlier_run("init" if config.init else "distillation.teacher", folder))
        self.text.requires_grad_(not teacher)
        judged = [Judged("loss", from_clean=True, by_level=True)]
        both = Steered(self.model, self.text)
        super().__init__(config, self.model, both, FlowSchedule(config.shift), judged)
        self.source = self._source()

    def clips(self, source: Source, samples: Sequence[int], seed: int, null: float) -> Clips:
        device, dtype = self.model.device, self.model.dtype
        made = source.clips(samples)
        told = torch.tensor([uniform(seed, Purpose.NULL, sample, 1)[0] >= null for sample in samples])
        text = self.text(self.text.ids(made.captions).to(device)) * told.to(device)[:, None, None]
        takes = self.config.model.actions is not None
        actions = made.actions.to(device, dtype) if takes else None
        steering = Steering(text, actions, made.begins.to(device))
        empty = replace(steering, text=torch.zeros_like(text))
        return Clips(samples, made.latents.to(device, dtype), steering, seed, empty)

    def _source(self) -> Source:
        """DataError, ConfigError: captions that are too long, or no text."""
        data, run = self.config.data, self.config.run
        if data.source == "moving_shapes":
            if not data.clips:
                return SteeredShapes(data.shapes, self.vae, data.num_frames)
            # One process encodes and writes, and the others read.
            first = together(lambda: None if rank() else self._stored(), run.device)
            return self._stored() if first is None else first
        clips = step_clips(run.batch, run.accumulate)
        videos = video_folder(data, self.vae.config.image_size, run.seed, clips)
        source = CaptionedVideos(videos, self.vae)
        for part in (source, source.held_out()):
            self.text.ids(part.captions)
        return source

    def _stored(self) -> StoredShapes:
        data, run = self.config.data, self.config.run
        whole = SteeredShapes(data.shapes, self.vae, data.clip_frames)
        path = Path(self.config.vae) / STORED_FILE
        return StoredShapes(whole, data.clips, data.num_frames, run.seed, path, data.beginnings)

    def _exported(self) -> dict[str, nn.Module]:
        return {"transformer": self.model, "text_encoder": self.text}

    def _samples(self, count: int, steps: int) -> tuple[list[Tensor], list[Tensor]]:
        config = self.config
        source, rhythm = self.source.held_out(), rhythm_of(to_dict(config))
        pipe = SteeredPipeline(self.model, self.text, self.vae, rhythm)
        shown, made = [], []
        for number in range(count):
            clip = source.clips([number])
            shown.append(self._pixels(clip.latents[0]))
            held = [int(row.argmax()) + 1 if row.any() else 0 for row in clip.actions[0]]
            frames = pipe.stream(
                clip.captions[0],
                len(held),
                action=held.__getitem__ if pipe.steered else None,
                steps=steps,
                seed=config.run.seed + number,
                size=(shown[-1].shape[1], shown[-1].shape[2]),
            )
            made.append(torch.stack([frame.image for frame in frames]))
        return shown, made

    def _pixels(self, latents: Tensor) -> Tensor:
        """[F, C, h, w] -> uint8 [F, H, W, 3]."""
        images = self.vae.images(latents.to(self.vae.mean)).clamp(0, 1)
        return (images.movedim(1, -1) * 255).round().to("cpu", torch.uint8)

    def _save_more(self, folder: Path) -> None:
        save_model(self.vae, folder / "vae")
        if isinstance(self.source, CaptionedVideos):
            write_captions(folder, self.source.captions)

    def _task(self, network: nn.Module, *, whole: bool = False, held_history: bool = False) -> Denoising:
        assert isinstance(network, WanTransformer)
        block = (whole and self.config.distillation.teacher_block) or self.config.loss.block
        beside = network.config.channels - network.config.out_channels

        def predict(
            noisy: Tensor, t: Tensor, condition: Steering, history: Tensor | None, history_t: Tensor | None
        ) -> Tensor:
            with autocast(self.config.run):
                out = network.forward_clip(
                    with_places(noisy, beside),
                    t.to(noisy.dtype),
                    condition.text,
                    block,
                    history=None if history is None else with_places(history, beside),
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

    def _asked(self, clips: Clips) -> list[dict[str, Any]]:
        frames, condition = clips.frames, clips.condition
        size, inputs = tuple(frames.shape[3:]), {}
        if condition.actions is not None:
            inputs[ACTIONS_INPUT] = condition.actions
        if beside := self.config.model.channels - self.config.model.out_channels:
            inputs[PICTURES] = place_channels(beside, *size).to(frames).expand(*frames.shape[:2], -1, -1, -1)
        return [
            {
                "condition": text.detach(),
                "frame_inputs": {name: given[row] for name, given in inputs.items()},
                "size": size,
            }
            for row, text in enumerate(condition.text)
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


def _kept(config: WanTrainConfig, image_size: int) -> int:
    """Numbers that enter the blocks for the longest clip."""
    square = Bucket(image_size, image_size, config.data.num_frames)
    pixels = max(own.frames * own.height * own.width for own in config.data.shapes_of_clips or (square,))
    model = config.model
    return pixels // (SCALE**2 * model.patch[1] * model.patch[2]) * model.width * model.depth


def _seen(config: WanConfig) -> tuple[object, ...]:
    latents = (config.channels, config.out_channels, config.patch)
    return (*latents, config.text_dim, config.text_tokens, config.actions)


T = TypeVar("T", WanTransformer, CaptionEncoder)


def _loaded(folder: Path, own: T, section: str) -> T:
    found = load_model(folder)
    if not isinstance(found, type(own)) or found.config != own.config:
        got = found.config if isinstance(found, type(own)) else type(found).__name__
        raise ConfigError(f"{folder}: got {got}, expected [{section}], {own.config}.")
    return found


def _frame_vae(config: WanTrainConfig) -> FrameVAE:
    vae = load_model(earlier_run("vae", config.vae))
    if not isinstance(vae, FrameVAE):
        raise ConfigError(f"vae: {config.vae} holds a {type(vae).__name__}, expected a frame_vae.")
    channels, side = vae.config.channels, vae.config.image_size // SCALE
    rows, columns = config.model.patch[1:]
    if (
        config.model.out_channels != channels
        or (config.model.channels - channels) % 2
        or config.model.channels < channels
        or side % rows
        or side % columns
    ):
        raise ConfigError(
            f"model.channels, out_channels, patch: got {config.model.channels}, {config.model.out_channels}, "
            f"{config.model.patch}; expected those of latents [{channels}, {side}, {side}], and in "
            "model.channels an even number more for places, or none."
        )
    if config.data.source == "moving_shapes" and config.data.shapes.canvas != vae.config.image_size:
        raise ConfigError(
            f"data.shapes.canvas: got {config.data.shapes.canvas}, expected {vae.config.image_size}, as vae."
        )
    return vae.requires_grad_(False)
