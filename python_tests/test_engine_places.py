# SPDX-License-Identifier: Apache-2.0
"""Frames that are seen elsewhere than they were written: the engine turns their keys, and equals the plain
algorithm that keeps keys without rotation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.raw_keys import RawARDiffusion, RawWan, sampled
from helpers.small_wan import prompt, small_wan
from inside import inside
from test_ar_diffusion import tiny

import ardiff_engine as ade
from ardiff_engine import ops, plan
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory import Fed, Full, MemoryPolicy, Placed, Run, Window
from ardiff_engine.memory.view import agree
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.models.wan.positions import rotated, rotation

SOLVER = solvers.DDIM(NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000), num_inference_steps=3)
BLOCK = 2
ROLLING = [(4, 0), (4, 2), (6, 3)]  # size, sink


def from_the_start(seen: list[int]) -> list[int]:
    return list(range(len(seen)))


def before_the_rest(seen: list[int]) -> list[int]:
    """The first run of consecutive frames ends where the last one begins."""
    gap = next((i for i in range(1, len(seen)) if seen[i] != seen[i - 1] + 1), 0)
    return [seen[gap] - gap + i for i in range(gap)] + seen[gap:]


WHERE: dict[str, Callable[[list[int]], list[int]]] = {"window": from_the_start, "anchored": before_the_rest}


def engine_of(model, memory: MemoryPolicy, **options) -> Engine:
    return Engine(model, **{"solver": SOLVER, "memory": memory, "max_pages": 600} | options)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def network(merge: str = "separate_norm", **options):
    return tiny(merge, "temporal_causal", "rope", **options)


def frames_at_ticks(stream: Stream, seen: dict[int, dict[int, torch.Tensor]]) -> None:
    seen.setdefault(stream.ticks_done, {f: x.clone() for f, x in stream.latents.items()})


def agrees_at_every_tick(model, memory, options: dict, expected: list[torch.Tensor], **engine) -> None:
    seen: dict[int, dict[int, torch.Tensor]] = {}
    request = Request(**options, on_step=lambda stream: frames_at_ticks(stream, seen))
    result = engine_of(model, memory, **engine).submit(request).result()
    seen.pop(0, None)
    assert len(seen) == len(expected)
    for (tick, own), plain in zip(seen.items(), expected, strict=True):
        for frame, latent in own.items():
            assert relative(latent, plain[frame]) < 1e-5, f"tick {tick}, frame {frame}"
    assert relative(result, expected[-1]) < 1e-5


@pytest.mark.parametrize("positions", WHERE)
@pytest.mark.parametrize(("size", "sink"), ROLLING)
@pytest.mark.parametrize(("merge", "guidance"), [("separate_norm", 1.0), ("share_norm", 2.0)])
def test_paged_is_the_plain_algorithm(merge, guidance, size, sink, positions) -> None:
    model, generator = network(merge), torch.Generator().manual_seed(size)
    noise = torch.randn(10, 3, model.config.channels, generator=generator)
    given = torch.randn(8, 3, model.config.channels, generator=generator)
    condition = torch.randn(5, 12, generator=generator)
    contexts, weights = [condition.double()], [1.0]
    if guidance != 1:
        contexts, weights = [condition.double(), torch.zeros(5, 12).double()], [guidance, 1 - guidance]
    for prefix in (None, given) if guidance == 1 else (None,):
        plain = [RawARDiffusion(model, context) for context in contexts]

        def call(*args):
            return sum(w * own.call(*args) for w, own in zip(weights, plain, strict=True))  # noqa: B023

        where = WHERE[positions]
        expected = list(sampled(call, noise, SOLVER, BLOCK, size, sink, where, prefix))
        frames = len(noise) + (0 if prefix is None else len(prefix))
        options = {"num_frames": frames, "plan": plan.blocks(BLOCK), "condition": condition, "latents": noise}
        options |= {"guidance_scale": guidance, "prefix": prefix}
        agrees_at_every_tick(model, Placed(Window(size, sink), positions), options, expected)


@pytest.fixture(scope="module")
def wan() -> WanTransformer:
    return small_wan()


@pytest.mark.parametrize("positions", WHERE)
@pytest.mark.parametrize(("size", "sink"), ROLLING)
def test_paged_wan_is_the_plain_algorithm(wan: WanTransformer, size: int, sink: int, positions: str) -> None:
    generator = torch.Generator().manual_seed(size)
    noise, text = torch.randn(12, 3, 4, 6, generator=generator), prompt(size)
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), 2)
    plain = RawWan(wan, text)
    expected = list(sampled(plain.call, noise, solver, BLOCK, size, sink, WHERE[positions]))
    options = {"num_frames": len(noise), "plan": plan.blocks(BLOCK), "condition": text, "size": (4, 6)}
    agrees_at_every_tick(
        wan,
        Placed(Window(size, sink), positions),
        options | {"latents": noise},
        expected,
        solver=solver,
    )


def test_frame_angles_turn_a_key_by_one_frame(wan: WanTransformer) -> None:
    for model in (network(), wan):
        spec = model.spec
        assert spec.frame_angles is not None and len(spec.frame_angles) == spec.head_dim / 2
    key = torch.randn(1, 1, 24, dtype=torch.float64)
    there, one = (rotated(key, *rotation(torch.tensor([[f, 2, 3]]), 24)) for f in (5, 6))
    turn = torch.tensor(wan.spec.frame_angles, dtype=torch.float64)[None]
    torch.testing.assert_close(rotated(there, turn.cos(), turn.sin()), one)


REQUESTS = [
    Request(14, plan=plan.blocks(2), seed=1, memory=Placed(Window(4, 2), "window")),
    Request(9, plan=plan.blocks(1), seed=2, memory=Placed(Window(3), "window"), guidance_scale=2.0),
    Request(12, plan=plan.blocks(3), seed=3, memory=Placed(Window(6, 3), "anchored")),
    Request(12, plan=plan.rolling(3, 2), seed=4, memory=Placed(Window(10, 2, joint=True), "anchored")),
    Request(9, lag=2, seed=5, memory=Window(4, 1)),
    Request(8, plan=plan.blocks(2), seed=6, memory=Placed(Window(4, clean=False), "window")),
]


def test_alone_and_together_are_the_same_bits() -> None:
    model = network(num_frames=16)
    alone = [engine_of(model, Full()).submit(own).result() for own in REQUESTS]
    for padded in (False, True):
        engine = engine_of(model, Full(), max_pages=1200, cuda_graphs=padded)
        streams = [engine.submit(own) for own in REQUESTS]
        for stream, expected in zip(streams, alone, strict=True):
            assert torch.equal(stream.result(), expected)
        stats = engine.stats()
        assert stats.pages_held == stats.pages_promised == 0


def test_a_branch_reads_moved_frames_of_another_one() -> None:
    """Of the same condition, so that both together are the video of one branch."""
    one, memory = torch.randn(5, 12), Placed(Window(4, 2), "window")
    options = {"num_frames": 14, "plan": plan.blocks(2), "seed": 3}
    branches = [ade.Branch(one, 3.0, writes=False), ade.Branch(one, -2.0)]
    got = engine_of(network(num_frames=16), memory).submit(Request(branches=branches, **options)).result()
    want = engine_of(network(num_frames=16), memory).submit(Request(condition=one, **options)).result()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_wan_frames_of_two_sizes_move_in_one_pass(wan: WanTransformer) -> None:
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), 2)
    requests = [
        Request(8, plan=plan.blocks(2), size=size, seed=seed, condition=prompt(seed))
        for seed, size in enumerate([(4, 6), (8, 6), (2, 4)])
    ]
    memory = Placed(Window(4), "window")
    alone = [engine_of(wan, memory, solver=solver).submit(own).result() for own in requests]
    engine = engine_of(wan, memory, solver=solver)
    for stream, expected in zip([engine.submit(own) for own in requests], alone, strict=True):
        assert torch.equal(stream.result(), expected)


MEMORIES = [Placed(Window(4, 2), "window"), Placed(Window(4), "window"), Placed(Window(4, 2), "anchored")]


def begun(memory: MemoryPolicy, passes: int, **options) -> Stream:
    engine = engine_of(network(num_frames=16), memory)
    stream = engine.submit(Request(**{"num_frames": 14, "plan": plan.blocks(2), "seed": 3} | options))
    for _ in range(passes):
        engine.step(1)
    return stream


@pytest.mark.parametrize("passes", range(12, 17))
@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_edits_while_the_window_rolls(memory: MemoryPolicy, passes: int) -> None:
    expected = begun(memory, 0, guidance_scale=2.0).result()
    stream = begun(memory, passes, guidance_scale=2.0)
    engine = stream.engine
    child = stream.fork()
    engine.step(1)
    stream.suspend()
    engine.step(1)
    assert torch.equal(child.result(), expected)
    # Other pages, and what was in them is gone.
    other = engine.submit(Request(8, plan=plan.blocks(2), seed=9))
    engine.step(1)
    stream.resume()
    assert torch.equal(stream.result(), expected)
    other.cancel()
    stats = engine.stats()
    assert stats.pages_held == stats.pages_promised == 0


@pytest.mark.parametrize("passes", range(12, 17))
@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_going_back_and_on(memory: MemoryPolicy, passes: int) -> None:
    expected = begun(memory, 0).result()
    stream = begun(memory, passes, num_frames=12)
    last = inside(stream).feeder.oldest_unfinished
    stream.rollback(last)
    for _ in range(3):
        stream.engine.step(1)
    stream.rollback(last - 2)
    stream.extend(2)
    torch.testing.assert_close(stream.result(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("effect", ["recommit", "reset"])
def test_another_condition_starts_the_places_anew(effect: str) -> None:
    """With one position rule for all, what is seen after it is a video of the frames that are still seen."""
    sink = 2 if effect == "recommit" else 0
    memory, condition = Placed(Window(6, sink), "window"), torch.randn(5, 12)
    stream = begun(memory, 0, num_frames=20)
    while inside(stream).feeder.oldest_unfinished < 12:
        stream.engine.step(1)
    receipt = stream.set_condition(condition, effect=effect)
    first = min(receipt.recommitted, default=12)
    result = stream.result()
    # The same noise for the same frames, as the latents of a video that begins with those kept.
    noise = begun(memory, 1, num_frames=20)
    starting = torch.stack([inside(noise).noise.of(frame) for frame in range(12, 20)])
    kept = sorted(receipt.recommitted)
    again = begun(
        memory,
        0,
        num_frames=len(kept) + 8,
        prefix=result[kept] if kept else None,
        latents=starting,
        condition=condition,
    )
    assert first == (12 if effect == "reset" else kept[0])
    torch.testing.assert_close(again.result()[len(kept) :], result[12:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "dtype"),
    [("window", torch.bfloat16), ("anchored", torch.float32), ("anchored", torch.bfloat16)],
)
def test_nothing_adds_up_in_an_endless_stream(positions: str, dtype: torch.dtype) -> None:
    model = network(depth=1, num_frames=16).to(dtype)
    solver = solvers.DDIM(NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000), num_inference_steps=1)
    engine = engine_of(model, Placed(Window(20, 10), positions), solver=solver, max_pages=400)
    stream = engine.submit(Request(None, plan=plan.blocks(10), max_ahead=1000))
    angles = torch.tensor(model.spec.frame_angles, dtype=torch.float64)
    checked = 0
    while stream.frames_ready < 1000:
        engine.step()
        pages = inside(stream).pages
        if stream.frames_ready < 980 or not pages._places:
            continue
        seen = pages.placed[0]
        for cell, place in pages._places.items():
            was, now = (engine.pool.k[0, held[cell]].double() for held in (pages.frames[0], seen))
            turn = ((place - pages._shifts.get(cell, 0)) * angles)[None].expand(was.shape[2], -1)
            want = rotated(was.transpose(1, 2), turn.cos(), turn.sin()).transpose(1, 2)
            assert relative(now, want) < (1e-6 if dtype == torch.float32 else 4e-3)
            checked += 1
    # The sink was written a thousand frames ago.
    assert checked and (positions == "window" or max(pages._places.values()) > 900)


def test_moves_that_fail_are_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [engine_of(network(num_frames=16), Full()).submit(own).result() for own in REQUESTS[:2]]
    rotate, calls = ops.rotate_pages_, []

    def fails_once(*arguments, **options) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("planted")
        rotate(*arguments, **options)

    monkeypatch.setattr(ops, "rotate_pages_", fails_once)
    engine = engine_of(network(num_frames=16), Full())
    for stream, video in zip([engine.submit(own) for own in REQUESTS[:2]], expected, strict=True):
        assert torch.equal(stream.result(), video)
    assert len(calls) > 3


class Elsewhere:
    """As Full, but all frames before a block are seen one place nearer."""

    chunk, by_level, proven = 1, False, False

    def __getattr__(self, name: str) -> object:
        return getattr(Full(), name)

    def begun(self, block: range, now: plan.Now) -> Elsewhere:
        return self

    def most_frames(self, ours: plan.Plan) -> int:
        return 2 * (ours.num_frames or 0)

    def stores(self, fed: Fed) -> bool:
        return fed.level == fed.steps

    def view(self, fed: Fed, now: plan.Now) -> tuple[Run, ...]:
        start = fed.block.start
        past = (Run(0, start, shift=1),) if start else ()
        return (*past, Run(start, fed.block.stop))


def test_a_memory_of_ones_own_moves_frames() -> None:
    stream = engine_of(network(num_frames=16), Elsewhere()).submit(Request(6, plan=plan.blocks(2)))
    near = engine_of(network(num_frames=16), Full()).submit(Request(6, plan=plan.blocks(2)))
    a, b = stream.result(), near.result()
    assert torch.equal(a[:2], b[:2]) and not torch.allclose(a[2:], b[2:], rtol=1e-3)


REFUSED = {
    "blocks in flight": (PlanError, "two places", Request(12, lag=1, memory=Placed(Window(4), "window"))),
    "absolute positions": (
        ConfigError,
        "absolute",
        Request(9, plan=plan.blocks(1), memory=Placed(Window(6), "window")),
    ),
    "keys that stay": (ConfigError, "frame_angles", Request(6, plan=plan.blocks(2), memory=Elsewhere())),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_move_is_refused_and_takes_nothing(name: str) -> None:
    kind, noun, request = REFUSED[name]
    positions = "rope" if name == "blocks in flight" else "absolute"
    engine = engine_of(tiny("separate_norm", "temporal_causal", positions, num_frames=16), Full())
    with pytest.raises(kind, match=noun):
        engine.submit(request)
    assert engine.stats().pages_promised == 0


def test_agree() -> None:
    assert agree([(Run(0, 3), Run(5, 7)), (Run(0, 2),)])
    assert agree([(Run(0, 3, shift=1), Run(3, 7)), (Run(2, 3, shift=1),)])
    assert agree([(Run(0, 3, shift=1),), (Run(0, 3, copy=1),)])
    assert not agree([(Run(0, 3, shift=1),), (Run(2, 5),)])
    assert not agree([(Run(0, 9),), (Run(1, 2),), (Run(4, 5, shift=2),)])


@pytest.mark.parametrize("block", [1, 2])
def test_an_extension_that_a_memory_cannot_show_is_refused_and_changes_nothing(block: int) -> None:
    """Four frames fit a window of four; of more, two blocks that move together see a frame at two places."""
    engine = engine_of(network(), Placed(Window(4), "window"))
    request = Request(num_frames=4, plan=plan.blocks(block, lag=block), seed=1)
    alone = engine.submit(request).result()
    stream = engine.submit(request)
    engine.step(4)
    with pytest.raises(PlanError, match="two places"):
        stream.extend(block)
    assert torch.equal(stream.result(), alone)


def test_frames_that_finish_together_are_stored_beside_those_of_an_extension() -> None:
    """Two frames end in the last tick of the first plan, and two start in the first of the second."""
    engine = engine_of(network(), Window(3))
    stream = engine.submit(Request(num_frames=4, plan=plan.pyramid(0.5), seed=1))
    for _ in range(3):
        engine.step(1)
    stream.extend(2)
    assert len(stream.result()) == 6
