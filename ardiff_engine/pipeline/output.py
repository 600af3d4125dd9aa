# SPDX-License-Identifier: Apache-2.0
"""What a pipeline gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image

from ardiff_engine.engine import EngineStats

OutputType = Literal["pt", "np", "pil"]
DEFAULT_FPS = 8.0
Given = Literal["pixels", "decoded"]


@dataclass(frozen=True, slots=True, eq=False)
class VideoOutput:
    """The videos of one call, and what is needed to make them again.

    frames: uint8 [videos, frames, H, W, 3] as a torch tensor ("pt") or a NumPy array ("np"), or a list of
        PIL pictures for each video ("pil").
    latents: float32 [videos, frames, tokens, channels], given frames included.
    seed, first_video: with them and the other arguments of the call, video k comes out again alone, as
        `pipe(seed=out.seed, first_video=out.first_video + k, ...)`.
    fps: frames per second of the video that was continued, or 8 where none was or its rate is not known.
    stats: of the engine, counted during the call. seconds: of the call.
    """

    frames: Any
    latents: torch.Tensor
    seed: int
    first_video: int
    fps: float
    stats: EngineStats
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class VideoFrame:
    """index: in the video, given frames counted. image: uint8 [H, W, 3]. latent: float32 [tokens, channels].
    seconds: since the stream began. seed: of the stream, also where it was drawn."""

    index: int
    image: torch.Tensor
    latent: torch.Tensor
    seconds: float
    seed: int


@dataclass(frozen=True, slots=True)
class StepInfo:
    """Given to `callback_on_step_end`: `video` (from 0) has done `tick` of its `num_ticks` passes through the
    transformer."""

    video: int
    tick: int
    num_ticks: int | None


def in_form(frames: torch.Tensor, output_type: OutputType) -> Any:
    """uint8 [videos, frames, H, W, 3] as `output_type` asks."""
    if output_type == "pt":
        return frames
    if output_type == "np":
        return frames.numpy()
    return [[Image.fromarray(frame) for frame in video] for video in frames.numpy()]
