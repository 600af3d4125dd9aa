# SPDX-License-Identifier: Apache-2.0
"""What a user asks of the engine: one video."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ardiff_engine.diffusion.guidance import Branch, classifier_free
from ardiff_engine.diffusion.solvers import Solver
from ardiff_engine.engine.schedules import tracks_of
from ardiff_engine.errors import ConfigError, NumericalError, TensorError, explain
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.models.spec import ModelSpec, Size
from ardiff_engine.noise import NoiseSource
from ardiff_engine.plan import Plan, Rule

ENDLESS_MAX_AHEAD = 64


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One video to generate.

    num_frames: frames in total, a given prefix included; None: endless.
    size: rows and columns of the latent frames, where a network takes any; None: what it was trained on.
    lag: ticks by which each frame starts after the one before (AD scheduler): 0 = all together, the solver's
        number of steps = one after the other. None: the engine's plan, or 5
        (at most the number of steps).
    plan: a rule instead of `lag`, such as plan.blocks(3), or an explicit plan of this very video.
    condition, negative_condition: [context_tokens, context_dim], a class id, or None (the model's own
        context; the null context). The negative one is only used when guidance_scale != 1.
    guidance_scale: g in  out = out_neg + g (out_cond - out_neg).
    branches: any other guidance, in place of the three.
    frame_inputs: what the network takes for every frame (ModelSpec.frame_inputs), by name: actions, cameras,
        channels of given pictures. [num_frames, ...], given frames included, or a function of the frame's
        number, which is called before the frame is first fed, and may be called again after going back.
    seed, noise_stream: key of the counter-based noise; two videos of one seed differ by noise_stream.
    latents: starting noise [num_frames - prefix frames, ...] instead of the seeded one. Frames are in the
        layout of the model: [channels, rows, columns] or [tokens, channels].
    generator: torch.Generator that the starting noise is drawn from, frame by frame, instead of the seeded
        one.
        It draws the starting noise only: the noise that eta > 0 adds at every step stays keyed by `seed`.
    noise: a source of noise (`ade.noise`), of the starting noise and of what steps add, in place of latents
        and generator.
    prefix: clean latents [P, ...] of given frames that the video continues, in the same layout.
    solver: another solver than the engine's (steps, eta, parametrisation, clamp); a tuple of solvers is one
        for each track of the plan.
    memory: another memory policy than the engine's.
    on_step: called with the Stream after each of its ticks; an exception in it fails this stream only.
    max_ahead: finished frames that may wait for the reader before the stream pauses; None: no limit for
        finite videos, 64 for endless ones.
    """

    num_frames: int | None = 16
    lag: int | None = None
    condition: torch.Tensor | int | None = None
    negative_condition: torch.Tensor | int | None = None
    guidance_scale: float = 1.0
    seed: int = 0
    noise_stream: int = 0
    latents: torch.Tensor | None = None
    generator: torch.Generator | None = None
    prefix: torch.Tensor | None = None
    solver: Solver | tuple[Solver, ...] | None = None
    memory: MemoryPolicy | None = None
    on_step: Callable[[Any], None] | None = None
    max_ahead: int | None = None
    plan: Rule | Plan | None = None
    branches: tuple[Branch, ...] | None = None
    frame_inputs: Mapping[str, Any] | None = None
    size: Size | None = None
    noise: NoiseSource | None = None

    def __post_init__(self) -> None:
        for name in ("num_frames", "lag", "seed", "noise_stream", "max_ahead"):
            value = getattr(self, name)
            if not (value is None and name in ("num_frames", "lag", "max_ahead")):
                object.__setattr__(self, name, _integer(f"Request.{name}", value))
        if self.size is not None:
            object.__setattr__(self, "size", _size(self.size))
        scale = self.guidance_scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            raise ConfigError(
                explain(
                    "Request.guidance_scale",
                    got=repr(self.guidance_scale),
                    expected="a finite number",
                    fix="1.0 switches guidance off.",
                )
            )
        for name in ("latents", "prefix"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _tensor(f"Request.{name}", getattr(self, name)))
        for name in ("condition", "negative_condition"):
            object.__setattr__(self, name, _condition(f"Request.{name}", getattr(self, name)))
        if self.branches is not None:
            plain = self.condition is None and self.negative_condition is None and self.guidance_scale == 1.0
            if not plain:
                raise ConfigError(
                    "Request.branches beside condition, negative_condition or guidance_scale: leave these out"
                )
            object.__setattr__(self, "branches", checked_branches("Request.branches", self.branches))
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise ConfigError(
                explain(
                    "Request.generator",
                    got=type(self.generator).__name__,
                    expected="one torch.Generator",
                    fix="Give every request its own.",
                )
            )

        if self.noise is not None and (
            isinstance(self.noise, type) or not isinstance(self.noise, NoiseSource)
        ):
            raise ConfigError(f"Request.noise={self.noise!r:.80}: give one of ade.noise, such as noise.Given")
        if self.frame_inputs is not None and not isinstance(self.frame_inputs, Mapping):
            raise ConfigError(
                f"Request.frame_inputs={self.frame_inputs!r:.80}: give tensors or functions by name, "
                'such as {"actions": actions}'
            )
        if self.solver is not None and not all(isinstance(own, Solver) for own in tracks_of(self.solver)):
            raise ConfigError(
                f"Request.solver={self.solver!r}: give a solver such as solvers.DDIM(...), a tuple of them, "
                "one for each track of the plan, or None for the engine's"
            )
        if self.plan is not None and not isinstance(self.plan, Plan | Rule):
            raise ConfigError(
                f"Request.plan={self.plan!r}: give a rule such as plan.blocks(3), a plan, or None for `lag`"
            )
        if self.plan is not None and self.lag is not None:
            raise ConfigError(
                f"Request.lag={self.lag} beside Request.plan={self.plan!r:.80}: a plan says when frames "
                "start, so give one of the two"
            )

    @property
    def guidance(self) -> tuple[Branch, ...]:
        """The branches, however they were asked for."""
        if self.branches is not None:
            return self.branches
        return classifier_free(self.condition, self.negative_condition, self.guidance_scale)

    @property
    def prefix_frames(self) -> int:
        return 0 if self.prefix is None or self.prefix.ndim == 0 else int(self.prefix.shape[0])

    @property
    def ahead_limit(self) -> int | None:
        if self.max_ahead is None and self.num_frames is None:
            return ENDLESS_MAX_AHEAD
        return self.max_ahead

    def check(self, spec: ModelSpec) -> None:
        """Raise a typed error for anything that cannot be served, before anything is touched."""
        shape = spec.frame_shape(self.size)
        if self.prefix is not None:
            check_frames("Request.prefix", self.prefix, None, shape)
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
            check_frames("Request.latents", self.latents, self.num_frames - self.prefix_frames, shape)
        if self.noise is not None and (self.latents is not None or self.generator is not None):
            raise ConfigError("Request.noise beside latents or a generator: one source of noise is enough.")
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


def checked_branches(name: str, given: object) -> tuple[Branch, ...]:
    """With conditions that are tensors, whole numbers, None or "null"; a typed error otherwise."""
    if not isinstance(given, tuple | list) or not given or not all(isinstance(own, Branch) for own in given):
        raise ConfigError(f"{name}={given!r:.80}: give one or more ade.Branch(...)")
    return tuple(replace(own, condition=_condition("Branch.condition", own.condition)) for own in given)


def _condition(name: str, value: Any) -> Any:
    if value is None or isinstance(value, torch.Tensor) or (isinstance(value, str) and value == "null"):
        return value
    return int(value) if isinstance(value, int | np.integer) else _tensor(name, value)


def _integer(name: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(
            explain(name, got=repr(value), expected="a whole number", fix="Convert it with int().")
        ) from None


def _size(value: object) -> Size:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ConfigError(f"Request.size: got {value!r}, expected (rows, columns) of the latents.")
    return _integer("Request.size", value[0]), _integer("Request.size", value[1])


def _tensor(name: str, value: object) -> torch.Tensor:
    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TensorError(
            explain(
                name, got=type(value).__name__, expected="a tensor or an array of numbers", fix="Convert it."
            )
        ) from None
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        raise TensorError(f"{name} must be dense and have values, got {tensor.layout} on {tensor.device}")
    if not tensor.is_floating_point():
        raise TensorError(
            explain(
                name, got=f"numbers of type {tensor.dtype}", expected="floating point", fix="Use .float()."
            )
        )
    return tensor


def check_frames(name: str, value: torch.Tensor, frames: int | None, shape: tuple[int, ...]) -> None:
    """TensorError, NumericalError unless `value` is latents of frames of that shape, finite ones. frames: how
    many there must be, None: any number."""
    fits = value.ndim == 1 + len(shape) and tuple(value.shape[1:]) == shape and len(value) > 0
    if not fits or (frames is not None and len(value) != frames):
        expected = ["frames" if frames is None else frames, *shape]
        raise TensorError(
            f"{name}: got {list(value.shape)}, expected [{', '.join(map(str, expected))}], frames of "
            "Request.size in the layout of the model."
        )
    if not bool(torch.isfinite(value.to(torch.float32)).all()):
        raise NumericalError(
            explain(name, got="NaN or infinity", expected="finite numbers", fix="Check the input.")
        )
