# SPDX-License-Identifier: Apache-2.0
"""The opponent of bench_wan.py: the algorithm of the official causal pipelines in plain PyTorch.

What a good PyTorch programmer writes: torch.nn.functional and scaled_dot_product_attention over a contiguous
cache of rotated keys, with heads first; the prompt's keys and values computed once; positions as one complex
product with a table in complex64 (the official code does it in complex128). A block takes a forward per step,
and one more of its clean frames. It shares weights with `WanTransformer`, and no code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ardiff_engine.models.wan import WanTransformer

BASE = 10000.0


class PlainWan:
    def __init__(self, model: WanTransformer, size: tuple[int, int], block: int, window: int) -> None:
        """size: of the latents. block, window: in frames."""
        self.model, self.block, self.window = model, block, window
        config = model.config
        self.rows, self.columns = size[0] // config.patch[1], size[1] // config.patch[2]
        self.tokens = self.rows * self.columns
        shape = (config.depth, 1, config.heads, window * self.tokens, config.width // config.heads)
        self.k, self.v = torch.zeros(shape), torch.zeros(shape)
        self.held = 0  # frames in the cache
        self.first = 0  # of the block at work

    @torch.no_grad()
    def read(self, text: Tensor) -> None:
        """The prompt [rows, text_dim]."""
        embedded = self.model.text_embedding(
            F.pad(text, (0, 0, 0, self.model.config.text_tokens - len(text)))
        )
        self.text = []
        for layer in self.model.blocks:
            cross = layer.cross_attn
            k = F.rms_norm(cross.k(embedded), embedded.shape[-1:], cross.norm_k.weight, cross.norm_k.eps)
            self.text.append((self._heads(k), self._heads(cross.v(embedded))))

    @torch.no_grad()
    def next_block(self, x: Tensor, timesteps: list[float], sigmas: list[float]) -> Tensor:
        """Noise [block, C, H, W] to clean latents: Euler steps from sigma to sigma, then the clean pass."""
        self._make_room()
        for t, sigma, after in zip(timesteps, sigmas[:-1], sigmas[1:], strict=True):
            x = x + (after - sigma) * self.call(x, t)
        self._keep(x)
        return x

    @torch.no_grad()
    def given(self, x: Tensor) -> None:
        """A clean block [block, C, H, W] that the next ones go on from."""
        self._make_room()
        self._keep(x)

    def _make_room(self) -> None:
        if self.held + self.block <= self.window:
            self.held += self.block
            return
        moved = self.block * self.tokens
        for cache in (self.k, self.v):
            cache[..., :-moved, :] = cache[..., moved:, :].clone()

    def _keep(self, x: Tensor) -> None:
        self.call(x, 0.0)
        self.first += self.block

    @torch.no_grad()
    def call(self, x: Tensor, t: float) -> Tensor:
        model, config = self.model, self.model.config
        seen, own = self.held * self.tokens, self.block * self.tokens
        turn = self._turn()
        h = model.patch_embedding(x.transpose(0, 1)[None]).flatten(2).transpose(1, 2)
        slow = BASE ** (
            -torch.arange(config.frequency_dim // 2, dtype=torch.float64) / (config.frequency_dim // 2)
        )
        embedding = model.time_embedding(torch.cat([(t * slow).cos(), (t * slow).sin()]).float())
        time = model.time_projection(embedding).unflatten(0, (6, -1))
        for number, layer in enumerate(model.blocks):
            attn, cross = layer.self_attn, layer.cross_attn
            shift1, scale1, gate1, shift2, scale2, gate2 = (layer.modulation[0] + time).unbind(0)
            u = F.layer_norm(h, h.shape[-1:], eps=config.eps) * (1 + scale1) + shift1
            q = F.rms_norm(attn.q(u), u.shape[-1:], attn.norm_q.weight, config.eps)
            k = F.rms_norm(attn.k(u), u.shape[-1:], attn.norm_k.weight, config.eps)
            cached_k, cached_v = self.k[number, :, :, :seen], self.v[number, :, :, :seen]
            cached_k[:, :, seen - own :] = rotate(self._heads(k), turn)
            cached_v[:, :, seen - own :] = self._heads(attn.v(u))
            o = F.scaled_dot_product_attention(rotate(self._heads(q), turn), cached_k, cached_v)
            h = h + gate1 * attn.o(o.transpose(1, 2).flatten(2))
            u = F.layer_norm(h, h.shape[-1:], layer.norm3.weight, layer.norm3.bias, config.eps)
            q = F.rms_norm(cross.q(u), u.shape[-1:], cross.norm_q.weight, config.eps)
            o = F.scaled_dot_product_attention(self._heads(q), *self.text[number])
            h = h + cross.o(o.transpose(1, 2).flatten(2))
            u = F.layer_norm(h, h.shape[-1:], eps=config.eps) * (1 + scale2) + shift2
            h = h + gate2 * layer.ffn(u)
        shift, scale = (model.head.modulation[0] + embedding).unbind(0)
        out = model.head.head(F.layer_norm(h, h.shape[-1:], eps=config.eps) * (1 + scale) + shift)
        down, across = config.patch[1:]
        out = out.view(self.block, self.rows, self.columns, down, across, -1)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(self.block, -1, self.rows * down, self.columns * across)

    def _heads(self, x: Tensor) -> Tensor:
        """[..., T, width] -> [1, heads, T, head_dim]"""
        return x.reshape(1, x.shape[-2], self.model.config.heads, -1).transpose(1, 2)

    def _turn(self) -> Tensor:
        """complex64 [tokens of the block, head_dim / 2]"""
        pairs = self.model.config.width // self.model.config.heads // 2
        side = pairs // 3
        counts = (pairs - 2 * side, side, side)
        axes = (
            torch.arange(self.first, self.first + self.block),
            torch.arange(self.rows),
            torch.arange(self.columns),
        )
        angles = [
            axis.double()[:, None] * BASE ** (-torch.arange(n, dtype=torch.float64) / n)
            for axis, n in zip(axes, counts, strict=True)
        ]
        shape = (self.block, self.rows, self.columns)
        whole = torch.cat(
            [
                angles[0][:, None, None].expand(*shape, -1),
                angles[1][None, :, None].expand(*shape, -1),
                angles[2][None, None, :].expand(*shape, -1),
            ],
            dim=-1,
        ).flatten(0, 2)
        return torch.polar(torch.ones_like(whole), whole).to(torch.complex64)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)
