# SPDX-License-Identifier: Apache-2.0
"""What people hand to a pipeline, checked and brought into one form."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image

from ardiff_engine.arguments import integer
from ardiff_engine.errors import ConfigError, TensorError, explain
from ardiff_engine.media import Clip, as_frames, read_clip
from ardiff_engine.media.crop import Sides, cropped_pixels
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.pipeline.pixels import Size, frames_of, latents_of

Video = torch.Tensor | np.ndarray | Sequence[Image.Image] | Clip | str | Path
Picture = Image.Image | torch.Tensor | np.ndarray | str | Path


def check_counts(num_frames: object, num_videos: object, first_video: object) -> None:
    for name, value, least, fix in (
        ("num_frames", num_frames, 1, "Endless videos are for Pipeline.stream."),
        ("num_videos", num_videos, 1, "Ask for at least one."),
        ("first_video", first_video, 0, "Videos of a seed count from 0."),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ConfigError(f"{name}: got {value!r}, expected a whole number >= {least}. {fix}")


def check_choice(name: str, value: object, choices: Any) -> None:
    """choices: a Literal."""
    if value not in get_args(choices):
        raise ConfigError(f"{name}: got {value!r}, expected one of {', '.join(get_args(choices))}.")


def chosen_seed(seed: int | None, *, shared: bool = False) -> int:
    """`seed` itself, or a fresh one of 32 bits, drawn as torch draws: after `torch.manual_seed` the same.

    shared: with other processes, each of which would draw its own. ConfigError for none then, and for what is
    no whole number of 64 bits.
    """
    if seed is None and shared:
        raise ConfigError("seed: got none, expected one that is the same in every process.")
    if seed is None:
        return int(torch.randint(2**32, (), dtype=torch.int64, device="cpu"))
    return integer("seed", seed, -(2**63), 2**63 - 1)


def chosen_dtype(dtype: torch.dtype | None, torch_dtype: torch.dtype | None) -> torch.dtype:
    if dtype is not None and torch_dtype is not None:
        raise ConfigError(f"dtype: got {dtype} and torch_dtype={torch_dtype}, expected one of them.")
    return _floating(dtype or torch_dtype or torch.float32)


def device_and_dtype(
    places: Sequence[object], device: str | torch.device | None, dtype: torch.dtype | None
) -> tuple[str | torch.device | None, torch.dtype | None]:
    """What `Pipeline.to` was given, by position or by name."""
    for place in places:
        if isinstance(place, torch.dtype) and dtype is None:
            dtype = place
        elif isinstance(place, str | torch.device) and device is None:
            device = place
        else:
            raise ConfigError(f"to(): got {place!r}, expected a device, a floating dtype, or one of each.")
    return device, None if dtype is None else _floating(dtype)


def _floating(dtype: object) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype: got {dtype!r}, expected a floating one such as torch.bfloat16.")
    return dtype


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


def given_clip(video: Video, size: Sides) -> Clip:
    """uint8 frames [frames, *size, 3]: resized to cover them, centre crop."""
    if isinstance(video, str | Path):
        return read_clip(video, size=size)
    frames, fps = (video.frames, video.fps) if isinstance(video, Clip) else (video, None)
    pixels = as_frames(frames)
    if pixels.shape[1:3] != ((size, size) if isinstance(size, int) else size):
        pixels = np.stack([cropped_pixels(frame, size) for frame in pixels])
    return Clip(pixels, fps)


def given_frames(image: Picture | None, video: Video | None, size: Size) -> Clip | None:
    """What a video continues, uint8 [1 + 4k, *size, 3]; None: nothing."""
    if image is None:
        if video is None:
            return None
        clip = given_clip(video, size)
        count = len(clip.frames)
        if frames_of(latents_of(count)) != count:
            raise ConfigError(
                f"video: got {count} frames, expected 1 + 4k. Give the first {frames_of(latents_of(count))}."
            )
        return clip
    if video is not None:
        raise ConfigError("image and video: give one of them; the first frame of a video is an image.")
    if isinstance(image, Image.Image):
        return given_clip([image], size)
    if isinstance(image, torch.Tensor | np.ndarray):
        return given_clip(image[None], size)
    clip = read_clip(image, 1, size=size)
    return Clip(clip.frames, None)


def clean_latents(latents: object, spec: ModelSpec) -> torch.Tensor:
    """TensorError unless they are frames [T, tokens, channels] of floating-point numbers, one at least."""
    cell, got = spec.frame_shape(), type(latents).__name__
    if isinstance(latents, torch.Tensor):
        if latents.is_floating_point() and latents.ndim == 3 and len(latents) and latents.shape[1:] == cell:
            return latents
        got = f"{latents.dtype} {[*latents.shape]}"
    raise TensorError(
        explain(
            "latents",
            got=got,
            expected=f"floating point [frames, {cell[0]}, {cell[1]}]",
            fix="Give those of one video, such as out.latents[0], or stream.result().",
        )
    )


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
    shape = (frames, *spec.frame_shape())
    return torch.stack(
        [torch.randn(shape, generator=g, dtype=torch.float32, device=g.device).cpu() for g in generators]
    )
