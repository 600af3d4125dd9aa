# SPDX-License-Identifier: Apache-2.0
"""Wan over pages, block after block, at sizes that nobody published: the plain equations in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from effort import examples
from helpers.small_wan import small_wan
from hypothesis import given, settings
from hypothesis import strategies as st
from test_wan_paged import Clips

from ardiff_engine.models.wan import WanConfig, WanTransformer


class Plain:
    """One clip at once, from the published equations; every frame sees what `visible` says."""

    def __init__(self, model: WanTransformer) -> None:
        self.config = model.config
        self.weights = {name: own.double() for name, own in model.state_dict().items()}

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + self.config.eps).sqrt()

    def heads(self, name: str, norm: str, x: torch.Tensor) -> torch.Tensor:
        """RMS over the full width, then [heads, tokens, head_dim]."""
        y = self.linear(name, x)
        y = y / (y.square().mean(-1, keepdim=True) + self.config.eps).sqrt() * self.weights[f"{norm}.weight"]
        return y.unflatten(1, (self.config.heads, -1)).transpose(0, 1)

    def rotations(self, frames: int, rows: int, columns: int) -> torch.Tensor:
        """complex [tokens, head_dim / 2]: a third for rows, one for columns, the rest for time."""
        pairs = self.config.head_dim // 2
        shares = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
        places = torch.cartesian_prod(*(torch.arange(n).double() for n in (frames, rows, columns)))
        angles = [
            places[:, axis, None] * 10000.0 ** (-torch.arange(own).double() / own)
            for axis, own in enumerate(shares)
        ]
        angle = torch.cat(angles, dim=1)
        return torch.complex(angle.cos(), angle.sin())

    def attended(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: object = None
    ) -> torch.Tensor:
        scores = q @ k.transpose(1, 2) / self.config.head_dim**0.5
        if isinstance(mask, torch.Tensor):
            scores = scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        """x [F, C, H, W], t [F], text [rows, text_dim] -> [F, C, H, W]"""
        config, w = self.config, self.weights
        high, wide = config.patch[1:]
        frames, rows, columns = len(x), x.shape[2] // high, x.shape[3] // wide
        turns = self.rotations(frames, rows, columns)
        mask = visible.repeat_interleave(rows * columns, 0).repeat_interleave(rows * columns, 1)

        def turned(own: torch.Tensor) -> torch.Tensor:
            pairs = torch.view_as_complex(own.unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(pairs * turns).flatten(-2)

        h = F.unfold(x, (high, wide), stride=(high, wide)).transpose(1, 2)
        h = (h @ w["patch_embedding.weight"].flatten(1).T + w["patch_embedding.bias"]).flatten(0, 1)
        half = config.frequency_dim // 2
        angle = t[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
        time = torch.cat([angle.cos(), angle.sin()], dim=1)
        time = self.linear("time_embedding.2", F.silu(self.linear("time_embedding.0", time)))
        six = self.linear("time_projection.1", F.silu(time)).unflatten(1, (6, -1))
        prompt = F.pad(text, (0, 0, 0, config.text_tokens - len(text)))
        prompt = self.linear("text_embedding.0", prompt)
        prompt = self.linear("text_embedding.2", F.gelu(prompt, approximate="tanh"))
        for layer in range(config.depth):
            at = f"blocks.{layer}."
            moved = (w[f"{at}modulation"] + six).repeat_interleave(rows * columns, 0).unbind(1)
            y = self.normed(h) * (1 + moved[1]) + moved[0]
            q, k = (turned(self.heads(f"{at}self_attn.{n}", f"{at}self_attn.norm_{n}", y)) for n in "qk")
            v = self.linear(f"{at}self_attn.v", y).unflatten(1, (config.heads, -1)).transpose(0, 1)
            h = h + moved[2] * self.linear(f"{at}self_attn.o", self.attended(q, k, v, mask))
            y = self.normed(h) * w[f"{at}norm3.weight"] + w[f"{at}norm3.bias"]
            q = self.heads(f"{at}cross_attn.q", f"{at}cross_attn.norm_q", y)
            k = self.heads(f"{at}cross_attn.k", f"{at}cross_attn.norm_k", prompt)
            v = self.linear(f"{at}cross_attn.v", prompt).unflatten(1, (config.heads, -1)).transpose(0, 1)
            h = h + self.linear(f"{at}cross_attn.o", self.attended(q, k, v))
            y = self.normed(h) * (1 + moved[4]) + moved[3]
            y = F.gelu(self.linear(f"{at}ffn.0", y), approximate="tanh")
            h = h + moved[5] * self.linear(f"{at}ffn.2", y)
        shift, scale = (w["head.modulation"] + time[:, None]).repeat_interleave(rows * columns, 0).unbind(1)
        y = self.linear("head.head", self.normed(h) * (1 + scale) + shift)
        y = y.unflatten(1, (high, wide, -1)).unflatten(0, (frames, rows, columns))
        return y.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


@st.composite
def cases(draw: st.DrawFn) -> dict:
    heads, pairs = draw(st.integers(1, 5)), draw(st.sampled_from([3, 4, 8, 11, 16]))
    patch = (1, draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    block = draw(st.sampled_from([1, 3]))
    return {
        "config": WanConfig(
            width=2 * heads * pairs,
            depth=draw(st.integers(1, 3)),
            heads=heads,
            mlp_width=draw(st.integers(8, 40)),
            channels=3,
            out_channels=draw(st.sampled_from([3, 5])),
            patch=patch,
            text_dim=draw(st.integers(3, 9)),
            text_tokens=draw(st.integers(1, 20)),
            frequency_dim=2 * draw(st.integers(1, 9)),
        ),
        "size": (patch[1] * draw(st.integers(1, 7)), patch[2] * draw(st.integers(1, 7))),
        "block": block,
        "blocks": draw(st.integers(1, 4 if block == 3 else 7)),
        "window": block * draw(st.integers(1, 4)),
        "sinks": draw(st.integers(0, 4)),
        "seed": draw(st.integers(0, 999)),
    }


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-8), (torch.float32, 5e-6)])
@settings(max_examples=examples(60))
@given(case=cases())
@torch.no_grad()
def test_pages_equal_the_plain_equations(dtype: torch.dtype, within: float, case: dict) -> None:
    """float64 op by op; float32 as one native call, where there is one."""
    config, block = case["config"], case["block"]
    frames, dice = block * case["blocks"], torch.Generator().manual_seed(case["seed"])
    model = small_wan(config)
    x = torch.randn(2, frames, config.channels, *case["size"], generator=dice)
    t = torch.rand(2, frames, generator=dice) * 1000
    rows = int(torch.randint(1, config.text_tokens + 1, (), generator=dice))
    text = torch.randn(2, rows, config.text_dim, generator=dice)
    of, key = torch.arange(frames)[:, None] // block, torch.arange(frames)[None]
    end = (of + 1) * block
    visible = (key < end) & ((key < case["sinks"]) | (key >= end - case["window"]))
    plain = Plain(model)
    want = torch.stack(
        [plain(*own, visible) for own in zip(x.double(), t.double(), text.double(), strict=True)]
    )
    model.to(dtype)
    if dtype == torch.float32:
        model.freeze()
    clips = Clips(model, x.to(dtype), t, text.to(dtype))
    got = [clips.run(range(first, first + block), visible) for first in range(0, frames, block)]
    assert float((torch.cat(got, dim=1).double() - want).norm() / want.norm()) <= within
