# SPDX-License-Identifier: Apache-2.0
"""The block of the AR-Diffusion transformer and the embedding of its timesteps, with the official names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import linear

from ardiff_engine import ops
from ardiff_engine.errors import ConfigError
from ardiff_engine.models.ar_diffusion.config import ARDiffusionConfig
from ardiff_engine.models.dit import native_block
from ardiff_engine.models.dit.block_spec import Attention as AttentionSpec
from ardiff_engine.models.dit.block_spec import BlockSpec, Branch, HeadNorm, Heads
from ardiff_engine.models.dit.block_spec import Mlp as MlpSpec
from ardiff_engine.models.dit.paged_attention import QK_NORM_EPS, QKWeights
from ardiff_engine.models.dit.row_linear import RowLinear
from ardiff_engine.ops.backend import on_native_cpu

TIMESTEP_FREQUENCIES = 128
LAYER_NORM_EPS = 1e-6

Attend = Callable[[torch.Tensor, QKWeights], torch.Tensor]
"""qkv [T, 3 D] and the weights of the QK-norm -> the heads' outputs [T, D]."""


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * TIMESTEP_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    @staticmethod
    def frequencies(t: torch.Tensor) -> torch.Tensor:
        """[M] -> [M, 256]: [cos(t f_i), sin(t f_i)], f_i = exp(-ln(10000) i / 128)."""
        # In float32 and in this order, as the official code does: at t = 999 another rounding is off by 1e-4
        # radians.
        index = torch.arange(TIMESTEP_FREQUENCIES, dtype=torch.float32, device=t.device)
        angle = t.float()[:, None] * torch.exp(-math.log(10000.0) * index / TIMESTEP_FREQUENCIES)
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.frequencies(t).to(next(self.mlp.parameters()).dtype))


class Attention(nn.Module):
    """The projections around attention; attention itself is `ops.frame_attention` over pages."""

    def __init__(self, width: int, head_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.qkv = RowLinear(width, 3 * width)
        self.proj = RowLinear(width, width)
        self.q_norm = nn.LayerNorm(head_dim, eps=QK_NORM_EPS) if qk_norm else None
        self.k_norm = nn.LayerNorm(head_dim, eps=QK_NORM_EPS) if qk_norm else None

    def qk_weights(self) -> QKWeights:
        """(q weight, q bias, k weight, k bias) of the QK-norm; all None without it."""
        if self.q_norm is None or self.k_norm is None:
            return None, None, None, None
        return self.q_norm.weight, self.q_norm.bias, self.k_norm.weight, self.k_norm.bias


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = RowLinear(width, hidden)
        self.fc2 = RowLinear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: ARDiffusionConfig) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.head_dim, qk_norm=config.positions == "rope")
        self.mlp = Mlp(config.width, config.mlp_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))
        self.head_dim = config.head_dim
        self.replaces_residual = config.merge in ("share_norm", "sharenorm_shift_first_t")

    @property
    def linears(self) -> tuple[RowLinear, RowLinear, RowLinear, RowLinear]:
        return self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2

    @property
    def as_built(self) -> bool:
        """Whether calling the parts as modules would run the code of this file and nothing else."""
        if type(self.attn) is not Attention or type(self.mlp) is not Mlp or native_block.all_are_hooked():
            return False
        if any(type(layer) is not RowLinear for layer in self.linears):
            return False
        return not any(native_block.is_hooked(part) for part in (self.attn, self.mlp, *self.linears))

    def spec(self) -> BlockSpec:
        """The same block for `NativeBlocks`. ConfigError if calling its parts would run other code."""
        if not self.as_built:
            raise ConfigError(
                "a block has hooks, or parts of another class. Remove them (merge LoRA into the weights), or "
                "set `model.as_modules = True` to have blocks called as modules, which is slower."
            )
        attn, width = self.attn, self.attn.proj.in_features
        dim = self.head_dim
        q_weight, q_bias, k_weight, k_bias = attn.qk_weights()
        norm: HeadNorm = "none" if attn.q_norm is None else "layer"
        heads = Heads(width // dim, width // dim, dim, norm, QK_NORM_EPS, q_weight, q_bias, k_weight, k_bias)
        first, second = (Branch(eps=LAYER_NORM_EPS, shift=n, scale=n + 1, gate=n + 2) for n in (0, 3))
        return BlockSpec(
            AttentionSpec(first, heads, (attn.qkv,), attn.proj),
            MlpSpec(second, self.mlp.fc1, self.mlp.fc2),
            replaces_residual=self.replaces_residual,
        )

    def forward(
        self,
        h: torch.Tensor,
        rows: torch.Tensor,
        frame_ids: torch.Tensor,
        attend: Attend,
    ) -> torch.Tensor:
        """h [T, D], rows [M, 6, D] = (shift, scale, gate) of attention and of the MLP, frame_ids [T].

        Without gradients h is overwritten.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = rows.unbind(1)
        u, h = self._modulate(h, shift_a, scale_a, frame_ids)
        o = attend(self.attn.qkv(u), self.attn.qk_weights())
        if self._trains_natively(h):
            # The biases go into the passes after the products: a product then need not begin with a copy of
            # its bias, and the biases' gradients need no passes of their own.
            proj, fc1, fc2 = self.attn.proj, self.mlp.fc1, self.mlp.fc2
            h = ops.gate_residual(h, linear(o, proj.weight), gate_a, frame_ids, bias=proj.bias)
            u, h = self._modulate(h, shift_m, scale_m, frame_ids)
            hidden = ops.bias_gelu(linear(u, fc1.weight), fc1.bias)
            return ops.gate_residual(h, linear(hidden, fc2.weight), gate_m, frame_ids, bias=fc2.bias)
        h = self._add(h, self.attn.proj(o), gate_a, frame_ids)
        u, h = self._modulate(h, shift_m, scale_m, frame_ids)
        return self._add(h, self.mlp(u), gate_m, frame_ids)

    def _trains_natively(self, h: torch.Tensor) -> bool:
        """Whether gradients are recorded, and layers are plain float32 on the CPU, neither replaced nor
        hooked."""
        if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not self.as_built:
            return False
        biases = (layer.bias for layer in self.linears)
        return all(layer.packs for layer in self.linears) and on_native_cpu(h, *biases)

    def _modulate(
        self, h: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, frame_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.replaces_residual:
            return ops.modulate(
                h, shift, scale, frame_ids, norm="layer", eps=LAYER_NORM_EPS, return_normed=True
            )
        return ops.modulate(h, shift, scale, frame_ids, norm="layer", eps=LAYER_NORM_EPS), h

    @staticmethod
    def _add(
        h: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor, frame_ids: torch.Tensor
    ) -> torch.Tensor:
        if torch.is_grad_enabled():
            return ops.gate_residual(h, branch, gate, frame_ids)
        ops.gate_residual_(h, branch, gate, frame_ids)
        return h
