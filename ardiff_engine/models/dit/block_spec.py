# SPDX-License-Identifier: Apache-2.0
"""What a DiT block is made of. A network describes its blocks so, and `native_block` runs them as one call.

u = norm(h);  h += gate out(attention(heads(projections(u))))      self-attention over the pages of the stream
u = norm(h);  h += gate out(attention(heads(projection(u))))       cross-attention over the condition's pages
u = norm(h);  h += gate down(activation(up(u)))                    MLP
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from ardiff_engine.models.dit.row_linear import row_linear

Activation = Literal["gelu_tanh", "gelu_erf", "silu"]
HeadNorm = Literal["none", "layer", "rms", "rms_full"]
RowNorm = Literal["none", "layer", "rms"]


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """The norm before a branch, n (1 + scale) + shift, and the gate after it.

    shift, scale, gate: which of the values of a row of the modulation table; None: no modulation, no gate.
    weight, bias: [width], of a norm that is not modulated.
    """

    norm: RowNorm = "layer"
    eps: float = 1e-6
    shift: int | None = None
    scale: int | None = None
    gate: int | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """heads, kv_heads, dim: of q, of k and v, of each. norm: of q and k per head, or over all heads together
    (rms_full); weights and biases [dim], for rms_full [heads dim] and [kv_heads dim]."""

    heads: int
    kv_heads: int
    dim: int
    norm: HeadNorm = "none"
    eps: float = 1e-5
    q_weight: torch.Tensor | None = None
    q_bias: torch.Tensor | None = None
    k_weight: torch.Tensor | None = None
    k_bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """projections: one layer [q | k | v], or three; of cross-attention q alone (its K and V lie in pages)."""

    branch: Branch
    heads: Heads
    projections: tuple[nn.Linear, ...]
    out: nn.Linear


@dataclass(frozen=True, slots=True, eq=False)
class Mlp:
    branch: Branch
    up: nn.Linear
    down: nn.Linear
    activation: Activation = "gelu_tanh"


@dataclass(frozen=True, slots=True, eq=False)
class BlockSpec:
    """replaces_residual: h becomes norm(h), without scale and shift, before each branch is added."""

    self_attention: Attention
    mlp: Mlp
    cross_attention: Attention | None = None
    replaces_residual: bool = False


def by_rows(spec: BlockSpec) -> BlockSpec:
    """The block with layers that give a row the same result in any batch (`RowLinear`), over its weights."""

    def own(layer: nn.Linear) -> nn.Linear:
        return row_linear(layer.weight, layer.bias)

    def attention(part: Attention) -> Attention:
        return replace(part, projections=tuple(map(own, part.projections)), out=own(part.out))

    return replace(
        spec,
        self_attention=attention(spec.self_attention),
        cross_attention=spec.cross_attention and attention(spec.cross_attention),
        mlp=replace(spec.mlp, up=own(spec.mlp.up), down=own(spec.mlp.down)),
    )
