# SPDX-License-Identifier: Apache-2.0
"""The NVRTC route on an emulated GPU: the launches, the bytes of the arguments and the results are those of
the launchers built ahead of time; and everything that can be missing or go wrong is a typed error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from emulated_cupy import EmulatedCupy, draw, same_as_ahead_of_time, through_nvrtc  # noqa: F401

from ardiff_engine import ops
from ardiff_engine._native import native
from ardiff_engine.errors import BackendNotAvailableError, KernelError
from ardiff_engine.kernels import nvrtc
from ardiff_engine.ops import backend, cuda_launch, cuda_route

pytest_plugins = ["cuda_machine"]
CPU = torch.device("cpu")


def elementwise(dtype: torch.dtype) -> list[torch.Tensor]:
    """Every op but attention, small shapes that are multiples of nothing, some with several kernels."""
    results: list[torch.Tensor] = []
    x, rows = draw(0, 5, 77).to(dtype), draw(1, 3, 77).to(dtype)
    ids = torch.tensor([0, 2, 1, 1, 0], dtype=torch.int32)
    results += ops.modulate(x, rows, rows, ids, return_normed=True)
    long = draw(2, 2, 4500).to(dtype)
    results.append(ops.modulate(long, long, long, ids[3:], norm="rms"))
    results.append(ops.gate_residual(x, x, rows, ids, bias=rows[0]))
    keys = torch.arange(25).reshape(5, 5)
    results += ops.add_noise(x, rows[0, :5].float(), rows[1, :5].float(), keys=keys, target="v")
    results += ops.solver_step(
        x, x[None], rows[None, 0, :5].float(), draw(3, 5, 8), history1=x, history2=x, history3=x, keys=keys
    )
    results.append(ops.philox_normal(keys, 11))
    results.append(ops.sample_timesteps(40, 3, 50, seed=9))
    pool = draw(4, 2, 4, 3, 2, 5, 10).to(dtype)
    k, v = pool.unbind(0)
    ops.copy_pages_(k, v, torch.tensor([0]), torch.tensor([2]))
    frequencies = torch.rand(5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ops.rotate_pages_(k, torch.tensor([2, 1]), torch.tensor([7, -3]), frequencies)
    ops.pool_pages_(k, torch.tensor([[0, 1]]), torch.tensor([k.shape[3]]))
    for dim in (10, 200):
        pages = draw(6, 2, 3, 1, 4, dim).to(dtype)
        results.append(
            ops.norm_rope_write_(
                draw(7, 3, 4 * dim).to(dtype),
                *pages,
                torch.tensor([0, 5, -1]),
                torch.tensor([3, 1, 4]),
                heads=2,
                kv_heads=1,
                norm="rms",
                frequencies=torch.rand(dim // 2, dtype=torch.float64) * 0 + 0.3,
            )  # fmt: skip
        )
        results.append(pages)
    return [*results, pool]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_launches_and_results_are_those_of_the_launchers(cupy: EmulatedCupy, dtype: torch.dtype) -> None:
    same_as_ahead_of_time(cupy, lambda: elementwise(dtype))


def test_every_kernel_that_a_launcher_starts_is_listed_by_its_name(
    emulated_modules: Callable[[str], ModuleType],
) -> None:
    kernels = native().launches.kernels()  # type: ignore[union-attr]
    listed = [name for name in kernels if "frame_attention" not in name]
    assert sorted(listed) == emulated_modules("module").emulation.kernels()
    assert len(kernels) > len(listed) and all(min(sizes) > 0 for sizes in kernels.values())


def modulate() -> torch.Tensor:
    x = draw(0, 2, 20)
    return ops.modulate(x, x, x, torch.zeros(2, dtype=torch.int32))


def test_a_kernel_is_compiled_once_per_machine_and_loaded_once_per_device(
    cupy: EmulatedCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = modulate()
    assert torch.equal(modulate(), first)
    ((kernel, options),) = cupy.nvrtc.compiled
    assert kernel == "ardiff::cuda::modulate_kernel<float, 1>" and cupy.loaded == [kernel]
    assert "-arch=sm_90" in options and "-fmad=false" in options and cupy.nvrtc.alive == 0
    monkeypatch.setattr(cuda_launch, "_place", lambda device: (1, 5))  # a second GPU: its own context
    modulate()
    nvrtc._function.cache_clear()  # as in another process
    modulate()
    assert len(cupy.nvrtc.compiled) == 1 and len(cupy.loaded) == 3
    assert cupy.devices == [0, 0, 1, 1] and cupy.streams == [77, 77, 5, 5]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 1))  # newer than this NVRTC
    nvrtc._function.cache_clear()
    assert torch.equal(modulate(), first)
    assert "-arch=compute_120" in cupy.nvrtc.compiled[1][1]


def test_a_kernel_that_does_not_compile_shows_the_log(cupy: EmulatedCupy) -> None:
    cupy.nvrtc.broken.add("ardiff::cuda::modulate_kernel<float, 1>")
    with pytest.raises(KernelError, match=r"sm_90.*\n.*modulate.cu\(7\): error: expected a"):
        modulate()
    assert cupy.nvrtc.alive == 0
    cupy.nvrtc.broken.clear()
    modulate()  # the failure was not kept


def test_what_the_driver_refuses_is_a_typed_error(cupy: EmulatedCupy) -> None:
    cupy.refuses = "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
    with pytest.raises(BackendNotAvailableError, match="UNSUPPORTED_PTX.*Update the driver"):
        modulate()
    cupy.refuses = ""
    launchers = nvrtc.launchers()
    assert launchers is not None
    x = draw(0, 8193)
    arguments = (*[x.data_ptr()] * 5, 0, 1, 8193, 1, 8193, 8193, 1, 1e-6, 0)
    with pytest.raises(KernelError, match="modulate_float32: CUDA refused the launch: cudaErrorInvalidValue"):
        cuda_launch.launch("modulate_float32", CPU, *arguments)
    nothing = launchers.philox_normal(0, x.data_ptr(), 0, 5, 0, 77)
    assert nothing == 0 and cupy.streams == []
    cupy.gpu.start = None
    cupy.launchKernel = refused  # type: ignore[method-assign]
    with pytest.raises(KernelError, match="modulate_kernel<float, 1>: CUDA refused.*ILLEGAL_ADDRESS"):
        modulate()


def refused(*_: object) -> None:
    raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")


def test_the_first_call_inside_of_a_capture_is_refused(
    cupy: EmulatedCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(KernelError, match="before the capture"):
        modulate()
    assert cupy.nvrtc.compiled == []


def test_what_is_missing_is_named(cupy: EmulatedCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    def why() -> str | None:
        nvrtc.why_no_nvrtc.cache_clear()
        assert (nvrtc.launchers() is None) == (nvrtc.why_no_nvrtc() is not None)
        return nvrtc.why_no_nvrtc()

    assert why() is None
    cupy.nvrtc.version = (14, 1)
    assert why() == "the driver is for CUDA 13.0, older than NVRTC 14.1"
    cupy.driver_version = 0
    assert why() == "there is no NVIDIA driver"
    cupy.driver_version = 14010
    with monkeypatch.context() as patch:
        patch.setattr(cupy.nvrtc, "getVersion", missing)
        assert why() == "NVRTC is not installed (pip install nvidia-cuda-nvrtc): libnvrtc.so.13 not found"
        patch.setattr(nvrtc, "_cupy", missing)
        assert "CuPy does not load: libnvrtc" in str(why())
        patch.setattr(nvrtc.importlib.util, "find_spec", lambda name: None)
        assert "CuPy is not installed" in str(why())
        patch.setattr(nvrtc, "source_folder", lambda: None)
        assert why() == "the CUDA sources are not installed"
        patch.setattr(nvrtc, "native", lambda: None)
        patch.setattr(nvrtc, "why_not", lambda: "it was not built")
        assert why() == "it was not built"
    assert why() is None


def missing() -> tuple[int, int]:
    raise OSError("libnvrtc.so.13 not found\nsearched here and there")


def test_the_route_is_named_and_a_build_with_nvcc_goes_first(
    cupy: EmulatedCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ARDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr(cuda_route._native, "cuda", lambda: None)
    assert cuda_route.cuda() is nvrtc.launchers() and cuda_route.why_no_cuda() is None
    assert cuda_route.why_cuda() == f"NVRTC 13.0 compiles the CUDA kernels at first use, into {tmp_path}"
    assert cuda_launch.cuda_error("modulate", 1).args[0].startswith("modulate: CUDA refused the launch")
    monkeypatch.setattr(cuda_route._native, "cuda", lambda: cupy.module.cuda)
    assert cuda_route.cuda() is cupy.module.cuda
    assert cuda_route.why_cuda() == "the CUDA kernels are built"
    monkeypatch.setattr(cuda_route._native, "cuda", lambda: None)
    monkeypatch.setattr(cuda_route._native, "why_no_cuda", lambda: "built without CUDA")
    cupy.driver_version = 12040
    nvrtc.why_no_nvrtc.cache_clear()
    reason = "built without CUDA, and NVRTC cannot compile the kernels: the driver is for CUDA 12.4"
    assert cuda_route.why_cuda().startswith(reason)


def test_the_cpu_never_looks_for_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "why_no_nvrtc", missing)
    assert modulate().isfinite().all() and backend.choose("modulate", draw(0, 2)).name == "cpu"
