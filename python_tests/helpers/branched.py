# SPDX-License-Identifier: Apache-2.0
"""Cases of guidance by branches, and the dense float64 model that runs them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from dense_oracle import DenseTransformer
from test_ar_diffusion import tiny

import ardiff_engine as ade
from ardiff_engine import plan
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.memory import Full, MemoryPolicy, Window
from ardiff_engine.plan import Rule

Branch, Past = ade.Branch, ade.Past
SCHEDULE = NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)
S4, S3, S2 = (solvers.DDIM(SCHEDULE, num_inference_steps=steps) for steps in (4, 3, 2))
Sees = Callable[[int, int, int, int, int], bool]
"""Query branch and frame, key branch and frame, tick -> whether the one sees the other."""


def prompt(seed: int) -> torch.Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))


class BranchedTransformer(DenseTransformer):
    """All branches as one sequence: each brings its context and its frames, and may see those of others."""

    def __call__(  # type: ignore[override]
        self, x: torch.Tensor, t: torch.Tensor, contexts: Sequence[torch.Tensor], sees: Callable[..., bool]
    ) -> torch.Tensor:
        """x [F, L, C], t [F] -> [branches, F, L, C]"""
        c, (frames, length, _), branches = self.c, x.shape, len(contexts)
        width, own = c.width, c.context_tokens + frames * length
        video = self.linear("x_embedder", x.to(self.dtype)).reshape(frames * length, width)
        texts = [self.linear("c_embedder", context.to(self.dtype)) for context in contexts]
        h = torch.cat([torch.cat([text, video]) for text in texts])
        position = torch.arange(own).repeat(branches)
        angle = t.float()[:, None] * torch.exp(-torch.arange(128).float() / 128 * torch.tensor(1e4).log())
        e = torch.cat([angle.cos(), angle.sin()], 1).to(self.dtype)
        e = self.linear("t_embedder.mlp.2", F.silu(self.linear("t_embedder.mlp.0", e)))
        visible = self.visible(branches, frames, sees)
        plain = torch.tensor([0, 0, 1, 0, 0, 1], dtype=self.dtype)[:, None].expand(c.context_tokens, 6, width)
        for n in range(c.depth):
            mod = self.linear(f"blocks.{n}.adaLN_modulation.1", F.silu(e)).reshape(frames, 6, width)
            rows = torch.cat([plain, mod.repeat_interleave(length, 0)]).repeat(branches, 1, 1)
            u = F.layer_norm(h, (width,), eps=1e-6) * (1 + rows[:, 1]) + rows[:, 0]
            h = h + rows[:, 2] * self.attention(n, u, position, visible)
            u = F.layer_norm(h, (width,), eps=1e-6) * (1 + rows[:, 4]) + rows[:, 3]
            h = h + rows[:, 5] * self.mlp(n, u, position, visible)
        y = self.linear("final_layer.1", F.layer_norm(h, (width,), eps=1e-6))
        return y.unflatten(0, (branches, own))[:, c.context_tokens :].reshape(branches, *x.shape)

    def visible(self, branches: int, frames: int, sees: Callable[..., bool]) -> torch.Tensor:
        c = self.c
        own = torch.cat(
            [torch.zeros(c.context_tokens), 1 + torch.arange(frames).repeat_interleave(c.tokens_per_frame)]
        )
        size = len(own)
        mask = torch.zeros(branches * size, branches * size, dtype=torch.bool)
        for p in range(branches):
            for q in range(branches):
                frame = torch.tensor(
                    [
                        [p == q] + [False] * frames,
                        *[[p == q] + [sees(p, a, q, b) for b in range(frames)] for a in range(frames)],
                    ]
                )
                mask[p * size :][:size, q * size :][:, :size] = frame[own.long()][:, own.long()]
        return mask


def plain_branches(model, tracks, noise, contexts, tables, ours, sees: Sees, prefix=None) -> torch.Tensor:
    """x [F, L, C] (float64) at the end of a plan. contexts: of each branch; tables: weights of each
    branch, of all levels of each track."""
    dense = BranchedTransformer(model)
    x = noise.double() if prefix is None else torch.cat([prefix, noise]).double()
    frames = range(len(x))
    own = [tracks[ours.track(f)] for f in frames]
    for n in range(ours.num_ticks):
        moves, level = set(ours.tick(n).frames), [ours.level(f, n) for f in frames]
        t = torch.tensor(
            [
                s.timesteps[k] if k or f in moves else s.waiting_timestep
                for f, k, s in zip(frames, level, own, strict=True)
            ]
        )
        outs = dense(x, t, contexts(n), lambda p, a, q, b: sees(p, a, q, b, n))  # noqa: B023
        x = x.clone()
        for f in moves:
            out = sum(table[ours.track(f)][level[f]] * o[f] for table, o in zip(tables(n), outs, strict=True))
            p, q, a, b = own[f].coefficients[level[f], :4]
            x[f] = a * x[f] + b * (p * x[f] + q * out)
    return x


def network():
    return tiny("separate_norm", "temporal_causal", "rope", num_frames=16)


def engine_of(model, **options) -> Engine:
    return Engine(model, **({"solver": S4, "memory": Full(), "max_pages": 300} | options))


def as_tables(branches: Sequence[Branch], steps: Sequence[int]) -> list[list[list[float]]]:
    tables = []
    for branch in branches:
        rows = iter(branch.weights(steps))
        tables.append([[next(rows) for _ in range(count)] for count in steps])
    return tables


@dataclass(frozen=True)
class Case:
    """window: of the memory, in frames up to the end of the block; source: whose K/V those branches read
    that store none."""

    rule: Rule
    branches: list[Branch]
    tracks: tuple[solvers.Solver, ...] = (S4,)
    given: int = 0
    window: int = 100
    source: int = -1

    @property
    def memory(self) -> MemoryPolicy:
        return Full() if self.window == 100 else Window(self.window)

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(own.num_steps for own in self.tracks)

    def request(self, **options) -> Request:
        cells = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
        prefix = cells[: self.given] if self.given else None
        options = {"latents": cells[self.given :], "prefix": prefix, "memory": self.memory} | options
        return Request(7, plan=self.rule, solver=self.tracks, branches=self.branches, **options)

    @torch.no_grad()
    def expected(self, model, contexts: Callable[[int], list[torch.Tensor]]) -> torch.Tensor:
        request, ours = self.request(), self.rule.plan(7, self.steps, self.given)
        tables, sees = as_tables(self.branches, self.steps), partial(self.sees, ours)
        return plain_branches(
            model, self.tracks, request.latents, contexts, lambda n: tables, ours, sees, request.prefix
        )

    def sees(self, ours, p: int, q: int, r: int, k: int, n: int) -> bool:
        own, block = self.branches[p], ours.block(q)
        if not block.stop - self.window <= k < block.stop:
            return False
        if own.view is not None and k < block.start - own.view.frames:
            return False
        finished = ours.level(k, n) == ours.steps(k)
        return r == (p if own.writes or not finished else self.source)


W4 = [7.5, 7.5, 1.0, 0.0]
TEXT, OTHER, ALONE = prompt(1), prompt(2), Past(frames=0)


def magi(order: Sequence[int] = (0, 1, 2)) -> list[Branch]:
    """Prompt and past; past alone, which stores K/V; neither. Both scales go by the level."""
    text, past = [7.5, 7.5, 0.0, 0.5], [1.5, 1.5, 1.0, 1.0]
    return [
        (
            Branch(TEXT, text, writes=False),
            Branch(OTHER, [p - t for p, t in zip(past, text, strict=True)]),
            Branch(OTHER, [1 - p for p in past], view=ALONE),
        )[own]
        for own in order
    ]


HISTORY = [Branch(TEXT, 2.5), Branch(TEXT, -1.5, view=ALONE)]
CASES = {
    "a scale for each level": Case(
        plan.blocks(1, lag=2), [Branch(TEXT, W4), Branch(OTHER, [1 - w for w in W4])]
    ),
    "three, blocks, tracks": Case(
        plan.blocks(2, first=1),
        [
            Branch(TEXT, [W4, [3.0, 0.5]]),
            Branch(OTHER, [[1.0, -2.0, 0.5, 0.25], [1.0, -1.0]]),
            Branch(prompt(3), -0.5),
        ],
        tracks=(S4, S2),
    ),
    "magi": Case(plan.blocks(2, first=1, lag=2), magi(), source=1),
    "magi, in another order, one after the other": Case(plan.blocks(1, lag=4), magi((2, 0, 1)), source=2),
    "magi, given frames": Case(plan.blocks(1, lag=1), magi(), given=3, source=1),
    "magi, window": Case(plan.blocks(1, lag=2), magi(), window=3, source=1),
    "history": Case(plan.blocks(2, first=1), HISTORY),
    "history, given frames": Case(plan.blocks(2, first=1), HISTORY, given=3),
    "history first, all together": Case(plan.blocks(1, lag=0), HISTORY[::-1]),
    "a shorter window": Case(
        plan.blocks(1, lag=2), [Branch(TEXT, 2.0), Branch(OTHER, -1.0, view=Past(frames=2))], given=1
    ),
    "two readers, one of two frames": Case(
        plan.blocks(1, lag=4),
        [
            Branch(TEXT, 2.0),
            Branch(OTHER, -0.5, writes=False),
            Branch(prompt(3), -0.5, view=Past(frames=2), writes=False),
        ],
        given=2,
        source=0,
    ),
}
