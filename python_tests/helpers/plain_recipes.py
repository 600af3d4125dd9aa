# SPDX-License-Identifier: Apache-2.0
"""The distillation recipes in plain PyTorch, on one plain table of a flow; of the engine's, layers alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.models.wan.layers import dense_attention
from ardiff_engine.models.wan.positions import rotated, rotation, token_positions

Network = Callable[[Tensor, Tensor], Tensor]
"""x [B, F, ...] at timesteps t [B, F] -> velocity"""


def table(shift: float, total: int = 1000) -> Tensor:
    """σ of level 0, the cleanest, .. total − 1; float64, rounded to float32 as official tables are."""
    u = torch.linspace(1.0, 0.0, total + 1, dtype=torch.float32)[:-1]
    return (shift * u / (1 + (shift - 1) * u)).double().flip(0)


def of(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.reshape(*sigma.shape, *[1] * (x.ndim - sigma.ndim))


def times(sigma: Tensor) -> Tensor:
    return (sigma.float() * 1000).double()


def x0(network: Network, x: Tensor, sigma: Tensor) -> Tensor:
    return x - of(sigma, x) * network(x, times(sigma))


def guided(told: Network, null: Network, scale: float) -> Network:
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v = null(x, t)
        return v + scale * (told(x, t) - v)

    return velocity


def consistency(
    student: Network, average: Network, teacher: Network, frames: Tensor, noise: Tensor, levels: Tensor,
    rising: list[int], sigmas: Tensor,
) -> Tensor:  # fmt: skip
    """[B]; levels [B, F], of the grid `rising`."""
    lower = torch.full_like(levels, -1)
    for own in rising:
        lower[levels > own] = own
    sigma = sigmas[levels]
    after = torch.where(lower < 0, 0.0, sigmas[lower])
    x = (1 - of(sigma, frames)) * frames + of(sigma, frames) * noise
    with torch.no_grad():
        moved = x + of(after - sigma, x) * teacher(x, times(sigma))
        at = sigmas[lower.clamp(min=0)]
        target = torch.where(of(lower < 0, x), moved, x0(average, moved, at))
    return (x0(student, x, sigma) - target).square().flatten(1).mean(1)


def ode(
    student: Network, teacher: Network, noise: Tensor, levels: Tensor, walk: list[int], sigmas: Tensor
) -> Tensor:
    """[B]; walk: falling levels, all those of `levels` among them."""
    x, point = noise, torch.zeros_like(noise)
    with torch.no_grad():
        for level, after in zip(walk, [*walk[1:], None], strict=True):
            point = torch.where(of(levels == level, x), x, point)
            sigma = sigmas[torch.full_like(levels, level)]
            next_sigma = 0.0 if after is None else sigmas[after]
            x = x + of(next_sigma - sigma, x) * teacher(x, times(sigma))
    return (x0(student, point, sigmas[levels]) - x).square().flatten(1).mean(1)


def dmd(x: Tensor, real: Network, fake: Network, noise: Tensor, sigma: Tensor) -> Tensor:
    """[B]; sigma [B, F]"""
    with torch.no_grad():
        noisy = (1 - of(sigma, x)) * x + of(sigma, x) * noise
        wanted, own = x0(real, noisy, sigma), x0(fake, noisy, sigma)
        gap = (x - wanted).abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
        pull = (own - wanted) / gap
    # A surrogate whose gradient at x is pull over the number of values.
    return (x * pull).flatten(1).mean(1)


def judged(weights: list[Tensor], clips: Tensor) -> Tensor:
    """Logits of three convolutions over frames, rows and columns; weights and biases in turn."""
    x = clips.movedim(2, 1)
    for layer in range(3):
        x = torch.nn.functional.conv3d(x, weights[2 * layer], weights[2 * layer + 1], padding=1)
        x = torch.where(x > 0, x, 0.2 * x) if layer < 2 else x
    return x


class Cached:
    """A Wan transformer block after block, with a list of keys and values for each layer."""

    def __init__(self, model: WanTransformer, text: Tensor) -> None:
        self.model, self.text = model, text
        self.past: list[tuple[Tensor, Tensor] | None] = [None] * len(model.blocks)

    def __call__(self, x: Tensor, t: Tensor, first: int, keep: bool = False) -> Tensor:
        model = self.model
        rows, columns = x.shape[3] // 2, x.shape[4] // 2
        places = token_positions(torch.arange(first, first + x.shape[1]), rows, columns)
        cosine, sine = rotation(places, model.config.head_dim)
        h, (embedding, time) = model.embedded(x), model.time_rows(t[..., None])
        prompt = model.prompt_rows(self.text)
        for number, layer in enumerate(model.blocks):

            def attend(q: Tensor, k: Tensor, v: Tensor, number: int = number) -> Tensor:
                k, past = rotated(k, cosine, sine), self.past[number]
                if past is not None:
                    k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
                if keep:
                    self.past[number] = (k.detach(), v.detach())
                return dense_attention(rotated(q, cosine, sine), k, v)

            h = layer(h, time, attend, prompt, None)
        return model.unpatched(model.head(h, embedding), rows, columns)


def roll_out(
    model: WanTransformer,
    text: Tensor,
    noise: Tensor,
    eps: Tensor,
    ends: list[int],
    sigmas: Tensor,
    block: int,
) -> Tensor:
    """[B, F, ...] with a gradient through the last step of each block. eps [B, F, steps, ...]; ends [B]."""
    videos = []
    for clip, end in enumerate(ends):
        network, frames = Cached(model, text[clip : clip + 1]), []
        for first in range(0, noise.shape[1], block):
            own, call = slice(first, first + block), partial(network, first=first)
            x = noise[clip : clip + 1, own]
            for step in range(end + 1):
                with torch.set_grad_enabled(step == end):
                    out = x0(call, x, sigmas[step].expand(1, block))
                if step < end:
                    x = (1 - sigmas[step + 1]) * out + sigmas[step + 1] * eps[clip : clip + 1, own, step]
            with torch.no_grad():
                call(out, torch.zeros(1, block, dtype=out.dtype), keep=True)
            frames.append(out)
        videos.append(torch.cat(frames, 1))
    return torch.cat(videos)
