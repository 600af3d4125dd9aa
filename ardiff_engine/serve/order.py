# SPDX-License-Identifier: Apache-2.0
"""What a server asks of a model: requests to the engine made of what clients ask for, and changes of streams
that run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ardiff_engine.checksum import checksum_of
from ardiff_engine.codec.protocol import Codec
from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.engine.admission import admit
from ardiff_engine.engine.schedules import tracks_of
from ardiff_engine.engine.stream_edits import ConditionReceipt, Effect
from ardiff_engine.errors import ArdiffError
from ardiff_engine.serve.decoder_room import DecoderRoom
from ardiff_engine.serve.errors import invalid
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.wish import Wish

SHOWN = 256
"""Pixels of a side, to which small pictures are enlarged by whole numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """condition: another one, with its effect on the frames before. inputs: instead of it, other inputs, by
    name, of the frames that start from now on."""

    condition: torch.Tensor | int | None = None
    effect: Effect = "keep"
    inputs: Mapping[str, Any] | None = None

    def of(self, stream: Stream) -> ConditionReceipt:
        if self.inputs is not None:
            return stream.set_frame_inputs(self.inputs, in_flight=False)
        return stream.set_condition(self.condition, effect=self.effect)

    def before(self, request: Request) -> Request:
        """As if it had come before the first tick."""
        if self.inputs is not None:
            return replace(request, frame_inputs={**(request.frame_inputs or {}), **self.inputs})
        return replace(request, condition=self.condition)


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """request: for the engine. fps: of the video. size: width and height of its pictures as sent. scale:
    pixels of a picture become squares of this side. frames: pictures in all; None: endless. steps: of a
    frame."""

    request: Request
    fps: float
    size: tuple[int, int]
    scale: int
    frames: int | None
    steps: int


class ServedModel(Protocol):
    """name: as clients call it. system: that runs it. weights: a checksum of those of transformer and
    autoencoder. engine: makes latents. codec: makes pictures of them. room: for its decoders. takes: what a
    stream can be steered by. actions: by name, of which one holds for each frame; the first one is none."""

    name: str
    system: str
    weights: str
    engine: Engine
    codec: Codec
    room: DecoderRoom
    takes: tuple[str, ...]
    actions: tuple[str, ...]

    def order(self, wish: Wish) -> Order:
        """ApiError or a typed error where it cannot be served; nothing is touched then. May take a while:
        text is encoded here."""

    def steered(self, event: dict[str, Any]) -> Change:
        """What an interaction asks for. ApiError: not of this model."""


def weights_of(*parts: object) -> str:
    """A checksum of all of them. Parts without weights count for nothing."""
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    return f"{checksum_of(weight for part in modules for weight in part.state_dict().values()):08x}"


def engine_for(model: Any, solver: Any, memory: Any, longest: Request, limits: Limits) -> Engine:
    """With pages for `limits.streams` of the longest videos."""
    steps = tuple(own.num_steps for own in tracks_of(longest.solver or solver))
    need = admit(longest, model.spec, memory, steps).need.most
    return Engine(
        model,
        solver=solver,
        memory=memory,
        max_pages=need * limits.streams,
        max_waiting=limits.queue,
    )


def frames_of(wish: Wish, fps: float, limits: Limits) -> int | None:
    """Pictures that are asked for."""
    if wish.endless:
        if wish.num_frames is not None:
            raise invalid("num_frames", wish.num_frames, "none beside endless", "Leave one of them out.")
        return None
    frames = round(float(wish.seconds) * fps) if wish.num_frames is None else wish.num_frames
    if not 1 <= frames <= limits.frames:
        fix = "Ask for fewer seconds or frames per second."
        raise invalid("seconds x fps", f"{frames} frames", f"1 to {limits.frames} frames", fix, "seconds")
    return frames


def possible(frames: int, check: Callable[[int], object]) -> int:
    """The nearest number of pictures at or below `frames`, or else above, that the model can make."""
    for found in (*range(frames, 0, -1), *range(frames + 1, frames + 128)):
        try:
            check(found)
        except ArdiffError:
            continue
        return found
    raise invalid("seconds x fps", f"{frames} frames", "a length that the system makes", "Give num_frames.")


def actions_of(wish: Wish, names: tuple[str, ...], frames: int) -> tuple[int, ...]:
    """Of the first frames, by number. ApiError: unknown ones, more than frames, or of a model without."""
    given = wish.actions or ()
    for name in given:
        if name not in names:
            expected = " | ".join(names) if names else "none, the model takes no actions"
            raise invalid("actions", name, expected, "See /v1/models for what the model takes.", "actions")
    if len(given) > frames:
        fix = "Give at most one for each; the last one holds on."
        raise invalid("actions", f"{len(given)} actions", f"at most {frames}, one a frame", fix, "actions")
    return tuple([names.index(name) for name in given])
