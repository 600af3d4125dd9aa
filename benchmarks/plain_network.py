# SPDX-License-Identifier: Apache-2.0
"""The opponent of bench_transformer.py: the AR-Diffusion network in plain PyTorch, with the same weights.

What a good PyTorch programmer writes: torch.nn.functional and scaled_dot_product_attention on contiguous K
and V, modulation rows computed beforehand, RoPE as one complex product with a table, views in place of
copies. `temporal_causal`, `separate_norm`, RoPE positions. It shares weights with `ARDiffusionTransformer`,
and no code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ardiff_engine.models import ARDiffusionTransformer
from ardiff_engine.models.ar_diffusion.block import Block

BASE = 10000.0


class PlainNetwork:
    def __init__(self, model: ARDiffusionTransformer) -> None:
        self.model = model
        config = model.config
        self.heads, self.context, self.length = config.heads, config.context_tokens, config.tokens_per_frame
        tokens = self.context + config.num_frames * self.length
        rate = BASE ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
        angle = torch.arange(tokens, dtype=torch.float64)[:, None] * rate
        self.turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
        frame = (torch.arange(tokens) - self.context).div(self.length, rounding_mode="floor").clamp_min(-1)
        self.visible = frame[:, None] >= frame[None, :]

    def tick(
        self, x: torch.Tensor, modulation: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """The last N frames of a full window: x [N, L, C], modulation [layers, N, 6, D]; k, v [layers, heads,
        tokens, head_dim] hold what lies before them, and receive theirs."""
        frames, tokens = x.shape[0], x.shape[0] * self.length
        before = k.shape[2] - tokens
        mask = None if frames == 1 else self.visible[before:]
        h = linear(self.model.x_embedder, x)
        for layer, block in enumerate(self.model.layers):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation[layer][:, :, None].unbind(1)
            u = normed(h) * (1 + scale_a) + shift_a
            q, keys, values = self._heads(block, u.reshape(1, tokens, -1), before)
            k[layer, :, before:], v[layer, :, before:] = keys[0], values[0]
            o = F.scaled_dot_product_attention(q, k[layer][None], v[layer][None], attn_mask=mask)
            h = h + gate_a * linear(block.attn.proj, o.transpose(1, 2).reshape(h.shape))
            u = normed(h) * (1 + scale_m) + shift_m
            h = h + gate_m * mlp(block, u)
        return linear(self.model.final_layer[1], normed(h))

    def clips(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Whole clips, differentiable: x [B, F, L, C], t [B, F], context [B, context_tokens, context_dim]."""
        clips, frames = t.shape
        video = linear(self.model.x_embedder, x).flatten(1, 2)
        h = torch.cat([linear(self.model.c_embedder, context), video], dim=1)
        embedded = F.silu(self.model.t_embedder(t.reshape(-1)))

        def on_video(h: torch.Tensor, change) -> torch.Tensor:
            context, video = h.split([self.context, frames * self.length], dim=1)
            return torch.cat([context, change(video.unflatten(1, (frames, -1))).flatten(1, 2)], dim=1)

        for block in self.model.layers:
            rows = linear(block.adaLN_modulation[1], embedded).view(clips, frames, 1, 6, -1)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = rows.unbind(3)
            u = on_video(normed(h), lambda n, a=scale_a, b=shift_a: n * (1 + a) + b)
            q, k, v = self._heads(block, u, 0)
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=self.visible[: h.shape[1], : h.shape[1]])
            branch = linear(block.attn.proj, o.transpose(1, 2).flatten(2))
            h = h + on_video(branch, lambda b, g=gate_a: g * b)
            u = on_video(normed(h), lambda n, a=scale_m, b=shift_m: n * (1 + a) + b)
            h = h + on_video(mlp(block, u), lambda b, g=gate_m: g * b)
        out = linear(self.model.final_layer[1], normed(h[:, self.context :]))
        return out.unflatten(1, (frames, -1))

    def _heads(
        self, block: Block, u: torch.Tensor, first: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """u [B, T, D] at positions first .. -> q, k, v [B, heads, T, head_dim]."""
        q, k, v = linear(block.attn.qkv, u).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        turn = self.turn[first : first + u.shape[1]]
        q_norm, k_norm = block.attn.q_norm, block.attn.k_norm
        return rotate(q_norm(q), turn), rotate(k_norm(k), turn), v


def linear(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight, layer.bias)


def normed(h: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


def mlp(block: Block, u: torch.Tensor) -> torch.Tensor:
    return linear(block.mlp.fc2, F.gelu(linear(block.mlp.fc1, u), approximate="tanh"))


def rotate(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)
