# SPDX-License-Identifier: Apache-2.0
"""Prompts of a pipeline: each is encoded once, and the encoder is only in memory while it is wanted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

import torch

from ardiff_engine.arguments import integer
from ardiff_engine.conditions import UMT5
from ardiff_engine.conditions.umt5 import PROMPTS_KEPT
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.pipeline.pixels import MOST_FRAMES

Prompt = str | torch.Tensor
"""A text, or its embedding [at most text_tokens, text_dim]."""
Timed = Prompt | Mapping[int, Prompt]
"""One prompt, or frame -> the prompt from that frame on."""


class Prompts:
    """load: makes the encoder, for the first new prompt and after `unload`; None: embeddings only."""

    def __init__(self, load: Callable[[], UMT5] | None, shape: tuple[int, int]) -> None:
        """shape: rows and width of an embedding."""
        self._load, self._shape = load, shape
        self._encoder: UMT5 | None = None
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()

    def encode(self, prompt: Prompt) -> torch.Tensor:
        """[rows, width]. ConfigError: a text without an encoder. TensorError: another shape."""
        if isinstance(prompt, torch.Tensor):
            rows, width = self._shape
            if prompt.ndim != 2 or prompt.shape[1] != width or not 1 <= len(prompt) <= rows:
                raise TensorError(
                    f"prompt: got an embedding {list(prompt.shape)}, expected [at most {rows}, {width}]."
                )
            return prompt
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt: got {type(prompt).__name__}, expected a text or its embedding.")
        if prompt not in self._known:
            self._known[prompt] = self._loaded().encode([prompt])[0]
            if len(self._known) > PROMPTS_KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(prompt)
        return self._known[prompt]

    def check(self, prompt: Prompt) -> None:
        """What `encode` would refuse, without loading the encoder."""
        if not isinstance(prompt, str):
            self.encode(prompt)
        elif self._load is None and prompt not in self._known:
            raise ConfigError(
                "prompt: this model was loaded without a text encoder. Give embeddings, or the folder of one "
                "by text=…."
            )

    def unload(self) -> None:
        """Drop the encoder from memory. The next new prompt loads it again."""
        self._encoder = None

    def _loaded(self) -> UMT5:
        if self._encoder is None:
            if self._load is None:
                raise ConfigError(
                    "prompt: this model was loaded without a text encoder. Give embeddings, or the folder of "
                    "one by text=…."
                )
            self._encoder = self._load()
        return self._encoder


def listed(prompt: object) -> tuple[list[Timed], bool]:
    """The prompts of a batch, and whether one alone was given. ConfigError: an empty list."""
    if isinstance(prompt, str | torch.Tensor | Mapping):
        return [prompt], True
    if isinstance(prompt, Sequence) and len(prompt):
        return list(prompt), False
    raise ConfigError(
        f"prompt: got {prompt!r:.60}, expected a text, an embedding, or a list of at least one."
    )


def timed(prompt: Timed) -> list[tuple[int, Prompt]]:
    """(frame, prompt) in order; the first is of frame 0. ConfigError: none of it."""
    if not isinstance(prompt, Mapping):
        return [(0, prompt)]
    try:
        parts = sorted(((_frame(frame), own) for frame, own in prompt.items()), key=itemgetter(0))
    except ValueError:
        parts = []
    if not parts or parts[0][0] != 0 or len(dict(parts)) != len(prompt):
        raise ConfigError(
            f"prompt: a schedule maps frames to one prompt each and begins with frame 0, got frames "
            f"{list(prompt)!r:.60}."
        )
    return parts


def _frame(key: object) -> int:
    """Of a schedule: a whole number, also as a text, as JSON has it."""
    return integer("frame", int(key) if isinstance(key, str) else key, 0, MOST_FRAMES)
