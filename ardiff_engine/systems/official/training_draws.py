# SPDX-License-Identifier: Apache-2.0
"""What systems draw while they are trained, in the order of their own code's random numbers. The engine's own
training draws by the same rules, and so that a sample depends on its number alone: `training.timesteps`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Training:
    """name: of the system. trace: its draws, as arrays, the same at every call."""

    name: str
    trace: Callable[[], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """timestep: int64 [D, B, F]. per_frame: bool [D], whether the frames of that draw have their own."""

    timestep: Integers
    per_frame: npt.NDArray[np.bool_]


def shared_or_not(
    draws: int, batch: int, frames: int, probability: float, seed: int, total: int = 1000
) -> Shared:
    """One timestep for all frames of a clip, or, with this probability and then for the whole batch, one for
    each of them. Each draw begins with the noise of the batch."""
    source = torch.Generator().manual_seed(seed)
    timesteps, coins = [], []
    for _ in range(draws):
        torch.randn(batch, frames, generator=source)
        drawn = torch.randint(total, (batch, 1), generator=source).expand(-1, frames)
        coins.append(bool(torch.rand(1, generator=source) < probability))
        if coins[-1]:
            drawn = torch.randint(total, (batch, frames), generator=source)
        timesteps.append(drawn)
    return Shared(torch.stack(timesteps).numpy(), np.array(coins))


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """prefix_choices: int64, of how many clean frames a clip may begin with. prefix_length: int64 [D], those
    that are drawn, all with equal chance."""

    prefix_choices: Integers
    prefix_length: Integers

    @staticmethod
    def timestep(prefix: int, frames: int, timestep: int) -> Integers:
        """int64 [F]: what frames are told: 0 in the prefix, also where it has noise."""
        return np.where(np.arange(frames) < prefix, 0, timestep)

    @staticmethod
    def visible(prefix: int, frames: int, partial: bool) -> npt.NDArray[np.bool_]:
        """bool [F, F]: frames see earlier ones; partial: those after the prefix see all."""
        causal = np.tri(frames, dtype=np.bool_)
        return causal | (partial & (np.arange(frames) >= prefix))[:, None]


def prefixes(draws: int, least: int, block: int, frames: int, seed: int) -> Prefixes:
    """Lengths from `least` on, a block apart, that leave a block of the frames to be made."""
    choices = range(least, frames - block + 1, block)
    source = random.Random(seed)
    return Prefixes(np.array(choices), np.array([source.choice(choices) for _ in range(draws)]))


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Of K forwards over a window of W frames.

    context_frame, context_depth: int64 [K, W + 1], frames of the window and the new one, and how often each
        has been predicted; 0: data. target_frame, target_depth: int64 [K, W], what each one predicts.
    iteration_forwards_steps: int64 [3, 3]: for three iterations of training, how many forwards and steps of
        the optimiser they take.
    """

    context_frame: Integers
    context_depth: Integers
    target_frame: Integers
    target_depth: Integers
    iteration_forwards_steps: Integers


def chained(window: int, forwards: int, every: int) -> Chain:
    """The window of a forward is what the one before has predicted, and one new frame. Each of `every`
    iterations is such a chain, of which every forward takes a step; the others have one forward."""
    places, row = np.arange(window + 1), np.arange(forwards)[:, None]
    frame, depth = places + row, np.minimum(row, window - places)
    counts = [(i, *[forwards if i % every == 0 else 1] * 2) for i in (0, 1, every)]
    return Chain(frame, depth, frame[:, 1:], depth[:, 1:], np.array(counts))


def estimated(x0: npt.ArrayLike, noise: npt.ArrayLike, t: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """One-step estimates x_t + (1 − t)·v of the toy network, with t from 0, noise, to 1, clean: what a chain
    goes on with. All of one shape."""
    x, eps, at = (np.asarray(own, np.float64) for own in (x0, noise, t))
    mixed = at * x + (1 - at) * eps
    return np.asarray(mixed + (1 - at) * (0.3 * mixed + 0.05))
