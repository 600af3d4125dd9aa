# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: how much signal and how much noise a latent holds at each training timestep.

A schedule is the float64 table ᾱ_t, t = 0..T−1 (`alphas_cumprod`), with

    x_t = signal(t)·x0 + sigma(t)·ε,    signal = √ᾱ_t,  sigma = √(1 − ᾱ_t).

Every frame has its own t. No entry is noise-free: t = 0 already carries √(1 − ᾱ_0) of noise.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ardiff_engine.diffusion.prediction import (
    VARIANCE_PRESERVING,
    check_prediction,
    eps_weights,
    target_weights,
    x0_weights,
)
from ardiff_engine.diffusion.real import is_real
from ardiff_engine.errors import ConfigError, TensorError, explain

MAX_COSINE_BETA = 0.999
MAX_TIMESTEPS = 1 << 20


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """A discrete variance-preserving schedule, built by `sqrt_linear`, `linear`, `cosine` or `from_config`.

    Attributes:
        kind: name of the rule.
        settings: the arguments of the rule, in order; two schedules are equal when kind and settings are.
        betas: float64 [T].
        alphas_cumprod: float64 [T], the running product of 1 − β.
    """

    kind: str
    settings: tuple[tuple[str, float], ...]
    betas: torch.Tensor = field(repr=False, compare=False)
    alphas_cumprod: torch.Tensor = field(repr=False, compare=False)

    @classmethod
    def sqrt_linear(
        cls, beta_start: float = 1e-4, beta_end: float = 2e-2, num_timesteps: int = 1000
    ) -> NoiseSchedule:
        """β = linspace(√β_start, √β_end, T)², as in AR-Diffusion and in latent diffusion ("linear")."""
        num_timesteps = _check_betas(beta_start, beta_end, num_timesteps)
        betas = _linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_timesteps) ** 2
        return cls._from_betas("sqrt_linear", betas, beta_start=beta_start, beta_end=beta_end)

    @classmethod
    def linear(
        cls, beta_start: float = 1e-4, beta_end: float = 2e-2, num_timesteps: int = 1000
    ) -> NoiseSchedule:
        """β = linspace(β_start, β_end, T) (Ho et al. 2020, section 4)."""
        num_timesteps = _check_betas(beta_start, beta_end, num_timesteps)
        betas = _linspace(beta_start, beta_end, num_timesteps)
        return cls._from_betas("linear", betas, beta_start=beta_start, beta_end=beta_end)

    @classmethod
    def cosine(cls, num_timesteps: int = 1000, offset: float = 0.008) -> NoiseSchedule:
        """f(u) = cos²(π/2·(u + offset)/(1 + offset)), β_t = min(1 − f((t+1)/T)/f(t/T), 0.999).

        Nichol & Dhariwal 2021, section 3.2.
        """
        num_timesteps = _check_num_timesteps(num_timesteps)
        if not (is_real(offset) and math.isfinite(offset) and offset > 0):
            raise ConfigError(
                explain(
                    "cosine schedule: bad offset",
                    got=repr(offset),
                    expected="a number > 0",
                    fix="The paper uses 0.008.",
                )
            )
        u = torch.arange(num_timesteps + 1, dtype=torch.float64, device="cpu") / num_timesteps
        f = torch.cos((u + offset) / (1 + offset) * (math.pi / 2)) ** 2
        betas = torch.clamp(1 - f[1:] / f[:-1], max=MAX_COSINE_BETA)
        return cls._from_betas("cosine", betas, offset=offset)

    @classmethod
    def _from_betas(cls, kind: str, betas: torch.Tensor, **settings: float) -> NoiseSchedule:
        named = tuple(settings.items()) + (("num_timesteps", betas.numel()),)
        return cls(kind, named, betas, torch.cumprod(1 - betas, dim=0))

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> NoiseSchedule:
        """The inverse of `to_config`. Unknown kinds and keys, and wrong types, raise ConfigError."""
        allowed = {
            "sqrt_linear": {"beta_start", "beta_end", "num_timesteps"},
            "linear": {"beta_start", "beta_end", "num_timesteps"},
            "cosine": {"offset", "num_timesteps"},
        }
        kind = config.get("kind")
        if not isinstance(kind, str) or kind not in allowed:
            raise ConfigError(
                explain(
                    "unknown noise schedule",
                    got=repr(kind),
                    expected=" | ".join(allowed),
                    fix='Set "kind".',
                )
            )
        values: dict[str, float] = {}
        for key, value in config.items():
            if key == "kind":
                continue
            if key not in allowed[kind]:
                near = difflib.get_close_matches(key, allowed[kind], n=1)
                hint = f"Did you mean {near[0]!r}?" if near else "Remove the key."
                raise ConfigError(
                    explain(
                        f"unknown key in a {kind} noise schedule",
                        got=repr(key),
                        expected=" | ".join(sorted(allowed[kind])),
                        fix=hint,
                    )
                )
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(
                    explain(
                        f"noise schedule: {key} is not a number",
                        got=repr(value),
                        expected="a number",
                        fix="Correct the config.",
                    )
                )
            values[key] = value
        total = _check_num_timesteps(values.get("num_timesteps", 1000))
        if kind == "cosine":
            return cls.cosine(total, values.get("offset", 0.008))
        build = cls.sqrt_linear if kind == "sqrt_linear" else cls.linear
        return build(values.get("beta_start", 1e-4), values.get("beta_end", 2e-2), total)

    def to_config(self) -> dict[str, object]:
        """A plain dict (JSON-ready) from which `from_config` makes an equal schedule."""
        return {"kind": self.kind, **dict(self.settings)}

    @property
    def num_timesteps(self) -> int:
        """T, the number of training timesteps."""
        return self.betas.numel()

    def signal(self, t: torch.Tensor) -> torch.Tensor:
        """√ᾱ_t, float64, in the shape and on the device of t."""
        return self._at(t).sqrt()

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """√(1 − ᾱ_t), float64, in the shape and on the device of t."""
        return (1 - self._at(t)).sqrt()

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """signal(t)·x0 + sigma(t)·noise, in x0's dtype.

        Args:
            x0, noise: [*t.shape, ...], usually [B, F, L, C].
            t: timesteps 0..T−1, usually [B, F]: one per frame.
        """
        from ardiff_engine.ops.add_noise import add_noise

        _check_lead(x0, t)
        _check_same(x0, noise, "noise")
        rows, width = t.numel(), math.prod(x0.shape[t.ndim :])
        result = add_noise(
            x0.reshape(rows, width),
            self.signal(t).reshape(rows),
            self.sigma(t).reshape(rows),
            noise=noise.reshape(rows, width),
        )
        return result.noisy.reshape(x0.shape)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, prediction: str) -> torch.Tensor:
        """What a network of this parametrisation should output: x0, ε, or signal·ε − sigma·x0 ("v")."""
        check_prediction(prediction, VARIANCE_PRESERVING)
        _check_same(x0, noise, "noise")
        return _combine(x0, noise, t, *target_weights(self.signal(t), self.sigma(t), prediction))

    def to_x0(self, x_t: torch.Tensor, out: torch.Tensor, t: torch.Tensor, prediction: str) -> torch.Tensor:
        """x̂0 from the network output; shapes as in `add_noise`, computed in float32 (float64 for float64)."""
        check_prediction(prediction, VARIANCE_PRESERVING)
        _check_same(x_t, out, "network output")
        return _combine(x_t, out, t, *x0_weights(self.signal(t), self.sigma(t), prediction))

    def to_eps(self, x_t: torch.Tensor, out: torch.Tensor, t: torch.Tensor, prediction: str) -> torch.Tensor:
        """ε̂ from the network output; shapes as in `add_noise`, computed in float32 (float64 for float64)."""
        check_prediction(prediction, VARIANCE_PRESERVING)
        _check_same(x_t, out, "network output")
        return _combine(x_t, out, t, *eps_weights(self.signal(t), self.sigma(t), prediction))

    def _at(self, t: torch.Tensor) -> torch.Tensor:
        if t.is_floating_point():
            if not bool((t == t.floor()).all()):
                raise TensorError(
                    explain(
                        "timesteps between two entries of a discrete schedule",
                        got=f"{t.dtype} with fractions",
                        expected="whole numbers",
                        fix="Round them.",
                    )
                )
            t = t.long()
        if (
            t.device.type == "cpu"
            and t.numel()
            and not 0 <= int(t.min()) <= int(t.max()) < self.num_timesteps
        ):
            raise TensorError(
                explain(
                    "timestep out of range",
                    got=f"{int(t.min())}..{int(t.max())}",
                    expected=f"0..{self.num_timesteps - 1}",
                    fix="Timesteps index the training schedule.",
                )
            )
        return self.alphas_cumprod.to(t.device)[t]


def _combine(
    first: torch.Tensor, second: torch.Tensor, t: torch.Tensor, u: torch.Tensor, w: torch.Tensor
) -> torch.Tensor:
    _check_lead(first, t)
    compute = torch.float64 if first.dtype == torch.float64 else torch.float32
    shape = (*t.shape, *(1,) * (first.ndim - t.ndim))
    u, w = (c.to(first.device, compute).reshape(shape) for c in (u, w))
    return (u * first.to(compute) + w * second.to(compute)).to(first.dtype)


def _linspace(start: float, end: float, count: int) -> torch.Tensor:
    return torch.linspace(start, end, count, dtype=torch.float64, device="cpu")


def _check_lead(x: torch.Tensor, t: torch.Tensor) -> None:
    if x.shape[: t.ndim] != t.shape:
        raise TensorError(
            explain(
                "timesteps do not match the latents",
                got=f"t {tuple(t.shape)} for latents {tuple(x.shape)}",
                expected=f"t {tuple(x.shape[: t.ndim])}",
                fix="Give one timestep per frame: t [B, F] for latents [B, F, L, C].",
            )
        )


def _check_same(x: torch.Tensor, other: torch.Tensor, name: str) -> None:
    if x.shape != other.shape:
        raise TensorError(
            explain(
                f"{name} does not match the latents",
                got=tuple(other.shape),
                expected=tuple(x.shape),
                fix="Both need the same shape.",
            )
        )


def _check_num_timesteps(num_timesteps: float) -> int:
    """T as an int, also from a whole float (a config file may hold 1000.0)."""
    good = is_real(num_timesteps) and math.isfinite(num_timesteps) and 1 <= num_timesteps <= MAX_TIMESTEPS
    if not good or num_timesteps != int(num_timesteps):
        raise ConfigError(
            explain(
                "bad number of training timesteps",
                got=repr(num_timesteps),
                expected=f"a whole number from 1 to {MAX_TIMESTEPS}",
                fix="1000 is the usual choice.",
            )
        )
    return int(num_timesteps)


def _check_betas(beta_start: float, beta_end: float, num_timesteps: float) -> int:
    """The number of timesteps as an int."""
    numbers = is_real(beta_start) and is_real(beta_end)
    if not numbers or not 0 < beta_start <= beta_end < 1:
        raise ConfigError(
            explain(
                "bad beta range",
                got=f"{beta_start!r}..{beta_end!r}",
                expected="0 < beta_start <= beta_end < 1",
                fix="AR-Diffusion uses 1e-4..2e-2.",
            )
        )
    return _check_num_timesteps(num_timesteps)
