# SPDX-License-Identifier: Apache-2.0
"""What a user asks of the engine: one video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ardiff_engine.errors import ConfigError, NumericalError, TensorError, explain
from ardiff_engine.models.ar_diffusion_config import ModelSpec

if TYPE_CHECKING:
    from ardiff_engine.engine.stream import Stream

ENDLESS_MAX_AHEAD = 64


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One video to generate.

    num_frames: frames in total, a given prefix included; None: endless.
    lag: ticks by which each frame starts after the one before (AD scheduler): 0 = all together, the solver's
        number of steps = one after the other.
    condition, negative_condition: [context_tokens, context_dim], a class id, or None (the model's own
        context; the null context). The negative one is only used when guidance_scale != 1.
    guidance_scale: g in  out = out_neg + g (out_cond - out_neg).
    seed, noise_stream: key of the counter-based noise; two videos of one seed differ by noise_stream.
    latents: starting noise [num_frames - prefix frames, tokens, channels] instead of the seeded one.
    generator: torch.Generator that the starting noise is drawn from, frame by frame, instead of the seeded
        one.
    prefix: clean latents [P, tokens, channels] of given frames that the video continues.
    on_step: called with the stream after each of its ticks; an exception in it fails this stream only.
    max_ahead: finished frames that may wait for the reader before the stream pauses; None: no limit for
        finite videos, 64 for endless ones.
    """

    num_frames: int | None = 16
    lag: int = 5
    condition: torch.Tensor | int | None = None
    negative_condition: torch.Tensor | int | None = None
    guidance_scale: float = 1.0
    seed: int = 0
    noise_stream: int = 0
    latents: torch.Tensor | None = None
    generator: torch.Generator | None = None
    prefix: torch.Tensor | None = None
    on_step: Callable[[Stream], None] | None = None
    max_ahead: int | None = None

    @property
    def prefix_frames(self) -> int:
        return 0 if self.prefix is None else int(self.prefix.shape[0])

    @property
    def ahead_limit(self) -> int | None:
        if self.max_ahead is None and self.num_frames is None:
            return ENDLESS_MAX_AHEAD
        return self.max_ahead

    def check(self, spec: ModelSpec) -> None:
        """Raise a typed error for anything that cannot be served, before anything is touched."""
        cell = (spec.tokens_per_frame, spec.channels)
        if self.prefix is not None:
            _check_frames("prefix", self.prefix, None, cell)
        if self.num_frames is not None and self.num_frames <= self.prefix_frames:
            raise ConfigError(
                explain(
                    "Request.num_frames",
                    got=self.num_frames,
                    expected=f"more than the {self.prefix_frames} given frames",
                    fix="num_frames counts the given frames too.",
                )
            )
        if self.latents is not None:
            if self.num_frames is None or self.generator is not None:
                raise ConfigError(
                    explain(
                        "Request.latents",
                        got="with num_frames=None or a generator",
                        expected="a finite video, and one source of noise",
                        fix="Leave latents out.",
                    )
                )
            _check_frames("latents", self.latents, self.num_frames - self.prefix_frames, cell)
        if self.max_ahead is not None and self.max_ahead < 1:
            raise ConfigError(
                explain("Request.max_ahead", got=self.max_ahead, expected=">= 1 or None", fix="Use None.")
            )
        if not (isinstance(self.seed, int) and -(2**63) <= self.seed < 2**63):
            raise ConfigError(
                explain("Request.seed", got=self.seed, expected="a 64-bit integer", fix="Use a smaller seed.")
            )
        if not (isinstance(self.noise_stream, int) and 0 <= self.noise_stream < 2**32):
            raise ConfigError(
                explain(
                    "Request.noise_stream",
                    got=self.noise_stream,
                    expected="0..2^32-1",
                    fix="Count videos from 0.",
                )
            )


def _check_frames(name: str, value: torch.Tensor, frames: int | None, cell: tuple[int, int]) -> None:
    expected = (value.shape[0] if frames is None and value.ndim == 3 else frames, *cell)
    if value.ndim != 3 or tuple(value.shape) != expected or value.shape[0] < 1:
        raise TensorError(
            explain(
                f"Request.{name}",
                got=tuple(value.shape),
                expected=f"[frames, {cell[0]}, {cell[1]}]" if frames is None else expected,
                fix="See models.to_tokens.",
            )
        )
    if not bool(torch.isfinite(value).all()):
        raise NumericalError(
            explain(
                f"Request.{name}", got="NaN or infinity", expected="finite numbers", fix="Check the input."
            )
        )
