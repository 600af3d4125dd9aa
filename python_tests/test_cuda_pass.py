# SPDX-License-Identifier: Apache-2.0
"""A pass on the CUDA kernels: over padded buffers as over the batch itself, and nothing in it that a CUDA
graph cannot hold.

Emulated (cuda_machine): kernels, launchers and schedules are those of a GPU, on CPU tensors. On a GPU: the
same engine, whose graphs are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.small_wan import prompt, small_wan
from inside import poison
from test_ar_diffusion import tiny
from test_engine import SCHEDULE
from test_pass_graphs import FakeGraphs, recording
from torch.utils._python_dispatch import TorchDispatchMode

import ardiff_engine as ade
from ardiff_engine.diffusion import solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.engine.cuda.graphs import CudaGraphs, RunsAgain
from ardiff_engine.errors import NumericalError
from ardiff_engine.memory import RecomputedWindow, Window
from ardiff_engine.models.titok.codec import FrameDecoder
from ardiff_engine.ops import attention_work, backend, cuda_launch, frame_attention_cuda
from ardiff_engine.ops.backend import Choice

pytest_plugins = ["cuda_machine"]

# Values that a program reads back, sizes that depend on values, and host memory that a kernel would be given.
NOT_IN_A_GRAPH = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique",
    "aten::repeat_interleave",
    "aten::lift_fresh",
    "aten::lift_fresh_copy",
    "aten::equal",
    "aten::is_nonzero",
}


class Capturable(TorchDispatchMode):
    """Fails at an op that would stop the host, or end the recording of a graph."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert op._schema.name not in NOT_IN_A_GRAPH, op
        if op._schema.name == "aten::index":
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "the size depends on a mask"
        return op(*args, **(kwargs or {}))


class WatchedGraphs(FakeGraphs):
    """What is recorded may contain only what a graph can hold."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        def watched() -> None:
            with Capturable():
                run()

        return super().record(watched)


@pytest.fixture
def cuda_kernels(
    emulated_modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Every op launches its CUDA kernel, emulated, on CPU tensors."""
    modules = [emulated_modules(stem) for stem in ("module", "attention_module")]
    kernels = {name: getattr(m.cuda, name) for m in modules for name in dir(m.cuda) if name[0] != "_"}
    monkeypatch.setattr(cuda_launch, "cuda", lambda: SimpleNamespace(**kernels))
    monkeypatch.setattr(cuda_launch, "_place", lambda device: (0, 0))
    monkeypatch.setattr(attention_work, "native", lambda: modules[1])
    monkeypatch.setattr(attention_work, "_multiprocessors", lambda device: 4)
    monkeypatch.setattr(frame_attention_cuda, "_capability", lambda device: (8, 0))
    monkeypatch.setattr(backend, "_choice", lambda op, tensors: Choice("cuda", "emulated"))
    for module in modules:
        module.emulation.reset()
    yield
    cuda_launch.check_device("cpu")


def engine_for(**options: Any) -> Engine:
    model = tiny("separate_norm", "temporal_causal", "rope", depth=2).bfloat16()
    solver = solvers.DDIM(SCHEDULE, num_inference_steps=2, eta=0.5)
    return Engine(model, solver=solver, memory=RecomputedWindow(4), max_pages=40, **options)


def video(engine: Engine) -> torch.Tensor:
    streams = [engine.submit(Request(num_frames=3, lag=1, seed=seed)) for seed in range(2)]
    return torch.stack([stream.result() for stream in streams])


def test_a_padded_pass_on_emulated_kernels(cuda_kernels: None) -> None:
    """Padding may choose other tiles and parts, so results agree to bfloat16; but what is repeated equals
    what runs over the buffers as it is, bit for bit."""
    plain = video(engine_for())
    padded = video(engine_for(cuda_graphs=True))
    assert float((padded - plain).norm() / plain.norm()) < 1e-2
    engine = engine_for()
    graphs = recording(engine, WatchedGraphs())
    assert torch.equal(video(engine), padded)
    assert engine.stats().graph_replays > 0
    assert all(shape.table.schedule[0] == "cuda" for shape in graphs._entries)


def test_prompts_and_frame_sizes_in_a_pass_on_emulated_kernels(cuda_kernels: None) -> None:
    """Wan: two tables per pass, and a solver call for each size."""
    flow = ade.FlowSchedule(shift=3.0)

    def engine_of(**options: Any) -> Engine:
        model = small_wan().bfloat16()
        solver = solvers.Renoise(flow, [1000, 500])
        return Engine(model, solver=solver, memory=Window(3), max_pages=40, page_rows=16, **options)

    def videos(engine: Engine) -> list[torch.Tensor]:
        streams = [
            engine.submit(Request(num_frames=12, lag=1, seed=seed, size=size, condition=prompt(seed)))
            for seed, size in enumerate([(2, 6), (2, 4)])
        ]
        return [stream.result() for stream in streams]

    plain, padded = videos(engine_of()), videos(engine_of(cuda_graphs=True))
    for a, b in zip(padded, plain, strict=True):
        assert float((a - b).norm() / b.norm()) < 3e-2
    engine = engine_of()
    graphs = recording(engine, WatchedGraphs())
    assert all(torch.equal(a, b) for a, b in zip(videos(engine), padded, strict=True))
    assert engine.stats().graph_replays > 0
    assert all(own.schedule[0] == "cuda" for shape in graphs._entries for own in shape.conditions)


@pytest.mark.parametrize(
    "stops_the_host",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.isfinite().all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x + torch.tensor([1.0]),
        lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64)),
    ],
)
def test_the_watch_notices(stops_the_host: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(AssertionError), Capturable():
        stops_the_host(torch.arange(4.0))


# --- on a GPU


@pytest.fixture
def strict() -> Iterator[Callable[[], None]]:
    """Call it to make every wait for the GPU an error, until the test ends."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def engine_on_gpu(cuda_graphs: bool, dtype: torch.dtype = torch.bfloat16) -> Engine:
    model = tiny("separate_norm", "temporal_causal", "rope").to("cuda", dtype)
    solver = solvers.DDIM(SCHEDULE, num_inference_steps=4, eta=0.5)
    return Engine(model, solver=solver, memory=RecomputedWindow(4), max_pages=200, cuda_graphs=cuda_graphs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_graph_gives_the_bits_of_the_pass_that_it_holds(dtype: torch.dtype) -> None:
    videos = []
    for recorder in (RunsAgain(), CudaGraphs(torch.device("cuda"))):
        engine = engine_on_gpu(True, dtype)
        recording(engine, recorder)
        streams = [
            engine.submit(Request(num_frames=9, lag=lag, seed=lag, guidance_scale=1.0 + (lag == 2)))
            for lag in (1, 2, 4)
        ]
        videos.append([stream.result() for stream in streams])
        stats = engine.stats()
        assert stats.graph_replays > stats.passes / 4, stats
    assert all(torch.equal(a, b) for a, b in zip(*videos, strict=True))


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu() -> None:
    request = Request(num_frames=6, lag=2, seed=1)
    solver = solvers.DDIM(SCHEDULE, num_inference_steps=4, eta=0.5)
    cpu = Engine(tiny("separate_norm", "temporal_causal", "rope"), solver=solver, memory=RecomputedWindow(4))
    expected = cpu.submit(request).result()
    for dtype, limit in ((torch.float32, 1e-3), (torch.bfloat16, 3e-2)):
        got = engine_on_gpu(True, dtype).submit(request).result().cpu()
        assert got.dtype == torch.float32
        assert float((got - expected).norm() / expected.norm()) < limit


@pytest.mark.gpu
def test_a_thousand_ticks_never_wait_for_the_gpu(strict: Callable[[], None]) -> None:
    engine = engine_on_gpu(True)
    stream = engine.submit(Request(num_frames=None, lag=2, max_ahead=10_000))
    for _ in range(100):
        engine.step(1)
    before = engine.stats()
    strict()
    for _ in range(1000):
        engine.step(1)
        stream.take_ready()
    after = engine.stats()
    assert after.graph_replays - before.graph_replays == 1000
    assert after.eager_passes == before.eager_passes and after.graphs_captured == before.graphs_captured


@pytest.mark.gpu
def test_nan_on_a_gpu_fails_its_stream_alone() -> None:
    engine = engine_on_gpu(True)
    good, bad = (engine.submit(Request(num_frames=6, lag=2, seed=seed)) for seed in range(2))
    for _ in range(6):
        engine.step(1)
    poison(bad)
    assert bool(torch.isfinite(good.result()).all())
    with pytest.raises(NumericalError):
        bad.result()


@pytest.mark.gpu
def test_decoding_has_a_cuda_stream_of_its_own_and_keeps_the_order() -> None:
    """The same pictures as decoded inline, while the engine's stream is busy."""
    pipe = ade.Pipeline.from_pretrained("moving-digits", device="cuda", dtype=torch.bfloat16)
    options = {"num_frames": 12, "num_inference_steps": 4, "lag": 2, "seed": 1}
    main, streams = torch.cuda.current_stream(), []
    call = FrameDecoder.push

    def watched(decoder: FrameDecoder, latents: torch.Tensor) -> torch.Tensor:
        streams.append(torch.cuda.current_stream())
        return call(decoder, latents)

    with mock.patch.object(FrameDecoder, "push", watched):
        frames = list(pipe.stream(**options))
    assert [frame.index for frame in frames] == list(range(12))
    assert len(streams) == 12 and main not in streams and len(set(streams)) == 1
    decoder = FrameDecoder(pipe.vae)
    assert all(torch.equal(decoder.push(frame.latent[None])[0], frame.image) for frame in frames)
