# SPDX-License-Identifier: Apache-2.0
"""Frames that are made before their inputs are known, as if these stayed as they are (NFD, arXiv
2506.01380): a player holds a key, and the next frames are there when he asks for them."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import torch

from ardiff_engine.arguments import integer
from ardiff_engine.engine import Engine, LatentFrame, Request
from ardiff_engine.errors import ConfigError, TensorError


class Foreseen:
    """An endless stream whose frame inputs come one by one.

    `next(value)` says the input of the next frame and returns it. Until then the stream makes up to `ahead`
    frames under the last value that was said, whenever its engine runs: in `engine.running()`, while others
    are served, in `engine.step()`. Where the value is another one, they are forgotten and made anew. So the
    frames are, to the bit, those of a stream that knew all values.

    name: of the input; `Request.frame_inputs` has the others. first: its value before any was said. request:
        one frame after the other (`plan.blocks(1)`), with a `memory.Window` whose `back` is `ahead`.

    hits, misses: frames that were at work when their value came, which was the guess, or was not.
    """

    def __init__(self, engine: Engine, request: Request, name: str, first: Any, *, ahead: int = 4) -> None:
        if request.num_frames is not None or request.max_ahead is not None:
            raise ConfigError(
                f"speculation.Foreseen of a request with num_frames={request.num_frames} and max_ahead="
                f"{request.max_ahead}: give None for both; close() ends it, and `ahead` is the limit"
            )
        spec = engine.model.spec
        shapes = {own.name: own.shape(spec, request.size) for own in spec.frame_inputs}
        if name not in shapes:
            raise ConfigError(f"speculation.Foreseen of {name!r}: expected one of {sorted(shapes)}")
        self.hits = self.misses = 0
        self._name, self._shape = name, shapes[name]
        # The engine asks for inputs in whatever thread runs it.
        self._lock = threading.Lock()
        self._value = self._checked(first)
        self._next, self._asked = request.prefix_frames, -1
        inputs = {**(request.frame_inputs or {}), name: self._input}
        asked = replace(request, frame_inputs=inputs, max_ahead=integer("ahead", ahead, low=1))
        self.stream = engine.submit(asked)
        if len(self.stream.block(self._next)) > 1:
            self.stream.cancel()
            raise ConfigError("speculation.Foreseen of blocks of several frames: use plan.blocks(1)")
        self._frames = iter(self.stream)

    def next(self, value: Any) -> LatentFrame:
        """The next frame, whose input is `value`. TensorError, before anything changes: another shape, or
        numbers that are not finite."""
        value = self._checked(value)
        with self._lock:
            at_work, right = self._asked >= self._next, torch.equal(value, self._value)
            self._value = value
            if not right:
                self._asked = self._next - 1
        self.hits += at_work and right
        self.misses += at_work and not right
        if at_work and not right:
            self.stream.rollback(self._next)
        frame = next(self._frames)
        self._next = frame.index + 1
        return frame

    def close(self) -> None:
        """End the stream, which gives all its pages back."""
        self._frames.close()

    def _checked(self, value: Any) -> torch.Tensor:
        """A copy: the caller may reuse his."""
        try:
            tensor = torch.as_tensor(value).detach().to("cpu", torch.float32, copy=True)
        except (TypeError, ValueError, RuntimeError):
            raise TensorError(f"{self._name}: got {type(value).__name__}, expected numbers") from None
        if tensor.shape != self._shape or not bool(torch.isfinite(tensor).all()):
            raise TensorError(
                f"{self._name}: got {list(tensor.shape)}, expected {list(self._shape)} finite numbers"
            )
        return tensor

    def _input(self, frame: int) -> torch.Tensor:
        """Asked for when a frame is first fed."""
        with self._lock:
            self._asked = max(self._asked, frame)
            return self._value
