# SPDX-License-Identifier: Apache-2.0
"""A steered pipeline as a server uses it: captions, and actions where the model takes them."""

from __future__ import annotations

import secrets
import threading
from dataclasses import replace
from typing import Any

from ardiff_engine.codec.protocol import Codec
from ardiff_engine.data.moving_shapes import ACTIONS
from ardiff_engine.media.frames import MAX_SCALE
from ardiff_engine.memory import Window
from ardiff_engine.pipeline.steered import STEPS, SteeredPipeline, frames_with
from ardiff_engine.serve.decoder_room import room_for
from ardiff_engine.serve.errors import invalid
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.order import (
    SHOWN,
    Change,
    Order,
    actions_of,
    engine_for,
    frames_of,
    weights_of,
)
from ardiff_engine.serve.wish import Wish

BACK = 24
"""Frames that an endless stream can go back over. The page shows so many."""


class SteeredModel:
    """Pictures of one size, block by block. A new caption begins with a cut. An action holds from the next
    block that begins on, so a live stream has the frames of the video with the same actions."""

    system = "steered"

    def __init__(self, name: str, pipe: SteeredPipeline, limits: Limits) -> None:
        self.name, self._pipe, self._limits = name, pipe, limits
        self.actions: tuple[str, ...] = ACTIONS if pipe.steered else ()
        self.takes: tuple[str, ...] = ("prompt", "action") if pipe.steered else ("prompt",)
        self.codec: Codec = pipe.codec
        self.weights = weights_of(pipe.transformer, pipe.text, pipe.vae)
        self._encoding = threading.Lock()  # one text encoder, many clients
        self._block = pipe.rhythm.block
        longest = self.order(Wish(num_frames=self._whole(limits.frames), guidance_scale=2.0)).request
        self.engine = engine_for(pipe.transformer, longest.solver, longest.memory, longest, limits)
        self.room = room_for(self.codec, pipe.transformer.spec)

    def order(self, wish: Wish) -> Order:
        for name in ("lag", "class_id", "negative_prompt"):
            if getattr(wish, name) is not None:
                raise invalid(name, getattr(wish, name), "none", "Steered models have none.", name)
        fps = self._pipe.fps if wish.fps is None else wish.fps
        frames = frames_of(wish, fps, self._limits)
        if frames is not None and wish.num_frames is None:
            frames = self._whole(frames)
        held = actions_of(wish, self.actions, self._limits.frames if frames is None else frames)
        steps = STEPS if wish.num_inference_steps is None else wish.num_inference_steps
        with self._encoding:
            request = self._pipe.request(
                wish.prompt,
                frames,
                (lambda frame: held[min(frame, len(held) - 1)]) if held else None,
                steps,
                wish.guidance_scale,
                secrets.randbits(32) if wish.seed is None else wish.seed,
            )
        assert isinstance(request.memory, Window)
        request = replace(request, memory=replace(request.memory, back=BACK))
        height, width = self._pipe.picture
        scale = max(1, SHOWN // max(height, width)) if wish.size is None else wish.size[0] // width
        size = (width * scale, height * scale)
        if wish.size not in (None, size) or not 1 <= scale <= MAX_SCALE:
            expected = f"{width}x{height}, or 2 to {MAX_SCALE} times that"
            raise invalid("size", wish.size, expected, "Leave it out.", "size")
        return Order(request, fps, size, scale, frames, steps)

    def steered(self, event: dict[str, Any]) -> Change:
        prompt, action = event.get("prompt"), event.get("action")
        if set(event) == {"prompt"} and isinstance(prompt, str) and len(prompt) <= self._limits.text:
            with self._encoding:
                return Change(self._pipe.condition(prompt), "reset")
        if set(event) == {"action"} and action in self.actions:
            number = self.actions.index(action)
            return Change(inputs=frames_with(lambda frame: number))
        expected = f'{{"prompt": a text of at most {self._limits.text} characters}}'
        if self.actions:
            expected += f' or {{"action": one of {", ".join(self.actions)}}}'
        raise invalid("event", event, expected, "See /v1/models for what the model takes.", "event")

    def _whole(self, frames: int) -> int:
        """The nearest number of frames at or below that is whole blocks; one block at least."""
        return max(1, frames // self._block) * self._block
