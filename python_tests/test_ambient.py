# SPDX-License-Identifier: Apache-2.0
"""What a caller has switched on in PyTorch or NumPy changes no bit of a result, or is a typed error."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_ar_diffusion import tiny
from test_engine import SCHEDULE, engine_for
from test_special_values import CASES, Case, _results
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import ardiff_engine as ade
from ardiff_engine.engine import Request
from ardiff_engine.errors import ArdiffError, ConfigError, TensorError
from ardiff_engine.memory import Window

Context = Callable[[], AbstractContextManager[object]]


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def switched(switch: Callable[[Any], object], on: object, off: object) -> Context:
    @contextlib.contextmanager
    def context() -> Iterator[None]:
        switch(on)
        try:
            yield
        finally:
            switch(off)

    return context


@contextlib.contextmanager
def warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


CONTEXTS: dict[str, Context] = {
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "device meta": lambda: torch.device("meta"),
    "default device meta": switched(torch.set_default_device, "meta", None),
    "default dtype float64": switched(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype bfloat16": switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "deterministic": switched(torch.use_deterministic_algorithms, True, False),
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings as errors": warnings_as_errors,
    "function mode": FunctionMode,
    "dispatch mode": DispatchMode,
    "no torch functions": torch._C.DisableTorchFunction,
    "forward mode": forward_ad.dual_level,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "saved on the CPU": torch.autograd.graph.save_on_cpu,
    "printing": switched(lambda digits: torch.set_printoptions(precision=digits), 1, 4),
}
both = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())
ROUNDING: dict[str, Context] = {
    "one thread": switched(torch.set_num_threads, 1, torch.get_num_threads()),
    "three threads": switched(torch.set_num_threads, 3, torch.get_num_threads()),
    "matmul precision": switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "flop counter": lambda: FlopCounterMode(display=False),
    "math attention": lambda: sdpa_kernel(SDPBackend.MATH),
}
"""Settings of the process, and a mode that takes functions apart: they choose how PyTorch computes."""


def given(case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    random = torch.Generator("cpu").manual_seed(0)
    return {
        name: torch.randn(shape, generator=random, dtype=torch.float32, device="cpu").to(
            torch.float64 if name == "frequencies" else dtype
        )
        for name, shape in case.shapes.items()
    }


def dtypes(name: str) -> list[torch.dtype]:
    return [torch.float32] if name.startswith("linear") else [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("name", CASES)
def test_ops(name: str) -> None:
    case = CASES[name]
    for dtype in dtypes(name):
        inputs = given(case, dtype)
        want = _results(case.run(**inputs))
        for which, context in CONTEXTS.items():
            try:
                with context():
                    got = _results(case.run(**inputs))
            except TensorError as error:
                # The case makes its ids there.
                assert "meta" in which and "on meta" in str(error), which
                continue
            for one, other in zip(got, want, strict=True):
                assert one.dtype == other.dtype and torch.equal(one, other), which


@pytest.mark.parametrize("name", CASES)
def test_ops_in_front_of_tracers_and_transforms(name: str) -> None:
    """A kernel that runs past the dispatcher would leave nothing in a graph, and read what is not there."""
    case = CASES[name]
    inputs = given(case, torch.float32)
    want = _results(case.run(**inputs))

    def run(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(_results(case.run(**dict(zip(inputs, values, strict=True)))))

    example = [value + 1 for value in inputs.values()]
    for trace in (lambda: torch.jit.trace(run, example, check_trace=False), lambda: make_fx(run)(*example)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = trace()
            got = _results(graph(*inputs.values()))
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    negated = [torch._neg_view(-value) for value in inputs.values()]
    assert all(torch.equal(one, other) for one, other in zip(run(*negated), want, strict=True))
    with pytest.raises(TensorError, match=r"torch\.func"):
        torch.func.vmap(run)(*(torch.stack([value, value]) for value in inputs.values()))
    with pytest.raises(TensorError, match=r"torch\.func"):
        torch.func.grad(lambda value: run(value, *list(inputs.values())[1:])[0].sum())(example[0])
    with forward_ad.dual_level(), pytest.raises(TensorError, match="tangent"):
        run(*(forward_ad.make_dual(value, torch.ones_like(value)) for value in inputs.values()))
    with FakeTensorMode() as mode, contextlib.suppress(TensorError):
        run(*map(mode.from_tensor, inputs.values()))


def test_backward_passes_under_autocast() -> None:
    for name, case in CASES.items():
        if not case.differentiable:
            continue
        for dtype in dtypes(name):
            inputs = [value.requires_grad_() for value in given(case, dtype).values()]
            made = _results(case.run(**dict(zip(case.shapes, inputs, strict=True))))[0].sum()
            want = torch.autograd.grad(made, inputs, retain_graph=True, allow_unused=True)
            with torch.autocast("cpu", torch.bfloat16):
                got = torch.autograd.grad(made, inputs, allow_unused=True)
            for one, other in zip(got, want, strict=True):
                assert one is None or torch.equal(one, other), name


@pytest.fixture(scope="module")
def calls(tiny_model: Path) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """Public calls, each from its beginning."""
    clip = torch.randint(
        0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    model = tiny("separate_norm", "temporal_causal", "rope")
    solver = ade.solvers.DDIM(SCHEDULE, num_inference_steps=4, eta=0.5)
    pipeline = ade.Pipeline.from_pretrained(tiny_model)
    few = {"num_inference_steps": 3, "lag": 1}

    def call() -> list[torch.Tensor]:
        made = pipeline(num_frames=4, num_videos=2, guidance_scale=1.5, progress=False, seed=1, **few)
        return [made.frames, made.latents]

    def load() -> list[torch.Tensor]:
        made = ade.Pipeline.from_pretrained(tiny_model)
        return [made(num_frames=2, progress=False, seed=1, **few).frames, *made.transformer.parameters()]

    def drawn() -> list[torch.Tensor]:
        generator = torch.Generator("cpu").manual_seed(2)
        return [pipeline(num_frames=3, progress=False, generator=generator, **few).latents]

    def code() -> list[torch.Tensor]:
        latents = pipeline.encode(clip)
        return [latents, pipeline.decode(latents)]

    def engine() -> list[torch.Tensor]:
        built = ade.Engine(model, solver=solver, memory=Window(3), max_pages=200)
        streams = [built.submit(Request(num_frames=4, lag=2, seed=i, guidance_scale=1.0 + i)) for i in (0, 1)]
        built.step()
        built.step()
        streams.append(streams[0].fork(seed=3))
        streams[0].suspend()
        streams[0].resume()
        return [stream.result() for stream in streams]

    return {
        "pipeline": call,
        "loading": load,
        "generator": drawn,
        "continued": lambda: [pipeline(video=clip, num_frames=5, progress=False, seed=1, **few).frames],
        "streamed": lambda: [frame.image for frame in pipeline.stream(num_frames=3, seed=2, **few)],
        "encoded": code,
        "engine": engine,
    }


@pytest.fixture(scope="module")
def wanted(calls: dict[str, Callable[[], list[torch.Tensor]]]) -> dict[str, list[torch.Tensor]]:
    return {name: call() for name, call in calls.items()}


@both
def test_pipelines_and_engines(context: Context, calls: Any, wanted: Any) -> None:
    for name, call in calls.items():
        with context():
            got = call()
        for one, other in zip(got, wanted[name], strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other), name


@pytest.mark.parametrize("context", ROUNDING.values(), ids=ROUNDING.keys())
def test_settings_of_the_process_change_rounding_only(context: Context, calls: Any, wanted: Any) -> None:
    for name, call in calls.items():
        try:
            with context():
                got = call()
        except ConfigError as error:
            assert "hooks" in str(error), name  # the flop counter puts hooks on every module
            continue
        for one, other in zip(got, wanted[name], strict=True):
            limit = 1.0 if one.dtype == torch.uint8 else 1e-4
            assert float((one.detach().double() - other.detach().double()).abs().max()) <= limit, name


@pytest.mark.parametrize(
    "context",
    [FakeTensorMode, lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION)],
    ids=["fake tensors", "attention forbidden"],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has other attention")
def test_modes_that_cannot_be_left_are_typed_errors(context: Context, calls: Any) -> None:
    for call in calls.values():
        with context(), pytest.raises(ArdiffError):
            call()


def test_a_transform_of_torch_func_is_a_typed_error(calls: Any) -> None:
    def inside(call: Callable[[], object], value: torch.Tensor) -> torch.Tensor:
        call()
        return value

    for call in calls.values():
        with pytest.raises(ConfigError, match=r"torch\.func"):
            torch.func.vmap(lambda value, call=call: inside(call, value))(torch.ones(2))


def test_an_engine_made_in_one_mode_runs_in_another() -> None:
    def make() -> Any:
        built = engine_for(steps=3, memory=Window(3), max_pages=60)
        return built, built.submit(Request(num_frames=3, lag=1, seed=1))

    want = make()[1].result()
    with torch.inference_mode():
        built, stream = make()
    while built.step():
        pass
    assert torch.equal(stream.result(), want)
    built, stream = make()
    got: list[torch.Tensor] = []
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        built.step()
        thread = threading.Thread(target=lambda: got.append(stream.result()))
        thread.start()
        thread.join()
    assert torch.equal(got[0], want)
