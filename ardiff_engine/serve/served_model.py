# SPDX-License-Identifier: Apache-2.0
"""A pipeline as a server uses it: its engine, and the engine's requests made of what clients ask for."""

from __future__ import annotations

import secrets
import threading
from typing import Any

import torch

from ardiff_engine.codec.protocol import Codec
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.engine import Request
from ardiff_engine.engine.schedules import tracks_of
from ardiff_engine.errors import ConfigError
from ardiff_engine.media.frames import MAX_SCALE
from ardiff_engine.memory import RecomputedWindow
from ardiff_engine.pipeline import Pipeline
from ardiff_engine.pipeline.parts import takes_picture
from ardiff_engine.pipeline.pixels import checked_latents, checked_size, in_tiles
from ardiff_engine.pipeline.steered import SteeredPipeline
from ardiff_engine.pipeline.systems import with_steps
from ardiff_engine.pipeline.text_to_video import TextToVideoPipeline
from ardiff_engine.serve.decoder_room import room_for
from ardiff_engine.serve.errors import invalid
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.order import (
    SHOWN,
    Change,
    Order,
    ServedModel,
    actions_of,
    engine_for,
    frames_of,
    possible,
    weights_of,
)
from ardiff_engine.serve.steered_model import SteeredModel
from ardiff_engine.serve.wish import Wish

STEPS, LAG, FPS = 50, 5, 8.0


class FrameModel:
    """AR-Diffusion and its kind: frames of one size, classes instead of texts."""

    system = "ar-diffusion"
    actions: tuple[str, ...] = ()

    def __init__(self, name: str, pipe: Pipeline, limits: Limits) -> None:
        self.name, self._pipe, self._limits = name, pipe, limits
        self._classes: int | None = getattr(pipe.transformer.config, "num_classes", None)
        self.takes: tuple[str, ...] = ("class",) if self._classes else ()
        self._memory = RecomputedWindow(pipe.transformer.spec.num_frames)
        self.codec: Codec = pipe.codec
        self.weights = weights_of(pipe.transformer, pipe.codec)
        self._side: int = pipe.codec.image_size
        longest = self.order(Wish(num_frames=limits.frames, guidance_scale=2.0 if self._classes else None))
        solver = DDIM(pipe.schedule, STEPS, prediction=pipe.prediction)
        self.engine = engine_for(pipe.transformer, solver, self._memory, longest.request, limits)
        self.room = room_for(self.codec, pipe.transformer.spec)

    def order(self, wish: Wish) -> Order:
        if wish.negative_prompt is not None:
            raise invalid("negative_prompt", wish.negative_prompt, "none", "This model reads no text.")
        actions_of(wish, self.actions, 0)
        class_id = wish.class_id
        if class_id is not None and not (self._classes and class_id < self._classes):
            expected = f"0 to {self._classes - 1}" if self._classes else "none, the model has no classes"
            raise invalid("class_id", class_id, expected, "Leave it out for no class.", "class_id")
        steps = wish.num_inference_steps or STEPS
        fps = FPS if wish.fps is None else wish.fps
        request = Request(
            num_frames=frames_of(wish, fps, self._limits),
            lag=self._usual_lag(steps) if wish.lag is None else wish.lag,
            condition=class_id,
            guidance_scale=1.0 if wish.guidance_scale is None else wish.guidance_scale,
            seed=secrets.randbits(32) if wish.seed is None else wish.seed,
            solver=DDIM(self._pipe.schedule, steps, prediction=self._pipe.prediction),
            memory=self._memory,
            max_ahead=self._limits.ahead,
        )
        side = self._side
        scale = max(1, SHOWN // side) if wish.size is None else wish.size[0] // side
        size = (side * scale, side * scale)
        if wish.size not in (None, size) or not 1 <= scale <= MAX_SCALE:
            expected = f"{side}x{side}, or 2 to {MAX_SCALE} times that"
            raise invalid("size", wish.size, expected, "Leave it out.", "size")
        return Order(request, fps, size, scale, request.num_frames, steps)

    def _usual_lag(self, steps: int) -> int:
        """Large enough for the window to hold all frames in flight."""
        window = self._pipe.transformer.spec.num_frames
        return min(steps, max(LAG, -(-steps // window)))

    def steered(self, event: dict[str, Any]) -> Change:
        value = event.get("class")
        if set(event) != {"class"} or not self._classes or isinstance(value, bool):
            takes = '{"class": 0} or {"class": null}' if self._classes else "nothing, the model takes none"
            raise invalid("event", event, takes, "See /v1/models for what the model takes.", "event")
        if value is not None and not (isinstance(value, int) and 0 <= value < self._classes):
            raise invalid("event.class", value, f"0 to {self._classes - 1}, or null", "Change it.", "event")
        return Change(value)


class TextModel:
    """Text to video: the Wan family under one of the systems."""

    actions: tuple[str, ...] = ()

    def __init__(self, name: str, pipe: TextToVideoPipeline, limits: Limits, size: tuple[int, int]) -> None:
        if takes_picture(pipe.transformer):
            raise ConfigError(f"{name} needs a first picture, and the server takes none yet: serve another.")
        self.name, self._pipe, self._limits, self._usual = name, pipe, limits, size
        self.takes: tuple[str, ...] = ("prompt",)
        self.system = pipe.system.name
        self._encoding = threading.Lock()  # one text encoder, many clients
        config = pipe.transformer.config
        frames = possible(
            self._limits.frames, lambda n: checked_latents(n, pipe.system, pipe.transformer.spec)
        )
        longest = self.order(
            Wish(num_frames=frames), condition=torch.zeros(config.text_tokens, config.text_dim)
        )
        solver = tracks_of(pipe.system.solver)[0]
        self.codec: Codec = in_tiles(pipe.vae, pipe.pixels.tile)
        self.weights = weights_of(pipe.transformer, pipe.vae)
        self.engine = engine_for(pipe.transformer, solver, pipe.system.memory, longest.request, limits)
        self.room = room_for(self.codec, pipe.transformer.spec)

    def order(self, wish: Wish, condition: torch.Tensor | None = None) -> Order:
        for name in ("lag", "class_id"):
            if getattr(wish, name) is not None:
                raise invalid(name, getattr(wish, name), "none", "Text-to-video models have none.", name)
        actions_of(wish, self.actions, 0)
        system = with_steps(self._pipe.system, wish.num_inference_steps)
        fps = float(system.fps) if wish.fps is None else wish.fps
        width, height = wish.size or (self._usual[1], self._usual[0])
        if width * height > self._usual[0] * self._usual[1]:
            most = f"at most as many pixels as {self._usual[1]}x{self._usual[0]}"
            raise invalid("size", f"{width}x{height}", most, "The pages are laid out for that.", "size")
        multiple, cell = self._pipe.size_multiple, self._pipe.vae.scale
        rows, columns = checked_size((height, width), multiple)
        frames = frames_of(wish, fps, self._limits)
        if frames is None:
            system.plan_of(None)  # refuses systems that make whole videos
        elif wish.num_frames is None:
            frames = possible(frames, lambda n: checked_latents(n, system, self._pipe.transformer.spec))
        latents = None if frames is None else checked_latents(frames, system, self._pipe.transformer.spec)
        scale = system.guidance if wish.guidance_scale is None else wish.guidance_scale
        with self._encoding:
            if condition is None:
                condition = self._pipe.prompts.encode(wish.prompt)
                negative = self._pipe.prompts.encode(wish.negative_prompt or "") if scale != 1 else None
            else:
                negative = condition if scale != 1 else None
        request = Request(
            num_frames=latents,
            size=(rows // cell, columns // cell),
            plan=system.plan,
            condition=condition,
            negative_condition=negative,
            guidance_scale=scale,
            seed=secrets.randbits(32) if wish.seed is None else wish.seed,
            solver=system.solver,
            memory=system.memory,
            max_ahead=self._limits.ahead,
        )
        steps = sum(own.num_steps for own in tracks_of(system.solver))
        return Order(request, fps, (width, height), 1, frames, steps)

    def steered(self, event: dict[str, Any]) -> Change:
        prompt = event.get("prompt")
        if set(event) != {"prompt"} or not isinstance(prompt, str) or len(prompt) > self._limits.text:
            expected = f'{{"prompt": a text of at most {self._limits.text} characters}}'
            raise invalid("event", event, expected, "See /v1/models for what the model takes.", "event")
        with self._encoding:
            return Change(self._pipe.prompts.encode(prompt), self._pipe.system.on_prompt)


def served_model(
    name: str,
    pipe: Pipeline | TextToVideoPipeline | SteeredPipeline,
    limits: Limits,
    size: tuple[int, int] = (480, 832),
) -> ServedModel:
    """size: height and width of a text-to-video model's largest pictures, and the usual ones."""
    if isinstance(pipe, SteeredPipeline):
        return SteeredModel(name, pipe, limits)
    if isinstance(pipe, TextToVideoPipeline):
        return TextModel(name, pipe, limits, size)
    return FrameModel(name, pipe, limits)
