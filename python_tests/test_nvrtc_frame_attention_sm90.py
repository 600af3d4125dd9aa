# SPDX-License-Identifier: Apache-2.0
"""The Hopper frame_attention through NVRTC on an emulated GPU: as through the launcher built ahead of time.

The tensor maps are encoded by a call of the emulated driver's cuTensorMapEncodeTiled through ctypes, with the
numbers that the launcher lists. That driver refuses what the real one would (alignment, strides, boxes), and
the emulated copy engine refuses a map that it did not write.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from emulated_cupy import EmulatedCupy, draw, same_as_ahead_of_time, through_nvrtc  # noqa: F401

from ardiff_engine import ops
from ardiff_engine._native import native
from ardiff_engine.errors import BackendNotAvailableError, KernelError
from ardiff_engine.kernels import nvrtc, tensor_map
from ardiff_engine.ops import attention_work, frame_attention_cuda

pytest_plugins = ["cuda_machine"]
EMULATED = "attention_sm90_module"


@pytest.fixture(name="maps")
def emulated_driver(cupy: EmulatedCupy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A Hopper GPU of 4 multiprocessors. The numbers of each call of cuTensorMapEncodeTiled but its map."""
    calls: list[tuple[int, ...]] = []
    encode = tensor_map.ENCODER(cupy.gpu.tensor_map_encoder)

    def recorded(to: int, *arguments: Any) -> int:
        assert to % tensor_map.MAP_ALIGNMENT == 0
        calls.append(tuple(tuple(x) if isinstance(x, ctypes.Array) else x for x in arguments))
        return encode(to, *arguments)

    monkeypatch.setenv("ARDIFF_HOPPER", "1")
    monkeypatch.setattr(tensor_map, "encoder", lambda: recorded)
    monkeypatch.setattr(frame_attention_cuda, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention_work, "_multiprocessors", lambda device: 4)
    return calls


def attention(dtype: torch.dtype) -> list[torch.Tensor]:
    """Dimensions of every instance, steps of 112 and of 128 keys, and parts that are merged."""
    results: list[torch.Tensor] = []
    for dim, rows in ((64, 16), (72, 112), (96, 16), (128, 112)):
        table = ops.FrameTable.build([9, 3], [[2, 0], [1]], [[16, 7], [12]])
        pool = draw(dim, 2, 3, 1, rows, dim).to(dtype)
        q = draw(1, 12, 2, dim).to(dtype)
        results += ops.frame_attention(q, pool[0], pool[1], table, return_lse=True)
    table = ops.FrameTable.build([70], [[0, 3, 1, 5, 2, 4] * 6], [[64] * 36])
    q, k = draw(8, 70, 1, 64).to(dtype), draw(9, 6, 1, 64, 64).to(dtype)
    results += ops.frame_attention(q, k, k, table, return_lse=True)
    return results


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_launches_and_results_are_those_of_the_launchers(
    cupy: EmulatedCupy, maps: list[tuple[int, ...]], dtype: torch.dtype
) -> None:
    same_as_ahead_of_time(cupy, lambda: attention(dtype))
    assert {"sm90" in kernel for kernel in cupy.loaded} == {True}
    assert any("merge" in kernel for kernel in cupy.loaded)
    assert {options[2] for _, options in cupy.nvrtc.compiled} == {"-arch=sm_90a"}
    assert cupy.gpu.wgmma() > 0 and maps


def test_a_map_is_encoded_from_what_the_pool_is(cupy: EmulatedCupy, maps: list[tuple[int, ...]]) -> None:
    """K and V with strides of their own; again only for another pool."""
    table = ops.FrameTable.build([5], [[2, 0]], [[32, 7]])
    k = draw(0, 3, 2, 2, 32, 64).to(torch.bfloat16)[:, 1]
    v = draw(1, 3, 2, 32, 2, 64).to(torch.bfloat16)[..., 1, :]
    q = draw(2, 5, 2, 64).to(torch.bfloat16)
    for _ in range(2):
        ops.frame_attention(q, k, v, table)
    bfloat16, swizzle_128, promotion_256 = 9, 3, 3
    shape, box, ones = (64, 32, 2, 3), (64, 32, 1, 1), (1, 1, 1, 1)
    modes = (0, swizzle_128, promotion_256, 0)
    assert maps == [
        (bfloat16, 4, k.data_ptr(), shape, (128, 32 * 128, 4 * 32 * 128), box, ones, *modes),
        (bfloat16, 4, v.data_ptr(), shape, (256, 32 * 256, 2 * 32 * 256), box, ones, *modes),
    ]
    ops.frame_attention(q, v, v, table)
    assert len(maps) == 2  # as v of the first calls
    ops.frame_attention(q, k.clone(), v, table)
    assert len(maps) == 3


def test_what_the_driver_does_not_encode_is_a_typed_error(
    cupy: EmulatedCupy, maps: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend() -> None:
        table = ops.FrameTable.build([5], [[0]], [[32]])
        k = draw(0, 1, 1, 32, 64).to(torch.bfloat16)
        ops.frame_attention(draw(2, 5, 1, 64).to(torch.bfloat16), k, k, table)

    with monkeypatch.context() as patch:
        patch.setattr(tensor_map, "encoder", lambda: lambda *_: 1)
        with pytest.raises(KernelError, match="cuTensorMapEncodeTiled gives 1"):
            attend()
    attend()
    assert cupy.streams == [77]


def missing(name: str) -> ctypes.CDLL:
    raise OSError(f"no {name}")


def test_a_driver_without_tensor_maps_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """None at all; one older than CUDA 12, without the function."""
    this_program = ctypes.CDLL(None)
    for found, message in (
        (missing, "no libcuda.so.1"),
        (lambda name: this_program, "cuTensorMapEncodeTiled"),
    ):
        tensor_map.encoder.cache_clear()
        monkeypatch.setattr(ctypes, "CDLL", found)
        with pytest.raises(BackendNotAvailableError, match=f"{message}.*CUDA 12.0 or newer"):
            tensor_map.encoder()


def test_the_kernel_must_be_asked_for(
    cupy: EmulatedCupy, maps: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k = draw(0, 5, 1, 64).to(torch.bfloat16), draw(1, 1, 1, 32, 64).to(torch.bfloat16)
    assert frame_attention_cuda.which_kernel(q, k, k).name == "sm_90a"
    monkeypatch.delenv("ARDIFF_HOPPER")
    assert frame_attention_cuda.which_kernel(q, k, k).reason == (
        "not sm_90a: not yet run on a GPU; ARDIFF_HOPPER=1 asks for it"
    )


def test_a_tensor_map_has_the_size_of_a_parameter() -> None:
    listed: Any = native().launches.kernels()  # type: ignore[union-attr]
    sizes = listed["ardiff::cuda::frame_attention_sm90_kernel<ardiff::BFloat16, 128, 112>"]
    assert sizes[:2] == [tensor_map.MAP_BYTES] * 2 and nvrtc.encode is tensor_map.encode


def test_every_kernel_of_the_launcher_is_listed_by_its_name(
    emulated_modules: Callable[[str], ModuleType],
) -> None:
    listed = [name for name in native().launches.kernels() if "sm90" in name]  # type: ignore[union-attr]
    assert sorted(listed) == emulated_modules(EMULATED).emulation.kernels()
