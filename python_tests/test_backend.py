# SPDX-License-Identifier: Apache-2.0
"""The choice of a backend always has a name and a reason, and a forced one is never replaced in silence."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ardiff_engine.errors import BackendNotAvailableError, ConfigError, TensorError
from ardiff_engine.ops import backend, checks
from ardiff_engine.ops.backend import Choice, backends, choose


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARDIFF_BACKEND", raising=False)
    backend._warn_once.cache_clear()


def test_float32_on_the_cpu_runs_natively() -> None:
    assert choose("modulate", torch.empty(1), None).name == "cpu"


def test_everything_else_runs_on_the_reference_and_says_why() -> None:
    wide = choose("modulate", torch.empty(1, dtype=torch.float64))
    assert wide.name == "reference" and "float64" in wide.reason
    with pytest.warns(RuntimeWarning, match="meta"):
        elsewhere = choose("modulate", torch.empty(1, device="meta"))
    assert elsewhere.name == "reference" and "meta" in elsewhere.reason


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "native", lambda: None)
    monkeypatch.setattr(backend, "why_not", lambda: "it was not built")
    assert choose("modulate", torch.empty(1)) == Choice("reference", "it was not built")
    monkeypatch.setenv("ARDIFF_BACKEND", "cpu")
    with pytest.raises(BackendNotAvailableError, match="not built"):
        choose("modulate", torch.empty(1))


def test_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARDIFF_BACKEND", "reference")
    assert choose("modulate", torch.empty(1)).name == "reference"
    monkeypatch.setenv("ARDIFF_BACKEND", "cpu")
    assert choose("modulate", torch.empty(1)).name == "cpu"
    with pytest.raises(BackendNotAvailableError, match="float64"):
        choose("modulate", torch.empty(1, dtype=torch.float64))
    monkeypatch.setenv("ARDIFF_BACKEND", "fastest")
    with pytest.raises(ConfigError, match="fastest"):
        choose("modulate", torch.empty(1))


PAGES = {"copy_pages_": "pages", "rotate_pages_": "pages"}


class Elsewhere:
    """What `choose` looks at, as if on a GPU: this machine may have none."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dtype, self.device = dtype, torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of capability 9.0 and a native module with the CUDA kernels of two ops."""
    module = SimpleNamespace(modulate_float32=None, copy_pages=None)
    monkeypatch.setattr(backend, "cuda", lambda: module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: module.capability)
    module.capability = (9, 0)
    monkeypatch.setattr(backend, "_why_no_triton", lambda op: None if op == "add_noise" else "no such kernel")
    return module


def test_a_gpu_takes_cuda_then_triton_then_the_reference(gpu: SimpleNamespace) -> None:
    assert choose("modulate", Elsewhere(), None).name == "cuda"
    assert choose("copy_pages_", Elsewhere(torch.float32)).name == "cuda"
    portable = choose("add_noise", Elsewhere())
    assert portable.name == "triton" and "no CUDA kernel of add_noise" in portable.reason
    with pytest.warns(
        RuntimeWarning, match="solver_step runs on the PyTorch reference: not cuda: .*not triton"
    ):
        last = choose("solver_step", Elsewhere())
    assert last.name == "reference" and "no such kernel" in last.reason


def test_the_reason_names_where_the_cuda_kernels_come_from(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "why_cuda", lambda: "NVRTC 13.0 compiles them")
    assert choose("modulate", Elsewhere()) == Choice("cuda", "NVRTC 13.0 compiles them")
    monkeypatch.setattr(backend, "cuda", lambda: None)
    monkeypatch.setattr(backend, "why_no_cuda", lambda: "no nvcc, and CuPy is not installed")
    portable = choose("add_noise", Elsewhere())
    assert portable == Choice("triton", "not cuda: no nvcc, and CuPy is not installed; Triton is installed")


def test_what_a_gpu_cannot_run_is_named(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(RuntimeWarning, match="float64"):
        assert choose("modulate", Elsewhere(torch.float64)).name == "reference"
    with pytest.warns(RuntimeWarning, match="tensors are on cuda"):
        assert choose("add_noise", Elsewhere(), torch.empty(1)).name == "reference"
    gpu.capability = (7, 5)
    monkeypatch.setenv("ARDIFF_BACKEND", "cuda")
    with pytest.raises(BackendNotAvailableError, match="capability 7.5"):
        choose("modulate", Elsewhere())
    with pytest.raises(BackendNotAvailableError, match="no CUDA kernel of add_noise"):
        choose("add_noise", Elsewhere())
    with pytest.raises(BackendNotAvailableError, match="tensors are on cpu"):
        choose("modulate", torch.empty(1))
    monkeypatch.setenv("ARDIFF_BACKEND", "triton")
    assert choose("add_noise", Elsewhere()).reason == "ARDIFF_BACKEND=triton"
    with pytest.raises(
        BackendNotAvailableError, match="ARDIFF_BACKEND=triton for modulate: got no such kernel"
    ):
        choose("modulate", Elsewhere())
    monkeypatch.setattr(backend, "cuda", lambda: None)
    monkeypatch.setattr(backend, "why_no_cuda", lambda: "it was built without CUDA")
    monkeypatch.setenv("ARDIFF_BACKEND", "cuda")
    with pytest.raises(BackendNotAvailableError, match="built without CUDA"):
        choose("modulate", Elsewhere())


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton (no GPU)")
# linear is for the CPU: on a GPU, matrix products are the library's.
@pytest.mark.parametrize("op", [*(op for op in backend.OPS if op != "linear"), "gate_residual_"])
def test_every_op_has_a_triton_kernel_with_its_arguments(op: str) -> None:
    kernel = backend.triton_kernel(op)
    stem = op.removesuffix("_").removesuffix("_backward")
    module = importlib.import_module(f"ardiff_engine.ops.{PAGES.get(op, stem)}")
    runs = {"frame_attention": "_forward", "frame_attention_backward": "_backward", "copy_pages_": "_copy"}
    runs |= {"rotate_pages_": "_rotate", "gate_residual_": "_run_in_place"}
    runs |= {"modulate_backward": "reference_modulate_backward"}
    runs |= dict.fromkeys(
        ("norm_rope_backward", "norm_rope_pages_backward", "bias_gelu_backward"), "_run_backward"
    )
    runs |= {"gate_residual_backward": "reference_gate_residual_backward"}
    run = getattr(module, runs.get(op, "_run"))
    assert list(inspect.signature(kernel).parameters) == list(inspect.signature(run).parameters)


def test_triton_kernels_are_found_by_their_file_names() -> None:
    with pytest.raises(BackendNotAvailableError, match="no Triton kernel of no_such_op_|not installed"):
        backend.triton_kernel("no_such_op_")


def test_backends_lists_every_op_with_a_reason() -> None:
    table = backends()
    assert "frame_attention" in table and set(table) == set(backend.OPS)
    assert all(choice.reason for row in table.values() for choice in row.values())


def test_checks_name_the_argument_and_both_sides() -> None:
    x = torch.zeros(2, 3)
    checks.shape("x", x, ("N", 3))
    with pytest.raises(TensorError, match=r"shape of x: got \[2, 3\], expected \[N, 4\]"):
        checks.shape("x", x, ("N", 4))
    with pytest.raises(TensorError, match="shape of x"):
        checks.shape("x", x, ("N",))
    with pytest.raises(TensorError, match="dtype of x: got float32, expected int64"):
        checks.dtype("x", x, torch.int64)
    with pytest.raises(TensorError, match="dtype of i"):
        checks.floating("i", x.int())
    with pytest.raises(TensorError, match="as y"):
        checks.same("x", x, "y", x.double())
    with pytest.raises(TensorError, match="device of x"):
        checks.device("x", x, torch.device("meta"))
    with pytest.raises(TensorError, match="strides of x"):
        checks.contiguous("x", x.T)
    checks.inner_contiguous("x", x[:, :2])
    with pytest.raises(TensorError, match="last stride of x"):
        checks.inner_contiguous("x", x.T)
    with pytest.raises(TensorError, match="values of x"):
        checks.finite("x", x / 0)
    with pytest.raises(TensorError, match="__dlpack__"):
        checks.tensor("x", [1.0])
    assert torch.equal(checks.tensor("x", x.numpy()), x)


def test_another_device_warns_once_per_op_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    backend._warn_once.cache_clear()
    elsewhere = torch.empty(1, device="meta")
    with pytest.warns(
        RuntimeWarning, match="modulate runs on the PyTorch reference: tensors are on meta"
    ) as seen:
        for _ in range(3):
            choose("modulate", None, torch.empty(1), elsewhere)
    assert len(seen) == 1
    with pytest.warns(RuntimeWarning, match="add_noise"):
        choose("add_noise", elsewhere)
    backend._warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose("modulate", torch.empty(1))
        choose("modulate", torch.empty(1, dtype=torch.float64))
        backends()
        monkeypatch.setenv("ARDIFF_BACKEND", "reference")
        choose("modulate", elsewhere)


def test_arrays_that_cannot_be_exported_are_refused() -> None:
    with pytest.raises(TensorError, match="x: got an array that cannot be exported"):
        checks.tensor("x", np.zeros(3)[::-1].view(">f8"))
    assert checks.optional("x", None) is None
    own = np.zeros(3, np.float32)
    checks.writable("x", own).fill_(2)
    assert own.tolist() == [2, 2, 2]
