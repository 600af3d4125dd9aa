# SPDX-License-Identifier: Apache-2.0
"""Ticks over padded static buffers: the same bits as ticks over the batch itself, and what is kept of them.

There is no graph to record on a CPU. What a graph would repeat is a call over buffers, and that call runs
here: as it is (cuda_graphs=True), and through a recorder whose replay calls what was recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from inside import poison
from test_ar_diffusion import tiny
from test_engine import SCHEDULE

from ardiff_engine.diffusion import solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.engine.cuda import graphs as pass_graphs
from ardiff_engine.engine.cuda import shapes as tick_shape
from ardiff_engine.engine.cuda.buffers import PassBuffers
from ardiff_engine.engine.cuda.graphs import FIRST_OF_ITS_SHAPE, GraphRecorder, PassGraphs
from ardiff_engine.engine.cuda.shapes import room_for, room_for_entries
from ardiff_engine.errors import NumericalError, PageTableError
from ardiff_engine.memory import Full, RecomputedWindow, Window
from ardiff_engine.ops import attention_work
from ardiff_engine.ops.backend import Choice
from ardiff_engine.ops.cuda_launch import check_device

CAUSAL = ("separate_norm", "temporal_causal", "rope")
MODELS = [
    CAUSAL,
    ("share_norm", "temporal_causal", "absolute"),
    ("share_norm", "video_temporal_causal", "absolute"),
    ("reproduce", "none", "rope"),
    ("sharenorm_shift_first_t", "video_temporal_causal", "rope"),
]
PLAIN = [Request(num_frames=7, lag=lag, seed=lag) for lag in (4, 1, 2)]
MIXED = [
    *PLAIN,
    Request(num_frames=3, lag=0, seed=5, guidance_scale=2.0),
    Request(num_frames=6, lag=1, seed=6, guidance_scale=1.5, condition=torch.ones(5, 12)),
]


def engine_for(model=None, *, eta: float = 0.0, memory=None, cuda_graphs: bool | None = None) -> Engine:
    solver = solvers.DDIM(SCHEDULE, num_inference_steps=4, eta=eta)
    policy = memory or RecomputedWindow(4)
    return Engine(
        model or tiny(*CAUSAL), solver=solver, memory=policy, max_pages=200, cuda_graphs=cuda_graphs
    )


def videos(engine: Engine, requests: list[Request]) -> list[torch.Tensor]:
    """All in one engine, the later ones joining on the way."""
    streams = []
    for request in requests:
        streams.append(engine.submit(request))
        engine.step(1)
    return [stream.result() for stream in streams]


class FakeGraphs:
    """Records like a graph: what is recorded has not run, and a replay runs exactly that."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.fails = fails

    def warm_up(self, run: Callable[[], None]) -> None:
        self.calls.append("warm up")
        run()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.calls.append("record")
        if self.fails is not None:
            raise self.fails

        def replay() -> None:
            self.calls.append("replay")
            run()

        return replay

    def wait(self) -> None:
        self.calls.append("wait")


def recording(engine: Engine, recorder: GraphRecorder, most_shapes: int = 16) -> PassGraphs:
    """The engine, with its passes through this recorder."""
    runner = engine._runner
    graphs = PassGraphs(
        runner._forward, engine._schedules, engine.model.spec, recorder, most_shapes=most_shapes
    )
    runner.graphs = graphs
    return graphs


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[PassBuffers]:
    """The buffers of all shapes; what a batch need not fill is NaN before the first batch comes."""
    made: list[PassBuffers] = []

    class Poisoned(PassBuffers):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            made.append(self)
            for tensor in (self.batch.x, self.batch.condition, self.latents):
                if tensor is not None:
                    tensor.fill_(torch.nan)

    monkeypatch.setattr(pass_graphs, "PassBuffers", Poisoned)
    return made


@pytest.mark.parametrize("model", MODELS, ids="-".join)
def test_padding_changes_no_bit(model, poisoned):
    plain = videos(engine_for(tiny(*model), eta=0.5), MIXED)
    engine = engine_for(tiny(*model), eta=0.5, cuda_graphs=True)
    engine.pool.k.fill_(torch.nan)
    engine.pool.v.fill_(torch.nan)
    padded = videos(engine, MIXED)
    assert all(torch.equal(a, b) for a, b in zip(plain, padded, strict=True))
    shapes = {buffers.shape for buffers in poisoned}
    assert len(shapes) > 1 and all(shape.table.groups >= 3 for shape in shapes)


@pytest.mark.parametrize("memory", [Full(), Window(4, sink=1)], ids=lambda policy: type(policy).__name__)
def test_padding_changes_no_bit_under_other_policies(memory, poisoned):
    plain = videos(engine_for(memory=memory), PLAIN)
    padded = videos(engine_for(memory=memory, cuda_graphs=True), PLAIN)
    assert all(torch.equal(a, b) for a, b in zip(plain, padded, strict=True))


def test_buffers_have_room_that_a_batch_does_not_fill(poisoned):
    """What the tests above rely on: cells, contexts and updates are padded, not only groups."""
    requests = [Request(num_frames=1, lag=2, seed=seed) for seed in range(9)]
    plain = [engine_for().submit(request).result() for request in requests]
    engine = engine_for(cuda_graphs=True)
    streams = [engine.submit(request) for request in requests]
    assert all(torch.equal(s.result(), video) for s, video in zip(streams, plain, strict=True))
    shapes = {buffers.shape for buffers in poisoned}
    assert {(s.contexts, s.spans[0].cells, s.updates) for s in shapes} == {(10, 10, 10), (0, 10, 10)}
    assert all(bool(buffers.batch.x[9 * 3 :].isnan().all()) for buffers in poisoned)


def test_room_wastes_little():
    assert [room_for(n) for n in (0, 1, 7, 8, 9, 16, 17, 33, 100)] == [0, 1, 7, 8, 10, 16, 20, 40, 112]
    assert all(n <= room_for(n) <= 1.25 * n for n in range(1, 5000))
    assert len({room_for(n) for n in range(1, 1025)}) == 8 + 4 * 7
    assert [room_for_entries(n) for n in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 128]


def test_a_tick_is_recorded_at_its_second_time_and_repeated_from_then_on():
    recorder = FakeGraphs()
    engine = engine_for()
    graphs = recording(engine, recorder)
    plain, recorded = videos(engine_for(), PLAIN), videos(engine, PLAIN)
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
    stats = engine.stats()
    shapes = len(graphs._entries)
    assert stats.eager_passes == recorder.calls.count("warm up") == shapes
    assert stats.eager_reason == FIRST_OF_ITS_SHAPE
    assert stats.graphs_captured == recorder.calls.count("record") <= shapes
    assert stats.graph_replays == recorder.calls.count("replay") == stats.passes - shapes > 0
    # Recorded, then repeated, in the same tick: recording runs nothing.
    assert recorder.calls[recorder.calls.index("record") + 1] == "replay"
    # The same videos again meet known shapes only.
    again = videos(engine, PLAIN)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert engine.stats().eager_passes == shapes


@pytest.mark.parametrize("memory", [RecomputedWindow(4), Window(4, sink=1)], ids=["recomputed", "rolling"])
def test_an_endless_stream_comes_to_repeat_all_its_ticks(memory, monkeypatch):
    """Its window slides and its pages change from frame to frame; the shapes come back, and with them the
    sizes of the schedule that attention has on a GPU of 132 multiprocessors."""
    monkeypatch.setattr(tick_shape, "choose", lambda op, *tensors: Choice("cuda", "for its schedule"))
    monkeypatch.setattr(attention_work, "_multiprocessors", lambda device: 132)
    padded = []
    pad = pass_graphs.pad_layout
    monkeypatch.setattr(pass_graphs, "pad_layout", lambda *given: padded.append(1) or pad(*given))
    engine = engine_for(memory=memory)
    graphs = recording(engine, FakeGraphs())
    stream = engine.submit(Request(num_frames=None, lag=2, max_ahead=10_000))
    for _ in range(60):
        engine.step(1)
    before, views = engine.stats(), len(padded)
    for _ in range(100):
        engine.step(1)
    after = engine.stats()
    assert len(padded) == views, "only pages have changed"
    assert after.graph_replays - before.graph_replays == after.passes - before.passes == 100
    assert after.graphs_captured == before.graphs_captured <= 6
    assert stream.frames_ready > 70
    assert all(
        shape.table.schedule[0] == "cuda" and len(shape.table.schedule) == 8 for shape in graphs._entries
    )


def test_graphs_are_bounded_and_the_least_used_goes_first():
    recorder = FakeGraphs()
    engine = engine_for()
    graphs = recording(engine, recorder, most_shapes=2)
    plain, recorded = videos(engine_for(), MIXED), videos(engine, MIXED)
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
    assert len(graphs._entries) == 2
    assert "wait" in recorder.calls, "a graph was dropped that might still be running"
    newest = next(reversed(graphs._entries))
    engine.submit(Request(num_frames=1, lag=2)).result()
    assert newest in graphs._entries and len(graphs._entries) == 2


def test_every_thread_runs_a_tick_once_before_it_records_one():
    """Libraries keep handles and workspaces by thread, and none may be made while recording: asyncio readers
    run their steps in threads that change from step to step."""
    events: list[tuple[str, int]] = []

    class ByThread(FakeGraphs):
        def warm_up(self, run: Callable[[], None]) -> None:
            events.append(("warm up", threading.get_ident()))
            super().warm_up(run)

        def record(self, run: Callable[[], None]) -> Callable[[], None]:
            assert ("warm up", threading.get_ident()) in events
            events.append(("record", threading.get_ident()))
            return super().record(run)

    engine = engine_for()
    recording(engine, ByThread())
    streams = [engine.submit(request) for request in PLAIN]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        threads = [one, two]
        turn = 0
        while threads[turn % 2].submit(engine.step).result():
            turn += 1
    videos_of_threads = [stream.result() for stream in streams]
    expected = [engine_for().submit(request).result() for request in PLAIN]
    assert all(torch.equal(a, b) for a, b in zip(videos_of_threads, expected, strict=True))
    assert [event for event, _ in events].count("record") > 1
    assert len({thread for _, thread in events}) == 2


def test_a_recording_that_fails_is_tried_once_and_named():
    recorder = FakeGraphs(RuntimeError("operation not permitted"))
    engine = engine_for()
    recording(engine, recorder)
    plain, eager = videos(engine_for(), PLAIN), videos(engine, PLAIN)
    assert all(torch.equal(a, b) for a, b in zip(plain, eager, strict=True))
    stats = engine.stats()
    assert recorder.calls.count("record") == 1
    assert stats.graphs_captured == stats.graph_replays == 0 and stats.eager_passes == stats.passes
    assert stats.eager_reason == "recording failed: RuntimeError: operation not permitted"
    assert stats.passes_retried == 0 and stats.streams_failed == 0


def test_graphs_go_when_tables_move():
    """Another solver's rows join the tables in new memory: a graph would go on reading the old one."""
    recorder = FakeGraphs()
    engine = engine_for()
    graphs = recording(engine, recorder)
    videos(engine, PLAIN)
    kept = list(graphs._entries.values())
    other = Request(num_frames=5, lag=1, solver=solvers.DDIM(SCHEDULE, num_inference_steps=3))
    plain = engine_for().submit(other).result()
    assert torch.equal(engine.submit(other).result(), plain)
    assert not any(entry in kept for entry in graphs._entries.values())
    assert "wait" in recorder.calls


def test_graphs_go_when_memory_is_short(monkeypatch):
    recorder = FakeGraphs()
    engine = engine_for()
    graphs = recording(engine, recorder)
    plain, stream = engine_for().submit(PLAIN[0]).result(), engine.submit(PLAIN[0])
    for _ in range(4):
        engine.step(1)
    packer = engine._runner.packer
    before, pack = list(graphs._entries.values()), packer.pack
    monkeypatch.setattr(packer, "pack", lambda *_: (_ for _ in ()).throw(MemoryError()))
    short = engine._runner.free_workspace

    def free() -> None:
        monkeypatch.setattr(packer, "pack", pack)
        short()

    monkeypatch.setattr(engine._runner, "free_workspace", free)
    assert torch.equal(stream.result(), plain)
    assert before and not any(entry in before for entry in graphs._entries.values())


def test_nan_in_a_tick_that_is_repeated_fails_its_stream_alone():
    engine = engine_for()
    recording(engine, FakeGraphs())
    good, bad = engine.submit(PLAIN[0]), engine.submit(PLAIN[1])
    for _ in range(6):
        engine.step(1)
    poison(bad)
    assert torch.equal(good.result(), engine_for().submit(PLAIN[0]).result())
    with pytest.raises(NumericalError, match="tick 6"):
        bad.result()


def test_what_kernels_cannot_raise_fails_the_pass_that_met_it():
    engine = engine_for(cuda_graphs=True)
    struck = [engine.submit(request) for request in PLAIN[:2]]
    engine.step(1)
    other = engine_for(cuda_graphs=True)
    spared = other.submit(PLAIN[2])
    other.step(1)
    engine._runner.error_words[engine.device].fill_(8)
    other.step(1)
    engine.step(1)
    for stream in struck:
        with pytest.raises(PageTableError, match="page"):
            stream.result()
    assert torch.equal(spared.result(), engine_for().submit(PLAIN[2]).result())
    check_device(engine.device)  # nor does it reach whoever calls ops directly
    assert torch.equal(engine.submit(PLAIN[2]).result(), engine_for().submit(PLAIN[2]).result())


def test_off_on_a_cpu_unless_asked_for():
    engine = engine_for()
    engine.submit(PLAIN[0]).result()
    stats = engine.stats()
    assert stats.eager_passes == stats.passes and stats.eager_reason == "no CUDA graphs on cpu"
    assert engine_for().stats().eager_reason is None
    padded = engine_for(cuda_graphs=True)
    assert torch.equal(padded.submit(PLAIN[0]).result(), engine_for().submit(PLAIN[0]).result())
    assert padded.stats().graph_replays > 0
