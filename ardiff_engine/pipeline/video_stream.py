# SPDX-License-Identifier: Apache-2.0
"""A video that is shown while it is made, and prompts that change on its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from ardiff_engine.engine import Stream
from ardiff_engine.engine.stream_edits import ConditionReceipt, Effect
from ardiff_engine.errors import ConfigError
from ardiff_engine.pipeline.output import VideoFrame
from ardiff_engine.pipeline.pixels import first_latent, frames_of
from ardiff_engine.pipeline.prompts import Prompt
from ardiff_engine.plan import Plan


@dataclass(frozen=True, slots=True)
class PromptReceipt:
    """first_frame: the new prompt holds for this frame and all later ones. effect: on the frames before; see
    `Stream.set_condition`. latents: the same in latent frames."""

    first_frame: int
    effect: Effect
    latents: ConditionReceipt


class VideoStream(Iterator[VideoFrame]):
    """Frames in order. `close()`, leaving its last reference, and errors give the pages back."""

    def __init__(
        self,
        frames: Iterator[VideoFrame],
        stream: Stream,
        encode: Callable[[Prompt], torch.Tensor],
        on_prompt: Effect,
    ) -> None:
        self._frames, self._stream, self._encode, self._on_prompt = frames, stream, encode, on_prompt

    def __next__(self) -> VideoFrame:
        return next(self._frames)

    @property
    def seed(self) -> int:
        return self._stream.request.seed

    def set_prompt(self, prompt: Prompt, *, effect: Effect | None = None) -> PromptReceipt:
        """Another prompt from the next pass on. The receipt says from which frame it holds; frames before it
        that have not been read yet still come.

        effect: "keep", "recommit" or "reset", see `Stream.set_condition`; None: the system's own.
        """
        receipt = self._stream.set_condition(self._encode(prompt), effect=effect or self._on_prompt)
        return PromptReceipt(frames_of(receipt.first_frame), receipt.effect, receipt)

    def close(self) -> None:
        """Cancel it."""
        self._stream.cancel()
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()


class PromptSwitches:
    """Called after each tick of a stream: changes its prompt just before the first block starts that begins
    at the wanted frame or later."""

    def __init__(
        self,
        changes: Mapping[int, torch.Tensor],
        effect: Effect,
        then: Callable[[Stream], None] | None,
    ) -> None:
        """changes: tick -> embedding, see `switch_ticks`. then: called after it."""
        self._at = dict(changes)
        self._effect: Effect = effect
        self._then = then

    def __call__(self, stream: Stream) -> None:
        condition = self._at.pop(stream.ticks_done, None)
        if condition is not None:
            stream.set_condition(condition, effect=self._effect)
        if self._then is not None:
            self._then(stream)


def switch_ticks(plan: Plan, frames: Sequence[int]) -> list[int]:
    """The ticks in which prompts begin that are wanted from these frames on, in order. ConfigError: a prompt
    that no frame would show."""
    before, ticks = 0, [start_tick(plan, first_latent(frame)) for frame in frames]
    for index, (frame, tick) in enumerate(zip(frames, ticks, strict=True)):
        if tick is None:
            raise ConfigError(
                f"prompt: no frame would show that of frame {frame}: no block begins there or later. "
                "Leave it out, or ask for more frames."
            )
        if tick == before:
            earlier = frames[index - 1] if index else 0
            raise ConfigError(
                f"prompt: no frame would show that of frame {earlier}: the next block takes that of frame "
                f"{frame}. Leave one out."
            )
        before = tick
    return [tick for tick in ticks if tick is not None]


def start_tick(plan: Plan, frame: int) -> int | None:
    """The tick in which the first block starts that begins at this latent or later; None: there is none."""
    for n in range(plan.num_ticks) if plan.num_ticks is not None else count():
        tick = plan.tick(n)
        for own, level in zip(tick.frames, tick.levels, strict=True):
            if level == 0 and plan.block(own).start >= frame:
                return n
    return None
