# SPDX-License-Identifier: Apache-2.0
"""Guidance by any number of branches: against a dense float64 model that runs them all, tick by tick, and bit
for bit alone and together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from dense_oracle import DenseTransformer
from test_ar_diffusion import tiny

import ardiff_engine as ade
from ardiff_engine import plan
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.memory import Full, Window

Branch = ade.Branch
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
    """x [F, L, C] (float64) at the end of a plan; tables: weights of each branch, of all levels of each
    track."""
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
        outs = dense(x, t, contexts, lambda p, a, q, b: sees(p, a, q, b, n))  # noqa: B023
        x = x.clone()
        for f in moves:
            out = sum(table[ours.track(f)][level[f]] * o[f] for table, o in zip(tables, outs, strict=True))
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


def causal(ours, q: int, k: int) -> bool:
    return k < ours.block(q).stop


W4 = [7.5, 7.5, 1.0, 0.0]
CASES = {
    "a scale for each level": (
        plan.blocks(1, lag=2),
        (S4,),
        [Branch(prompt(1), W4), Branch(prompt(2), [1 - w for w in W4])],
    ),
    "three, blocks, tracks": (
        plan.blocks(2, first=1),
        (S4, S2),
        [
            Branch(prompt(1), [W4, [3.0, 0.5]]),
            Branch(prompt(2), [[1.0, -2.0, 0.5, 0.25], [1.0, -1.0]]),
            Branch(prompt(3), -0.5),
        ],
    ),
}


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_stream_is_the_dense_model_that_runs_all_branches(name: str, cuda_graphs: bool) -> None:
    rule, tracks, branches = CASES[name]
    model = network()
    noise = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    engine = engine_of(model, cuda_graphs=cuda_graphs)
    stream = engine.submit(Request(7, latents=noise, plan=rule, solver=tracks, branches=branches))
    got, steps = stream.result(), tuple(own.num_steps for own in tracks)
    ours = rule.plan(7, steps, 0)
    with torch.no_grad():
        expected = plain_branches(
            model,
            tracks,
            noise,
            [branch.condition for branch in branches],
            as_tables(branches, steps),
            ours,
            lambda p, q, r, k, n: p == r and causal(ours, q, k),
        )
    assert float((got - expected).norm() / expected.norm()) < 1e-5
    assert engine.stats().pages_held == 0


def mixed() -> list[Request]:
    """Streams of one, two and three branches."""
    return [
        Request(6, lag=1, seed=1, condition=prompt(1)),
        Request(7, lag=2, seed=2, branches=CASES["a scale for each level"][2]),
        Request(
            7,
            plan=plan.blocks(2, first=1),
            solver=(S4, S2),
            seed=3,
            branches=CASES["three, blocks, tracks"][2],
        ),
        Request(6, lag=4, seed=4, condition=prompt(3), guidance_scale=2.0, memory=Window(3)),
    ]


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_alone_and_together_are_the_same_bits(cuda_graphs: bool) -> None:
    model = network()
    alone = [engine_of(model).submit(own).result() for own in mixed()]
    engine = engine_of(model, max_pages=900, cuda_graphs=cuda_graphs)
    streams = [engine.submit(own) for own in mixed()[:2]]
    engine.step()
    streams += [engine.submit(own) for own in mixed()[2:]]
    for stream, expected in zip(streams, alone, strict=True):
        assert torch.equal(stream.result(), expected)


def test_the_simple_spelling_says_the_same() -> None:
    model = network()
    plainly = Request(5, lag=2, seed=1, condition=prompt(1), guidance_scale=2.5)
    branches = [Branch(prompt(1), 2.5), Branch("null", -1.5)]
    assert torch.equal(
        engine_of(model).submit(plainly).result(),
        engine_of(model).submit(Request(5, lag=2, seed=1, branches=branches)).result(),
    )


def test_another_prompt_goes_to_the_branches_that_had_the_first_one() -> None:
    """What a fork with the new prompt does, a stream does that has it from the start."""
    model, old = network(), prompt(1)

    def submitted(condition: torch.Tensor) -> ade.Stream:
        engine = engine_of(model)
        return engine.submit(
            Request(
                4,
                lag=2,
                seed=1,
                branches=[Branch(condition, 3.0), Branch("null", -1.0), Branch(condition, W4)],
            )
        )

    stream = submitted(old)
    stream.set_condition(prompt(2))
    assert torch.equal(stream.result(), submitted(prompt(2)).result())
    with pytest.raises(ConfigError, match="negative"):
        submitted(old).set_condition(old, negative_condition=prompt(3))


@pytest.mark.parametrize(
    ("kind", "options"),
    {
        "too few weights": (ConfigError, {"branches": [Branch(weight=[1.0, 2.0])]}),
        "weights of one track": (
            ConfigError,
            {"branches": [Branch(weight=W4)], "solver": (S4, S3), "plan": plan.blocks(2)},
        ),
        "no branches": (ConfigError, {"branches": []}),
        "no branch": (ConfigError, {"branches": [3]}),
        "beside a scale": (ConfigError, {"branches": [Branch()], "guidance_scale": 2.0}),
        "beside a condition": (ConfigError, {"branches": [Branch()], "condition": prompt(1)}),
        "a wrong condition": (TensorError, {"branches": [Branch(), Branch(prompt(1)[:3])]}),
        "another word": (TensorError, {"branches": [Branch("none")]}),
    }.values(),
)
def test_what_cannot_be_served_takes_nothing(kind: type[Exception], options: dict) -> None:
    engine = engine_of(network())
    with pytest.raises(kind):
        engine.submit(Request(4, **({"lag": 2} | options)))
    stats = engine.stats()
    assert stats.pages_promised == stats.streams_running == 0
