# SPDX-License-Identifier: Apache-2.0
"""How much memory a text-to-video model takes, from the headers of its files: before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ardiff_engine.device import free_memory
from ardiff_engine.engine import Engine, Request
from ardiff_engine.engine.memory_plan import MIB, MemoryPlan
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.pipeline.parts import VideoParts
from ardiff_engine.pipeline.pixels import Pixels, Size, checked_latents, checked_size, frames_of
from ardiff_engine.systems import System

MOST_FIRST = 1000
"""Latents among which the shortest video of a system is looked for."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class VideoMemory:
    """Bytes for `engine.streams` videos at a time.

    engine: of the transformer and its streams. codec: weights of the autoencoder; decoders: what it keeps of
    each video; decoding: at most, while a latent is decoded. image: of CLIP's vision tower. text: of the text
    encoder, which a command drops before it loads the rest. stored: of the transformer's weights in its file,
    whatever their dtype there.
    """

    engine: MemoryPlan
    codec: int
    decoders: int
    decoding: int
    image: int
    text: int
    stored: int

    @property
    def running(self) -> int:
        return self.engine.total_bytes + self.codec + self.decoders + self.decoding + self.image

    @property
    def peak(self) -> int:
        """Where the text encoder is dropped before the rest is loaded."""
        return max(self.running, self.text)

    def rows(self) -> list[tuple[str, int, str]]:
        plan = self.engine
        pages = f"{plan.streams} streams x {plan.pages_per_stream} pages"
        return [
            ("transformer", plan.weights_bytes, f"{self.stored / MIB:.1f} MiB in its file"),
            ("pages", plan.pages_bytes, pages),
            ("passes", plan.tables_bytes + plan.workspace_bytes, "tables, and the largest pass, from above"),
            ("autoencoder", self.codec, ""),
            ("decoding", self.decoders + self.decoding, "state of each stream, and one latent at work"),
            ("image encoder", self.image, "CLIP's view of the first picture"),
            ("running", self.running, ""),
            ("text encoder", self.text, "only while prompts are encoded"),
        ]

    def __str__(self) -> str:
        return "\n".join(
            f"{name:<14} {size / MIB:10.1f} MiB  {note}".rstrip() for name, size, note in self.rows()
        )


def size_multiple(parts: VideoParts) -> Size:
    """What divides height and width of a video."""
    rows, columns = parts.transformer.config.patch[1:]
    scale = parts.empty_vae().scale
    return scale * rows, scale * columns


class PartsMemory:
    """Of videos of one size by these parts: what does not depend on the system is found out once."""

    def __init__(self, parts: VideoParts, size: Size, dtype: torch.dtype = torch.float32) -> None:
        """ConfigError: a size that the parts cannot make."""
        height, width = checked_size(size, size_multiple(parts))
        vae = parts.empty_vae()
        self.parts, self.dtype = parts, dtype
        self._model = parts.empty_transformer().to(dtype)
        self._rows = (height // vae.scale, width // vae.scale)
        # The autoencoder is float32, whatever `dtype`.
        self._codec = sum(weight.numel() for weight in vae.parameters()) * torch.float32.itemsize
        self._decoder, self._decoding = Pixels(vae, parts.tile).memory(self._rows)

    def of(
        self, system: System, *, frames: int | None, streams: int = 1, guidance_scale: float | None = None
    ) -> VideoMemory:
        """For videos of so many frames; None: endless. Nothing is allocated and no weight is read.

        ConfigError, PlanError: what the system cannot make, as in a call.
        """
        parts, item = self.parts, self.dtype.itemsize
        request = Request(
            num_frames=None if frames is None else checked_latents(frames, system, self._model.spec),
            size=self._rows,
            plan=system.plan,
            guidance_scale=system.guidance if guidance_scale is None else guidance_scale,
        )
        plan = Engine.memory_plan(
            self._model, solver=system.solver, memory=system.memory, request=request, streams=streams
        )
        return VideoMemory(
            engine=plan,
            codec=self._codec,
            decoders=streams * self._decoder,
            decoding=self._decoding,
            image=0 if parts.image is None else parts.image.weights * item,
            text=0 if parts.text is None else parts.text.weights * item,
            stored=sum(own.file.bytes_as() for own in parts.transformers),
        )


def video_memory(
    parts: VideoParts,
    system: System,
    *,
    size: Size,
    frames: int | None,
    streams: int = 1,
    guidance_scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> VideoMemory:
    """As `PartsMemory.of`, for one system."""
    memory = PartsMemory(parts, size, dtype)
    return memory.of(system, frames=frames, streams=streams, guidance_scale=guidance_scale)


def least_memory(parts: VideoParts, system: System, *, dtype: torch.dtype) -> VideoMemory:
    """For the smallest and shortest video that the system makes: with less, nothing runs."""
    for latents in range(1, MOST_FIRST):
        try:
            system.plan_of(latents)
        except PlanError:
            continue
        break
    size, frames = size_multiple(parts), frames_of(latents)
    return video_memory(parts, system, size=size, frames=frames, dtype=dtype)


def check_memory(needed: VideoMemory, device: torch.device) -> None:
    """ConfigError, with the numbers, where one video will not do, its text encoder dropped before."""
    free = free_memory(device)
    if needed.peak > free:
        raise ConfigError(
            f"memory: this takes {needed.peak / GIB:.2f} GiB, and {free / GIB:.2f} GiB are free on {device}. "
            f"Ask for fewer or smaller frames, or --dtype bfloat16.\n{needed}"
        )


def beside_pages(model: VideoModel, pixels: Pixels, requests: Sequence[Request]) -> int:
    """Bytes that videos of one kind take beside weights and pages: the largest pass, their decoders, and one
    latent at work."""
    one = requests[0]
    assert one.solver is not None and one.size is not None
    plan = Engine.memory_plan(model, solver=one.solver, memory=one.memory, request=one, streams=len(requests))
    state, work = pixels.memory(one.size)
    return plan.tables_bytes + plan.workspace_bytes + len(requests) * state + work


def check_frames(pixels: Pixels, size: Size, device: torch.device) -> None:
    """ConfigError for frames so large that not even one latent of them could be encoded or decoded."""
    needed, free = sum(pixels.memory(size)), free_memory(device)
    if needed > free:
        raise ConfigError(
            f"size: to decode frames of {size[0]} x {size[1]} latents takes {needed / GIB:.2f} GiB, and "
            f"{free / GIB:.2f} GiB are free on {device}. Ask for a smaller size, or load with tile=…."
        )


def check_loading(needed: VideoMemory, device: torch.device) -> None:
    """ConfigError, with the numbers, where all parts and the smallest video together will not do."""
    free, all_parts = free_memory(device), needed.running + needed.text
    if all_parts > free:
        raise ConfigError(
            f"memory: these parts and the smallest video take {all_parts / GIB:.2f} GiB, and "
            f"{free / GIB:.2f} GiB are free on {device}. Load them with dtype=torch.bfloat16, or with "
            f"text=False and give embeddings as prompts.\n{needed}"
        )
