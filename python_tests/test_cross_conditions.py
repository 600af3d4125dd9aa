# SPDX-License-Identifier: Apache-2.0
"""Prompts of a network with cross-attention: written once, shared, seen by their own streams alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.small_wan import CONFIG, prompt, small_wan

import ardiff_engine as ade
from ardiff_engine.engine.condition_store import ConditionKey, ConditionStore
from ardiff_engine.errors import ArdiffError, OutOfPagesError, TensorError
from ardiff_engine.memory import Full
from ardiff_engine.memory.page_manager import PageManager
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.models.wan.layers import CrossAttention

STEPS, SIZE = 3, (4, 6)


@pytest.fixture(scope="module")
def video() -> WanTransformer:
    return small_wan()


def engine_of(video: WanTransformer, **options) -> ade.Engine:
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), STEPS)
    return ade.Engine(video, solver=solver, memory=Full(), **{"max_pages": 200} | options)


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


@torch.no_grad()
def test_conditions_of_two_parts() -> None:
    """A prompt and a picture's tokens: the stream is the plain loop, bit for bit the same beside others that
    have another picture, and padded as for a graph."""
    torch.manual_seed(1)
    # More rows than a page of each part, so that none may begin within another's pages.
    video = WanTransformer(replace(CONFIG, text_tokens=115, image_dim=12, image_tokens=120)).eval()
    for parameter in video.parameters():
        parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.7 * parameter[0].numel() ** -0.5)
    pictures = torch.randn(2, 120, 12)
    noise = torch.randn(3, 3, *SIZE)

    def asked(picture: int, **options) -> ade.Request:
        condition = video.with_picture(prompt(1), pictures[picture])
        return request(picture, num_frames=3, condition=condition, latents=noise, **options)

    alone = [engine_of(video).submit(asked(picture)).result() for picture in range(2)]
    assert not torch.allclose(*alone, atol=1e-3)
    for cuda_graphs in (False, True):
        engine = engine_of(video, cuda_graphs=cuda_graphs)
        streams = [engine.submit(asked(picture)) for picture in (0, 1, 0)]
        assert engine.step() is not None and engine.stats().pages_held >= 2 * (2 + 2)
        results = [stream.result() for stream in streams]
        assert torch.equal(results[0], alone[0]) and torch.equal(results[1], alone[1])
        assert torch.equal(results[2], results[0]) and engine.stats().pages_held == 0
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), STEPS)
    sigmas, clip = [*(solver.timesteps[:STEPS] / 1000).tolist(), 0.0], noise.clone()
    for frame in range(3):
        t = torch.full((1, frame + 1), float(solver.timesteps[STEPS]))
        for step in range(STEPS):
            t[0, frame] = float(solver.timesteps[step])
            seen = clip[None, : frame + 1]
            flow = video.forward_clip(seen, t, prompt(1)[None], block=1, image=pictures[:1])[0, frame]
            clip[frame] += (sigmas[step + 1] - sigmas[step]) * flow
    assert ((alone[0] - clip).norm() / clip.norm()).item() <= 1e-5


@pytest.mark.parametrize("page_rows", [16, 112])
@torch.no_grad()
def test_equal_rows_are_one_key_that_is_counted(page_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short prompts, one that ends where a page does, one that leaves no page for the counted row, and none:
    the plain loop over all rows, and the same bits alone, together and padded as for a graph."""
    torch.manual_seed(2)
    video = WanTransformer(replace(CONFIG, text_tokens=300)).eval()
    for parameter in video.parameters():
        parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.7 * parameter[0].numel() ** -0.5)
    noise = torch.randn(3, 3, *SIZE)
    texts = [torch.randn(rows, 10) for rows in (1, 37, 2 * page_rows, 299, 300)]

    def asked(text: torch.Tensor | None, **options) -> ade.Request:
        return request(1, num_frames=3, condition=text, latents=noise, guidance_scale=1.5, **options)

    written: list[int] = []
    keys_values = CrossAttention.keys_values
    monkeypatch.setattr(
        CrossAttention, "keys_values", lambda self, x: written.append(x.shape[1]) or keys_values(self, x)
    )
    rows = {"page_rows": page_rows, "max_pages": 400}
    alone = [engine_of(video, **rows).submit(asked(text)).result() for text in (*texts, None)]
    assert {1, 2, 38, 2 * page_rows + 1, 300} == set(written)
    for cuda_graphs in (False, True):
        engine = engine_of(video, cuda_graphs=cuda_graphs, **rows)
        streams = [engine.submit(asked(text)) for text in (*texts, None)]
        assert all(torch.equal(s.result(), one) for s, one in zip(streams, alone, strict=True))
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), STEPS)
    sigmas = [*(solver.timesteps[:STEPS] / 1000).tolist(), 0.0]
    monkeypatch.undo()
    for text, got in zip(texts, alone, strict=False):
        clip = noise.clone()
        for frame in range(3):
            t = torch.full((1, frame + 1), float(solver.timesteps[STEPS]))
            for step in range(STEPS):
                t[0, frame] = float(solver.timesteps[step])
                none, flow = (
                    video.forward_clip(clip[None, : frame + 1], t, own[None], block=1)[0, frame]
                    for own in (torch.zeros(300, 10), text)
                )
                clip[frame] += (sigmas[step + 1] - sigmas[step]) * (none + 1.5 * (flow - none))
        assert ((got - clip).norm() / clip.norm()).item() <= 1e-5


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


def test_a_condition_stays_as_long_as_a_lease_holds_it() -> None:
    manager, store = PageManager(6), ConditionStore(2)
    first, second = manager.lease(4), manager.lease(2)
    one, other, new = (ConditionKey(name, (20,)) for name in (b"one", b"other", b"new"))
    held = store.exchanged([], (one, other, one), first)
    assert held[0] is held[2] and first.held == 4 and held[0].pages != held[1].pages
    shared = store.exchanged([], (one,), second)
    assert shared == held[:1] and manager.held == 4 and second.held == 2
    held = store.exchanged(held, (other,), first)
    assert first.held == 2 and manager.held == 4 and store.stored == 2
    # Whoever holds what is given on has promised pages for it: another one may write these now.
    assert store.exchanged(shared, (new,), second)[0].pages != shared[0].pages
    assert store.exchanged(held, (one, other), first)[0] is not shared[0]
    first.close()
    assert store.stored == 1 and manager.held == 2


def test_a_memory_plan_counts_prompts(video: WanTransformer) -> None:
    """In pages, two of 112 rows for each prompt of 130; a stream with the same one holds them as well."""
    config = replace(CONFIG, text_tokens=130)
    model, solver = WanTransformer(config), ade.solvers.Euler(ade.FlowSchedule(shift=3.0), STEPS)
    guided = request(1, guidance_scale=2.0)
    plan = ade.Engine.memory_plan(model, solver=solver, memory=Full(), request=guided, streams=3)
    assert plan.pages_per_stream == 2 * (2 + 4)
    engine = ade.Engine(model, solver=solver, memory=Full(), max_pages=2 * plan.pages_per_stream)
    streams = [engine.submit(guided) for _ in range(2)]
    engine.step(1)
    assert engine.stats().pages_promised == 24 and engine.stats().pages_held == 2 * 2 + 2 * 2 * 1
    with pytest.raises(OutOfPagesError):
        engine.submit(guided)
    del streams


def test_prompts_are_written_again_where_that_failed(
    video: WanTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [engine_of(video).submit(request(seed)).result() for seed in (1, 2)]
    write, failures = WanTransformer.write_condition, [True, True]

    def sometimes(self, *given):
        if failures and failures.pop():
            raise RuntimeError("no")
        write(self, *given)

    monkeypatch.setattr(WanTransformer, "write_condition", sometimes)
    engine = engine_of(video)
    bad, same, other = (engine.submit(request(seed)) for seed in (1, 1, 2))
    with pytest.raises(ArdiffError):
        bad.result()
    assert torch.equal(same.result(), expected[0]) and torch.equal(other.result(), expected[1])


@pytest.mark.parametrize("padded", [False, True])
def test_suspended_streams_find_their_prompts_again(video: WanTransformer, padded: bool) -> None:
    expected = [engine_of(video).submit(request(seed, guidance_scale=2.0)).result() for seed in (1, 2, 3)]
    engine = engine_of(video, cuda_graphs=padded)
    first, second = (engine.submit(request(seed, guidance_scale=2.0)) for seed in (1, 2))
    engine.step(2)
    first.suspend()
    third = engine.submit(request(3, guidance_scale=2.0))
    engine.step(2)
    first.resume()
    for stream, video_alone in zip((first, second, third), expected, strict=True):
        assert torch.equal(stream.result(), video_alone)


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


def test_branches_with_views_of_their_own(video: WanTransformer) -> None:
    """Three branches, two of them with one prompt; then a new prompt for the other."""

    def asked(**options) -> ade.Request:
        branches = [
            ade.Branch(prompt(1), [3.0, 2.0, 0.5], writes=False),
            ade.Branch("null", [-1.0, 0.5, 0.5]),
            ade.Branch("null", [-1.0, -1.5, 0.0], view=ade.Past(frames=0)),
        ]
        return ade.Request(num_frames=5, lag=2, size=SIZE, seed=3, branches=branches, **options)

    alone = engine_of(video).submit(asked()).result()
    for cuda_graphs in (False, True):
        engine = engine_of(video, cuda_graphs=cuda_graphs)
        stream, other = engine.submit(asked()), engine.submit(request(1, guidance_scale=2.0))
        engine.step(1)
        fork = stream.fork()
        fork.set_condition(prompt(2))
        assert torch.equal(stream.result(), alone)
        assert not torch.allclose(fork.result(), alone, atol=1e-3)
        assert torch.equal(other.result(), engine_of(video).submit(request(1, guidance_scale=2.0)).result())
        assert engine.stats().pages_held == 0
