# SPDX-License-Identifier: Apache-2.0
"""Prompts of a network with cross-attention: written once, shared, seen by their own streams alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import ardiff_engine as ade
from ardiff_engine.engine.condition_store import ConditionStore
from ardiff_engine.errors import ArdiffError, TensorError
from ardiff_engine.memory import Full
from ardiff_engine.models.wan import WanConfig, WanTransformer

CONFIG = WanConfig(48, 2, 2, 64, channels=3, out_channels=3, text_dim=10, text_tokens=20)
STEPS, SIZE = 3, (4, 6)


@pytest.fixture(scope="module")
def video() -> WanTransformer:
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.7 * parameter[0].numel() ** -0.5)
    return model


def engine_of(video: WanTransformer, **options) -> ade.Engine:
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), STEPS)
    return ade.Engine(video, solver=solver, memory=Full(), max_pages=200, **options)


def prompt(seed: int) -> torch.Tensor:
    return torch.randn(7 + seed, 10, generator=torch.Generator().manual_seed(seed))


def request(seed: int, **options) -> ade.Request:
    options = {"num_frames": 4, "lag": STEPS, "size": SIZE, "condition": prompt(seed)} | options
    return ade.Request(seed=seed, **options)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@torch.no_grad()
def test_a_stream_is_the_plain_loop_over_whole_clips(video: WanTransformer, scale: float) -> None:
    """Frame after frame: the clean ones before it at the commit timestep, its own K/V new at every step."""
    noise = torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    got = engine_of(video).submit(request(1, latents=noise, guidance_scale=scale)).result()
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), STEPS)
    sigmas = [*(solver.timesteps[:STEPS] / 1000).tolist(), 0.0]
    clip, texts = noise.clone(), (prompt(1), torch.zeros(20, 10))
    for frame in range(4):
        t = torch.full((1, frame + 1), float(solver.timesteps[STEPS]))
        for step in range(STEPS):
            t[0, frame] = float(solver.timesteps[step])
            flows = [
                video.forward_clip(clip[None, : frame + 1], t, text[None], block=1)[0, frame]
                for text in texts
            ]
            flow = flows[1] + scale * (flows[0] - flows[1])
            clip[frame] += (sigmas[step + 1] - sigmas[step]) * flow
    assert ((got - clip).norm() / clip.norm()).item() <= 1e-5


def test_alone_and_together_are_the_same_bits(video: WanTransformer) -> None:
    options = [
        {"lag": 1},
        {"lag": STEPS, "guidance_scale": 2.0},
        {"lag": 2, "condition": prompt(0)},
        {"lag": 0, "condition": None},
    ]
    alone = [engine_of(video).submit(request(i, **own)).result() for i, own in enumerate(options)]
    engine = engine_of(video, cuda_graphs=True)
    streams = [engine.submit(request(i, **own)) for i, own in enumerate(options[:2])]
    engine.step()
    streams += [engine.submit(request(i + 2, **own)) for i, own in enumerate(options[2:])]
    assert all(torch.equal(s.result(), one) for s, one in zip(streams, alone, strict=True))


def test_a_prompt_is_written_once(video: WanTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = WanTransformer.write_condition
    monkeypatch.setattr(
        WanTransformer, "write_condition", lambda self, *given: written.append(1) or write(self, *given)
    )
    engine = engine_of(video)
    streams = [engine.submit(request(1, noise_stream=i)) for i in range(3)] + [engine.submit(request(2))]
    engine.step()
    fork = streams[0].fork()
    engine.step()
    assert len(written) == 2
    for stream in (*streams, fork):
        stream.result()
    for seed in range(3, 11, 2):
        pair = [engine.submit(request(seed)), engine.submit(request(seed + 1))]
        expected = engine_of(video).submit(request(seed)).result()
        assert torch.equal(pair[0].result(), expected)


def test_a_condition_goes_with_the_last_tensor_that_has_it(video: WanTransformer) -> None:
    store = ConditionStore(video)
    one, same, other = (torch.stack([video.condition(prompt(seed))]) for seed in (1, 1, 2))
    both = torch.stack([other[0], one[0]])
    pages = store.of_pass([(one, [2], 6), (other, [1], 4), (same, [3], 6), (both, [1, 1], 9)])
    assert store.stored == 2
    lists = [pages.table.pages[a:b].tolist() for a, b in pairwise(pages.table.page_ptr.tolist())]
    assert lists[0] == lists[2] == lists[4] != lists[1] and lists[1] == lists[3]
    assert pages.table.num_tokens == 2 * 6 + 4 + 3 * 6 + 2 * 9
    del one, same
    assert store.stored == 2  # `both` has it too
    del both
    assert store.stored == 1
    kept = [t[:, lists[1]].clone() for t in (pages.k, pages.v)]
    # What is new takes the free place, and then room that the pool gains; what is held stays as it was.
    more = [torch.stack([video.condition(prompt(seed))]) for seed in range(3, 9)]
    pages = store.of_pass([(each, [1], 6) for each in (*more, other)])
    assert store.stored == 7
    assert all(torch.equal(t[:, lists[1]], k) for t, k in zip((pages.k, pages.v), kept, strict=True))


def test_a_memory_plan_counts_prompts(video: WanTransformer) -> None:
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), STEPS)
    guided = request(1, guidance_scale=2.0)
    plan = ade.Engine.memory_plan(video, solver=solver, memory=Full(), request=guided, streams=3)
    store = ConditionStore(video)
    pages = store.of_pass([(torch.stack([video.condition(prompt(seed))]), [1], 6) for seed in (1, 2)])
    assert plan.conditions_bytes == 3 * 2 * (pages.k.nbytes + pages.v.nbytes) // 2  # a pool of two
    assert plan.total_bytes > plan.conditions_bytes and "conditions" in str(plan)


def test_another_prompt_on_the_way(video: WanTransformer) -> None:
    """From then on the stream is what a fork with the new prompt is; the old one stays for its fork."""
    engine = engine_of(video)
    stream = engine.submit(request(1, num_frames=6))
    while stream.frames_ready < 3:
        engine.step()
    fork = stream.fork()
    stream.set_condition(prompt(2))
    changed, kept = stream.result(), fork.result()
    assert torch.equal(kept, engine_of(video).submit(request(1, num_frames=6)).result())
    assert torch.equal(changed[:3], kept[:3]) and not torch.allclose(changed[3:], kept[3:], atol=1e-3)


def test_a_wrong_prompt_takes_nothing(video: WanTransformer) -> None:
    engine = engine_of(video)
    for wrong in (torch.randn(21, 10), torch.randn(3, 9), torch.full((3, 10), torch.inf), 4):
        with pytest.raises(ArdiffError) as caught:
            engine.submit(request(1, condition=wrong))
        assert isinstance(caught.value, TensorError)
    assert engine.stats().pages_promised == 0
