# SPDX-License-Identifier: Apache-2.0
"""What people hand to a pipeline, checked and brought into one form."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ardiff_engine.engine.frame_decoder import to_images
from ardiff_engine.errors import ConfigError, TensorError, explain
from ardiff_engine.media import read_video
from ardiff_engine.models.spec import ModelSpec

Video = torch.Tensor | np.ndarray | str | Path


def check_counts(num_frames: object, num_videos: object) -> None:
    for name, value, fix in (
        ("num_frames", num_frames, "Endless videos are for Pipeline.stream."),
        ("num_videos", num_videos, "Ask for at least one."),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ConfigError(explain(name, got=repr(value), expected="a whole number >= 1", fix=fix))


def class_per_video(class_id: int | Sequence[int] | torch.Tensor | None, videos: int) -> list[int | None]:
    if class_id is None or isinstance(class_id, int | np.integer):
        return [None if class_id is None else int(class_id)] * videos
    try:
        ids = [operator.index(value) for value in class_id]
    except TypeError:
        ids = []
    if len(ids) != videos:
        raise ConfigError(
            explain(
                "class_id",
                got=repr(class_id),
                expected=f"one whole number, or {videos}",
                fix="Give one for all.",
            )
        )
    return list(ids)


def read_clip(video: Video, size: int) -> torch.Tensor:
    """uint8 [frames, size, size, 3]: shorter side resized, centre crop."""
    if isinstance(video, str | Path):
        video = read_video(video)
    # A flipped or reversed array has negative strides, which torch cannot take over.
    frames = torch.as_tensor(np.ascontiguousarray(video) if isinstance(video, np.ndarray) else video)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or frames.shape[0] < 1:
        raise TensorError(
            explain(
                "video",
                got=f"{tuple(frames.shape)} {frames.dtype}",
                expected="uint8 [frames, height, width, 3]",
                fix="Convert it, or give a path.",
            )
        )
    if tuple(frames.shape[1:3]) == (size, size):
        return frames
    return (to_images(frames, size) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def starting_noise(
    latents: torch.Tensor | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    videos: int,
    frames: int,
    spec: ModelSpec,
) -> torch.Tensor | None:
    """[videos, frames, tokens, channels], given or drawn video after video; None: by seed."""
    if latents is not None:
        if latents.ndim != 4 or latents.shape[0] != videos:
            raise TensorError(
                explain(
                    "latents",
                    got=tuple(latents.shape),
                    expected=f"[{videos}, frames, tokens, channels]",
                    fix="Give one per video.",
                )
            )
        return latents
    if generator is None or frames < 1:
        return None
    generators = [generator] * videos if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != videos or not all(isinstance(g, torch.Generator) for g in generators):
        raise ConfigError(
            explain(
                "generator",
                got=f"{len(generators)} objects",
                expected=f"one torch.Generator, or {videos} of them",
                fix="Give one per video.",
            )
        )
    shape = (frames, spec.tokens_per_frame, spec.channels)
    return torch.stack([torch.randn(shape, generator=g, device=g.device).cpu() for g in generators])
