# SPDX-License-Identifier: Apache-2.0
"""The plain algorithms that the engine must equal: no pages, no cache, no compaction, no kernels of ours.

`DenseTransformer` is written from the published equations on torch's own SDPA, with an explicit mask and any
dtype (the tests use float64). The samplers feed every frame that the named algorithm feeds, at every tick.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / name) as data:
        return {key: torch.from_numpy(np.asarray(data[key])) for key in data.files}


def generated_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The recipe of golden/README.md: weights follow from key names."""
    weights = {}
    for key, shape in shapes.items():
        z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
        if len(shape) >= 2:
            z = z / np.sqrt(np.prod(shape[1:]))
        else:
            z = 1 + 0.1 * z if key.endswith(".weight") else 0.1 * z
        weights[key] = torch.from_numpy(z.astype(np.float32))
    return weights


def randomise(model: torch.nn.Module) -> None:
    """Generated weights for every parameter, so that nothing stays at its zero initialisation."""
    model.load_state_dict(
        generated_weights({name: tuple(p.shape) for name, p in model.named_parameters()}), strict=False
    )


class DenseTransformer:
    """All tokens of one sequence at once: x [F, L, C], t [F], context [Ctx, dim], visible bool [Ctx+F*L,
    Ctx+F*L].
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype = torch.float64) -> None:
        self.c = model.config
        self.w = {key: value.detach().to(dtype) for key, value in model.state_dict().items()}
        self.dtype = dtype

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def __call__(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        context: torch.Tensor,
        visible: torch.Tensor,
        first_frame: int = 0,
    ) -> torch.Tensor:
        c, frames = self.c, x.shape[0]
        x, context = x.to(self.dtype), context.to(self.dtype)
        n_ctx, length, width = c.context_tokens, c.tokens_per_frame, c.width
        video = self.linear("x_embedder", x).reshape(frames * length, width)
        index = torch.arange(frames * length) + first_frame * length
        if c.positions == "absolute":
            video = video + self.w["pos_embed"][0, index]
        h = torch.cat([self.linear("c_embedder", context), video])
        position = torch.cat([torch.arange(n_ctx), index + n_ctx])
        freq = torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128)
        angle = t.float()[:, None] * freq
        e = torch.cat([angle.cos(), angle.sin()], 1).to(self.dtype)
        e = self.linear("t_embedder.mlp.2", F.silu(self.linear("t_embedder.mlp.0", e)))
        if c.merge == "reproduce":
            e = e[:1].expand_as(e)
        replaces = c.merge in ("share_norm", "sharenorm_shift_first_t")
        for n in range(c.depth):
            mod = self.linear(f"blocks.{n}.adaLN_modulation.1", F.silu(e)).reshape(frames, 6, width)
            if c.merge == "sharenorm_shift_first_t":
                mod = torch.stack([mod[:, i] for i in (0, 1, 2, 0, 1, 5)], dim=1)
            ctx = torch.tensor([0, 0, 1, 0, 0, 1], dtype=self.dtype)[:, None].expand(6, width)
            if c.merge == "reproduce":
                ctx = mod[0]
            elif c.merge == "sharenorm_shift_first_t":
                ctx = torch.stack([mod[0, 0], mod[0, 1], ctx[2], mod[0, 3], mod[0, 4], ctx[5]])
            rows = torch.cat([ctx[None].expand(n_ctx, 6, width), mod.repeat_interleave(length, 0)])
            for offset, branch in ((0, self.attention), (3, self.mlp)):
                normed = F.layer_norm(h, (width,), eps=1e-6)
                if replaces:
                    h = normed
                u = normed * (1 + rows[:, offset + 1]) + rows[:, offset]
                h = h + rows[:, offset + 2] * branch(n, u, position, visible)
        y = self.linear("final_layer.1", F.layer_norm(h, (width,), eps=1e-6))
        return y[n_ctx:].reshape(frames, length, c.channels)

    def mlp(self, n: int, u: torch.Tensor, position: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(self.linear(f"blocks.{n}.mlp.fc1", u), approximate="tanh")
        return self.linear(f"blocks.{n}.mlp.fc2", hidden)

    def attention(
        self, n: int, u: torch.Tensor, position: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        c, tokens = self.c, u.shape[0]
        q, k, v = (
            self.linear(f"blocks.{n}.attn.qkv", u).reshape(tokens, 3, c.heads, c.head_dim).permute(1, 2, 0, 3)
        )
        if c.positions == "rope":
            q, k = (
                self.rotate(self.head_norm(n, name, y), position)
                for name, y in (("q_norm", q), ("k_norm", k))
            )
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.linear(f"blocks.{n}.attn.proj", o.transpose(0, 1).reshape(tokens, c.width))

    def head_norm(self, n: int, name: str, y: torch.Tensor) -> torch.Tensor:
        key = f"blocks.{n}.attn.{name}"
        return F.layer_norm(y, (self.c.head_dim,), self.w[key + ".weight"], self.w[key + ".bias"], eps=1e-5)

    def rotate(self, y: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        d = self.c.head_dim
        theta = 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
        turn = torch.polar(torch.ones(()).double(), position.double()[:, None] * theta)
        turned = torch.view_as_complex(y.double().reshape(*y.shape[:-1], d // 2, 2)) * turn
        return torch.view_as_real(turned).reshape(y.shape).to(self.dtype)


def visibility(config, frames: int, sees: Callable[[int, int], bool | float]) -> torch.Tensor:
    """bool [tokens, tokens] from `sees(query frame, key frame)` and the model's rule for context tokens;
    float64 where that is a log-bias, -inf for what is not seen."""
    n_ctx, length = config.context_tokens, config.tokens_per_frame
    unit = torch.tensor([[sees(q, k) for k in range(frames)] for q in range(frames)])
    seen, unseen = (True, False) if unit.dtype == torch.bool else (0.0, -math.inf)
    unit = unit if unit.dtype == torch.bool else unit.double()
    size = n_ctx + frames * length
    mask = torch.full((size, size), seen, dtype=unit.dtype)
    mask[n_ctx:, n_ctx:] = unit.repeat_interleave(length, 0).repeat_interleave(length, 1)
    if config.mask == "temporal_causal":
        mask[:n_ctx, n_ctx:] = unseen
    return mask


def plain_plan(
    model,
    tracks,
    noise: torch.Tensor,
    context: torch.Tensor,
    plan,
    sees: Callable[[int, int, int], bool | float],
    *,
    prefix=None,
):
    """Yield x [F, L, C] (float64) after every tick of a plan: one dense pass over all frames.

    tracks: a solver for each. sees(query frame, key frame, tick): who sees whom.
    """
    dense, config = DenseTransformer(model), model.config
    x = noise.double() if prefix is None else torch.cat([prefix, noise]).double()
    frames = range(x.shape[0])
    own = [tracks[plan.track(f)] for f in frames]
    for n in range(plan.num_ticks):
        moves, level = set(plan.tick(n).frames), [plan.level(f, n) for f in frames]
        t = torch.tensor(
            [
                own[f].timesteps[level[f]] if level[f] or f in moves else own[f].waiting_timestep
                for f in frames
            ]
        )
        mask = visibility(config, len(frames), lambda q, k: sees(q, k, n))  # noqa: B023
        out = dense(x, t, context, mask)
        x = x.clone()
        for f in moves:
            p, q, a, b = own[f].coefficients[level[f], :4]
            x[f] = a * x[f] + b * (p * x[f] + q * out[f])
        yield x


def plain_ticks(
    model,
    solver,
    noise: torch.Tensor,
    contexts: list[torch.Tensor],
    weights: list[float],
    lag: int,
    *,
    window=None,
    banded=None,
    sink=0,
    prefix=None,
):
    """Yield x [F, L, C] (float64) after every tick.

    window: the official sliding window of that many frames (RecomputedWindow), positions counted from its
        start.
    banded: one pass over all frames, frame f seeing the first `sink` ones and the last `banded` ones
        (Window).
    Neither: one pass over all frames (Full). Waiting frames are fed at the waiting timestep, finished ones at
        CLEAN.
    """
    dense, config = DenseTransformer(model), model.config
    prefix_frames = 0 if prefix is None else prefix.shape[0]
    x = noise.double() if prefix is None else torch.cat([prefix, noise]).double()
    total, steps = x.shape[0], solver.num_steps
    size = total if window is None else min(window, total)
    started = [max(0, (f - prefix_frames) * lag) for f in range(total)]
    ticks = steps + (total - prefix_frames - 1) * lag
    end = max(size, min(total, prefix_frames + 1))
    times = torch.cat([solver.timesteps, torch.tensor([solver.waiting_timestep], dtype=torch.float64)])
    for n in range(ticks):
        level = [steps if f < prefix_frames else min(max(n - started[f], 0), steps) for f in range(total)]
        updates = [f >= prefix_frames and started[f] <= n < started[f] + steps for f in range(total)]
        if end < total and updates[end]:
            end += 1
        frames = range(end - size, end)
        t = torch.tensor([times[level[f]] if updates[f] or level[f] == steps else times[-1] for f in frames])

        def sees(q: int, k: int) -> bool:
            if config.mask == "none":
                return True
            near = banded is None or q - k < banded or k < sink
            return k <= q and near

        mask = visibility(config, size, sees)
        out = sum(w * dense(x[list(frames)], t, c, mask) for w, c in zip(weights, contexts, strict=True))
        p, q, a, b = (solver.coefficients[[min(level[f], steps - 1) for f in frames], i] for i in range(4))
        x0 = p[:, None, None] * x[list(frames)] + q[:, None, None] * out
        new = a[:, None, None] * x[list(frames)] + b[:, None, None] * x0
        x = x.clone()
        for i, f in enumerate(frames):
            if updates[f]:
                x[f] = new[i]
        yield x
