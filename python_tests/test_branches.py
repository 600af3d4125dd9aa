# SPDX-License-Identifier: Apache-2.0
"""Guidance by any number of branches: against a dense float64 model that runs them all, tick by tick, and bit
for bit alone and together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from dense_oracle import DenseTransformer, visibility
from inside import inside
from test_ar_diffusion import tiny

import ardiff_engine as ade
from ardiff_engine import ops, plan
from ardiff_engine.diffusion import NoiseSchedule, noise_keys, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.memory import Full, MemoryPolicy, RecomputedWindow, Window
from ardiff_engine.plan import Rule
from ardiff_engine.purposes import Purpose

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


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_stream_is_the_dense_model_that_runs_all_branches(name: str, cuda_graphs: bool) -> None:
    case, model, held = CASES[name], network(), []
    engine = engine_of(model, cuda_graphs=cuda_graphs)
    request = case.request(on_step=lambda stream: held.append(inside(stream).pages.held))
    stream = engine.submit(request)
    promised = engine.stats().pages_promised
    got = stream.result()
    expected = case.expected(model, lambda n: [branch.condition for branch in case.branches])
    assert float((got - expected).norm() / expected.norm()) < 1e-5
    assert engine.stats().pages_held == 0
    assert max(held) == promised


@pytest.mark.parametrize("view", [None, Past(frames=0), Past(frames=3)])
def test_a_branch_that_stores_nothing_holds_pages_of_frames_in_flight(view: Past | None) -> None:
    model = network()
    promised = []
    for branches in ([Branch()], [Branch(), Branch(view=view, writes=False)]):
        engine = engine_of(model)
        stream = engine.submit(Request(12, plan=plan.blocks(2), branches=branches))
        promised.append(engine.stats().pages_promised)
        stream.cancel()
    context, block = 1, 2
    assert promised == [context + 12, 2 * context + 12 + block]


def mixed() -> list[Request]:
    """Streams of one, two and three branches."""
    return [
        Request(6, lag=1, seed=1, condition=prompt(1)),
        *[case.request(latents=None, seed=2 + i) for i, case in enumerate(CASES.values())],
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


@pytest.mark.parametrize(("name", "effect"), [("magi", "keep"), ("history", "recommit")])
def test_another_prompt_on_the_way(name: str, effect: str) -> None:
    """Where K/V are stored without the prompt there is nothing that a new one changes in them."""
    case, model, new = CASES[name], network(), prompt(9)
    engine = engine_of(model)
    stream = engine.submit(case.request())
    for _ in range(6):
        engine.step(1)
    stream.set_condition(new, effect=effect)

    def contexts(n: int) -> list[torch.Tensor]:
        return [new if n >= 6 and own.condition is TEXT else own.condition for own in case.branches]

    expected = case.expected(model, contexts)
    assert float((stream.result() - expected).norm() / expected.norm()) < 1e-5


def test_other_scales_on_the_way() -> None:
    case, model = CASES["magi"], network()
    engine = engine_of(model)
    stream = engine.submit(case.request())
    for _ in range(6):
        engine.step(1)
    fork = stream.fork()
    stronger = [replace(own, weight=[2 * w for w in own.weight]) for own in magi()]
    receipt = stream.set_branches(stronger)
    fork.set_branches(magi())  # the same ones: nothing changes
    for wrong in (magi((1, 0, 2)), magi()[:2], [], [3], [replace(own, weight=[1.0]) for own in magi()]):
        with pytest.raises(ConfigError):
            stream.set_branches(wrong)
    assert receipt.first_frame == inside(stream).feeder.oldest_unfinished and receipt.effect == "keep"
    assert torch.equal(fork.result(), engine_of(model).submit(case.request()).result())
    tables = as_tables(case.branches, case.steps)
    doubled = as_tables(stronger, case.steps)
    with torch.no_grad():
        expected = plain_branches(
            model,
            case.tracks,
            case.request().latents,
            lambda n: [own.condition for own in stronger],
            lambda n: doubled if n >= 6 else tables,
            case.rule.plan(7, case.steps, 0),
            partial(case.sees, case.rule.plan(7, case.steps, 0)),
        )
    assert float((stream.result() - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("name", ["magi", "history", "two readers, one of two frames", "magi, window"])
def test_forks_and_rollbacks_and_pauses_change_nothing(name: str) -> None:
    case, model = CASES[name], network()
    expected = engine_of(model).submit(case.request()).result()
    engine = engine_of(model)
    stream = engine.submit(case.request())
    while stream.frames_ready < 1:
        engine.step(1)
    fork, paused = stream.fork(), stream.fork()
    paused.suspend()
    assert torch.equal(stream.result(), expected)
    assert torch.equal(fork.result(), expected)
    paused.resume()
    again = paused.fork()
    engine.step(1)
    paused.rollback(case.given)
    torch.testing.assert_close(paused.result(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(again.result(), expected)
    assert engine.stats().pages_held == 0


def test_history_guidance_of_a_network_in_which_all_frames_see_all() -> None:
    """Diffusion forcing: nothing is stored, and the branch without a past is fed its block alone."""
    model = tiny("separate_norm", "none", "rope", num_frames=4)
    given, noise = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0)).split([2, 2])
    engine = engine_of(model, memory=RecomputedWindow(4))
    rule = plan.blocks(2)
    request = Request(4, plan=rule, latents=noise, prefix=given, branches=HISTORY)
    got, dense = engine.submit(request).result()[2:], DenseTransformer(model)
    x = noise.double()
    with torch.no_grad():
        for level in range(4):
            t = torch.tensor([S4.timesteps[4]] * 2 + [S4.timesteps[level]] * 2)
            everything = visibility(model.config, 4, lambda q, k: True)
            alone = visibility(model.config, 2, lambda q, k: True)
            seen = dense(torch.cat([given.double(), x]), t, TEXT, everything)[2:]
            out = 2.5 * seen - 1.5 * dense(x, t[2:], TEXT, alone, first_frame=2)
            p, q, a, b = S4.coefficients[level, :4]
            x = a * x + b * (p * x + q * out)
    assert float((got - x).norm() / x.norm()) < 1e-5
    noised = [Branch(TEXT, 2.5), Branch(TEXT, -1.5, view=Past(level=1))]
    request = Request(4, plan=rule, latents=noise, prefix=given, branches=noised, seed=7)
    got = engine.submit(request).result()[2:]
    at = S4.timesteps[1].long()
    signal, sigma = SCHEDULE.alphas_cumprod[at].sqrt(), (1 - SCHEDULE.alphas_cumprod[at]).sqrt()
    x = noise.double()
    with torch.no_grad():
        for level in range(4):
            keys = noise_keys(7, 0, [0, 1], Purpose.HISTORY, level)
            history = signal * given.double() + sigma * ops.philox_normal(keys, 12).reshape(2, 3, 4)
            out = 0.0
            for weight, past, told in ((2.5, given.double(), 4), (-1.5, history, 1)):
                t = torch.tensor([S4.timesteps[told]] * 2 + [S4.timesteps[level]] * 2)
                out = out + weight * dense(torch.cat([past, x]), t, TEXT, everything)[2:]
            p, q, a, b = S4.coefficients[level, :4]
            x = a * x + b * (p * x + q * out)
    assert float((got - x).norm() / x.norm()) < 1e-5
    with pytest.raises(ConfigError, match="level"):
        engine.submit(Request(4, plan=rule, branches=[Branch(view=Past(level=4))]))
    with pytest.raises(ConfigError, match="fed again"):
        engine_of(network()).submit(Request(4, plan=rule, branches=[Branch(view=Past(level=1))]))
    with pytest.raises(ConfigError, match="nothing is stored"):
        engine.submit(Request(4, plan=rule, branches=[Branch(), Branch(writes=False)]))


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
        "nothing to read": (ConfigError, {"branches": [Branch(writes=False), Branch(view=ALONE)]}),
        "no past at all": (ConfigError, {"branches": [Branch(view=ALONE)]}),
        "another word": (TensorError, {"branches": [Branch("none")]}),
    }.values(),
)
def test_what_cannot_be_served_takes_nothing(kind: type[Exception], options: dict) -> None:
    engine = engine_of(network())
    with pytest.raises(kind):
        engine.submit(Request(4, **({"lag": 2} | options)))
    stats = engine.stats()
    assert stats.pages_promised == stats.streams_running == 0
