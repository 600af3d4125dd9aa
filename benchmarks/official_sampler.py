# SPDX-License-Identifier: Apache-2.0
"""The baseline: what the official AR-Diffusion sampler does (arXiv 2503.07418), in PyTorch only.

Every iteration feeds the context and all frames of the window, waiting and finished ones included, through
dense attention under a boolean mask, and computes every frame's modulation anew. A video longer than the
window slides it by one frame whenever a new frame starts, with positions counted from the window's start.

Written from the equations, not slowed down: one mask for all layers, RoPE as one complex product with a
table, no copies to and from a device. It shares sizes and weights with `ARDiffusionTransformer` (the names in
the state dict are the same), and no code.

One deviation, of the same cost: the official sampler runs its solver on finished frames too, which scales
them by 1.0000212 at every further iteration. Here they stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.models import ARDiffusionConfig

TIMESTEPS = 1000
FREQUENCIES = 128
BASE = 10000.0


class Attention(nn.Module):
    def __init__(self, config: ARDiffusionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        if config.positions == "rope":
            self.q_norm = nn.LayerNorm(config.head_dim, eps=1e-5)
            self.k_norm = nn.LayerNorm(config.head_dim, eps=1e-5)

    def forward(self, u: torch.Tensor, visible: torch.Tensor, turn: torch.Tensor | None) -> torch.Tensor:
        """u [T, D], visible bool [T, T], turn complex [T, head_dim / 2] (None: no RoPE) -> [T, D]."""
        q, k, v = self.qkv(u).unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        if turn is not None:
            q, k = rotate(self.q_norm(q), turn), rotate(self.k_norm(k), turn)
        o = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=visible)[0]
        return self.proj(o.transpose(0, 1).flatten(1))


class Mlp(nn.Module):
    def __init__(self, config: ARDiffusionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(u), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: ARDiffusionConfig) -> None:
        super().__init__()
        self.context = config.context_tokens
        self.frames = (config.num_frames, config.tokens_per_frame)
        self.replaces_residual = config.merge == "share_norm"
        self.attn = Attention(config)
        self.mlp = Mlp(config)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))

    def forward(
        self, h: torch.Tensor, embedded: torch.Tensor, visible: torch.Tensor, turn: torch.Tensor | None
    ) -> torch.Tensor:
        """h [context + F * L, D], embedded [F, D] = the timestep embedding of each frame."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(embedded)[:, None].chunk(
            6, dim=2
        )
        h, u = self.modulated(h, shift_a, scale_a)
        h = h + self.gated(self.attn(u, visible, turn), gate_a)
        h, u = self.modulated(h, shift_m, scale_m)
        return h + self.gated(self.mlp(u), gate_m)

    def modulated(
        self, h: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(residual, input of the sub-layer); the context is normalised, but not modulated."""
        normed = F.layer_norm(h, h.shape[1:], eps=1e-6)
        video = normed[self.context :].unflatten(0, self.frames) * (1 + scale) + shift
        u = torch.cat([normed[: self.context], video.flatten(0, 1)])
        return (normed if self.replaces_residual else h), u

    def gated(self, branch: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        video = branch[self.context :].unflatten(0, self.frames) * gate
        return torch.cat([branch[: self.context], video.flatten(0, 1)])


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        index = torch.arange(FREQUENCIES, dtype=torch.float32)
        angle = t[:, None] * torch.exp(-math.log(BASE) * index / FREQUENCIES)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))


class OfficialNetwork(nn.Module):
    """A window, always all frames: x [F, L, C], t [F], context [context_tokens, context_dim] -> [F, L, C]."""

    pos_embed: torch.Tensor
    visible: torch.Tensor
    turn: torch.Tensor | None

    def __init__(self, config: ARDiffusionConfig) -> None:
        super().__init__()
        if config.merge not in ("separate_norm", "share_norm"):
            raise ConfigError(
                explain(
                    "OfficialNetwork merge",
                    got=repr(config.merge),
                    expected="separate_norm or share_norm",
                    fix="Choose one of them.",
                )
            )
        self.config = config
        self.x_embedder = nn.Linear(config.channels, config.width)
        self.t_embedder = TimestepEmbedder(config.width)
        self.c_embedder = nn.Linear(config.context_dim, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = nn.Sequential(
            nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6),
            nn.Linear(config.width, config.channels),
        )
        video = config.num_frames * config.tokens_per_frame
        if config.positions == "absolute":
            self.register_buffer("pos_embed", torch.empty(1, video, config.width))
        self.register_buffer("visible", visible_tokens(config), persistent=False)
        self.turn = (
            turns(config.context_tokens + video, config.head_dim) if config.positions == "rope" else None
        )

    @classmethod
    def sharing(cls, config: ARDiffusionConfig, weights: Mapping[str, torch.Tensor]) -> OfficialNetwork:
        """With the weights of `ARDiffusionTransformer(config).state_dict()`."""
        network = cls(config)
        # The trained context is handed in with each call here.
        own = {name: value for name, value in weights.items() if name != "context_embedding"}
        network.load_state_dict(own, strict=True)
        return network.eval()

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        video = self.x_embedder(x).flatten(0, 1)
        if self.config.positions == "absolute":
            video = video + self.pos_embed[0]
        h = torch.cat([self.c_embedder(context), video])
        embedded = self.t_embedder(t)
        for block in self.blocks:
            h = block(h, embedded, self.visible, self.turn)
        return self.final_layer(h)[self.config.context_tokens :].reshape(x.shape)


class OfficialSampler:
    """AD schedule and DDIM with eta 0 over an `OfficialNetwork` that predicts x0; guidance scale 1."""

    def __init__(self, network: OfficialNetwork, num_steps: int = 50) -> None:
        if num_steps < 1 or TIMESTEPS % num_steps or num_steps == TIMESTEPS:
            raise ConfigError(
                explain(
                    "OfficialSampler num_steps",
                    got=num_steps,
                    expected=f"a proper divisor of {TIMESTEPS}",
                    fix="The official code takes wrong numbers of steps otherwise.",
                )
            )
        self.network = network
        self.window = network.config.num_frames
        self.num_steps = num_steps
        betas = torch.linspace(math.sqrt(1e-4), math.sqrt(2e-2), TIMESTEPS, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, 0)
        ascending = torch.arange(0, TIMESTEPS, TIMESTEPS // num_steps) + 1
        # Row k: a frame that is at step k after the iteration, so row 0 is a waiting one, shown at t = 999.
        fed = torch.cat([ascending, torch.tensor([TIMESTEPS - 1])]).flip(0)
        # The official code rounds the reached levels, and only them, before it takes roots.
        reached = torch.cat([alphas[:1], alphas[ascending[:-1]], alphas[-1:]]).flip(0).float()
        self.timesteps = fed.float()
        self.root_alphas = alphas[fed].sqrt().float()
        self.root_noise_ratio = (1 / alphas[fed] - 1).sqrt().float()
        self.root_reached = reached.sqrt()
        self.root_reached_noise = (1 - reached).sqrt()

    def iterations(self, frames: int, lag: int) -> int:
        return self.num_steps + (frames - 1) * lag

    def ticks(
        self,
        noise: torch.Tensor,
        context: torch.Tensor,
        lag: int,
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield all latents [frames, L, C] after each of the iterations start + 1 .. stop (default: all).

        noise [frames, L, C]: where every frame starts from. With start > 0 the values are not those of the
        video, only the work is: for timing a slice of a long one.
        """
        frames = noise.shape[0]
        self._check(frames, lag)
        x = noise.clone()
        last = self.iterations(frames, lag) if stop is None else stop
        for n in range(start + 1, last + 1):
            # The official loop moves the window by one when the frame behind it is updated for the first
            # time, which for frame e is iteration e * lag + 1.
            end = self.window if frames == self.window else min(frames, max(self.window, (n - 1) // lag + 1))
            index = torch.arange(end - self.window, end)
            step = (n - index * lag).clamp(0, self.num_steps)
            updates = step != (n - 1 - index * lag).clamp(0, self.num_steps)
            x[index] = self._advance(x[index], step, updates, context)
            yield x

    def sample(self, noise: torch.Tensor, context: torch.Tensor, lag: int) -> torch.Tensor:
        """Noise [frames, L, C] -> clean latents of the same shape."""
        x = noise
        for x in self.ticks(noise, context, lag):  # noqa: B007
            pass
        return x

    @torch.no_grad()
    def _advance(
        self, x: torch.Tensor, step: torch.Tensor, updates: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        x0 = self.network(x, self.timesteps[step], context)
        alpha, ratio, reached, reached_noise = (
            row[step][:, None, None]
            for row in (self.root_alphas, self.root_noise_ratio, self.root_reached, self.root_reached_noise)
        )
        eps = (x / alpha - x0) / ratio
        return torch.where(updates[:, None, None], reached * x0 + reached_noise * eps, x)

    def _check(self, frames: int, lag: int) -> None:
        if not 0 <= lag <= self.num_steps:
            raise ConfigError(
                explain(
                    "lag", got=lag, expected=f"0..{self.num_steps}", fix="Stay within the solver's steps."
                )
            )
        if frames < self.window or (frames > self.window and self.window * lag < self.num_steps):
            raise ConfigError(
                explain(
                    "frames",
                    got=f"{frames} with lag {lag}",
                    expected=f"{self.window}, or more if {self.window} * lag >= {self.num_steps} steps",
                    fix="Otherwise frames leave the official window unfinished, and shorter videos crash it.",
                )
            )


def visible_tokens(config: ARDiffusionConfig) -> torch.Tensor:
    """bool [T, T], row = query. Frames see the context and no later frame; the mask rules the context."""
    context, length = config.context_tokens, config.tokens_per_frame
    frame = torch.arange(config.num_frames).repeat_interleave(length)
    visible = torch.ones(context + len(frame), context + len(frame), dtype=torch.bool)
    if config.mask != "none":
        visible[context:, context:] = frame[:, None] >= frame[None, :]
    if config.mask == "temporal_causal":
        visible[:context, context:] = False
    return visible


def turns(tokens: int, head_dim: int) -> torch.Tensor:
    """complex64 [tokens, head_dim / 2]: RoPE's rotation of each interleaved pair at each position."""
    theta = BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * theta
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(y: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)
