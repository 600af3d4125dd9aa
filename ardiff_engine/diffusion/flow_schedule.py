# SPDX-License-Identifier: Apache-2.0
"""The straight path from data to noise (flow matching, Lipman et al. 2023; rectified flow, Liu et al. 2023):

    x_t = (1 − σ)·x0 + σ·ε,    the network predicts the velocity ε − x0 ("flow").

σ comes from a table of T timesteps, shifted towards noise for large pictures (Esser et al. 2024):

    u_j = 1 − j/T,    σ_j = s·u_j / (1 + (s − 1)·u_j),    t_j = T·σ_j,    j = 0 .. T − 1.

A timestep is a real number in 0..T; its σ is that of the nearest table entry, the noisier one of two.
So σ(0) is the last entry, which is small and not 0, as in the models of the Wan family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ardiff_engine.arguments import number
from ardiff_engine.diffusion.prediction import STRAIGHT, check_prediction, target_weights, x0_weights
from ardiff_engine.diffusion.real import is_real
from ardiff_engine.errors import ConfigError, TensorError


@dataclass(frozen=True, slots=True)
class FlowSchedule:
    """shift: s > 0; 1 is uniform. Wan: 5 (Self-Forcing, LongLive), 8 (CausVid), 3 at low resolution.

    Attributes:
        sigmas: float64 [T], float32 values, falling; the first is 1.
        timesteps: float64 [T], T·σ, rounded to float32.
    """

    shift: float = 1.0
    num_timesteps: int = 1000
    sigmas: torch.Tensor = field(init=False, repr=False, compare=False)
    timesteps: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        number("shift", self.shift)
        if not (is_real(self.shift) and math.isfinite(self.shift) and self.shift > 0):
            raise ConfigError(
                f"FlowSchedule: shift is {self.shift!r}; expected a number > 0, 1 for no shift."
            )
        total = self.num_timesteps
        if isinstance(total, bool) or not isinstance(total, int) or not 1 <= total <= 1_000_000:
            raise ConfigError(
                f"FlowSchedule: num_timesteps is {total!r}; expected a whole number in 1..1000000."
            )
        # Rounded where the official float32 tables are: a step list may name their entries.
        u = torch.linspace(1.0, 0.0, total + 1, dtype=torch.float32, device="cpu")[:-1]
        shift = float(self.shift)
        sigmas = shift * u / (1 + (shift - 1) * u)
        object.__setattr__(self, "sigmas", sigmas.double())
        object.__setattr__(self, "timesteps", (sigmas * total).double())

    def shifted(self, u: torch.Tensor) -> torch.Tensor:
        """σ at u in 0..1, in the dtype of u: the formula without the table."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def warp(self, steps: Sequence[float]) -> tuple[float, ...]:
        """A step list in unshifted timesteps, as papers give it, to timesteps of this schedule.

        n becomes t_(T − n), and 0 stays 0: [1000, 750, 500, 250] with shift 5 is 1000, 937.5, 833.33, 625.
        ConfigError for anything but whole numbers in 0..T.
        """
        for n in steps:
            if not is_real(n) or n != int(n) or not 0 <= n <= self.num_timesteps:
                raise ConfigError(f"warp: step {n!r}; expected whole numbers in 0..{self.num_timesteps}.")
        table = [*self.timesteps.tolist(), 0.0]
        return tuple(table[self.num_timesteps - int(n)] for n in steps)

    def nearest(self, t: torch.Tensor) -> torch.Tensor:
        """int64, like t: the table entry nearest to each timestep. TensorError: not in 0..T."""
        t = t.double()
        if t.device.type == "cpu" and t.numel() and not bool(((t >= 0) & (t <= self.num_timesteps)).all()):
            raise TensorError(f"timesteps must lie in 0..{self.num_timesteps}; got {t.min()} to {t.max()}.")
        rising = self.timesteps.flip(0).to(t.device)
        # Of the two neighbours the nearer one; on a tie the later in `rising`, which is the noisier.
        after = torch.searchsorted(rising, t.contiguous()).clamp(1, len(rising) - 1)
        if len(rising) == 1:
            return torch.zeros_like(after)
        nearer = torch.where(t - rising[after - 1] < rising[after] - t, after - 1, after)
        return len(rising) - 1 - nearer

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """σ of the nearest table entry, float64, in the shape and on the device of t."""
        return self.sigmas.to(t.device)[self.nearest(t)]

    def signal(self, t: torch.Tensor) -> torch.Tensor:
        """1 − σ, likewise."""
        return 1 - self.sigma(t)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """(1 − σ)·x0 + σ·noise, in x0's dtype. x0, noise: [*t.shape, ...]; t: usually [B, F]."""
        sigma = self.sigma(t)
        return _combine(x0, noise, 1 - sigma, sigma)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, prediction: str) -> torch.Tensor:
        """What the network should output: x0, ε, or ε − x0 ("flow")."""
        check_prediction(prediction, STRAIGHT)
        return _combine(x0, noise, *target_weights(self.signal(t), self.sigma(t), prediction))

    def to_x0(self, x_t: torch.Tensor, out: torch.Tensor, t: torch.Tensor, prediction: str) -> torch.Tensor:
        """x̂0 from the network output; shapes as in `add_noise`."""
        check_prediction(prediction, STRAIGHT)
        return _combine(x_t, out, *x0_weights(self.signal(t), self.sigma(t), prediction))

    def loss_weights(self) -> torch.Tensor:
        """float64 [T]: exp(−2((t − T/2)/T)²), less its minimum, scaled to a sum of T (official training)."""
        t, total = self.timesteps, self.num_timesteps
        bell = torch.exp(-2 * ((t - total / 2) / total) ** 2)
        bell = bell - bell.min()
        return bell * (total / bell.sum())


def _combine(first: torch.Tensor, second: torch.Tensor, u: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    if first.shape != second.shape or first.shape[: u.ndim] != u.shape:
        raise TensorError(
            f"latents {list(first.shape)} and {list(second.shape)} with timesteps {list(u.shape)}: expected "
            "two of one shape, which begins with that of the timesteps (one for each frame)."
        )
    compute = torch.float64 if first.dtype == torch.float64 else torch.float32
    shape = (*u.shape, *(1,) * (first.ndim - u.ndim))
    u, w = (c.to(first.device, compute).reshape(shape) for c in (u, w))
    return (u * first.to(compute) + w * second.to(compute)).to(first.dtype)
