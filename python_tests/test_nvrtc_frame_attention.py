# SPDX-License-Identifier: Apache-2.0
"""frame_attention through NVRTC on an emulated GPU: as through the launcher built ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from emulated_cupy import EmulatedCupy, draw, same_as_ahead_of_time, through_nvrtc  # noqa: F401

from ardiff_engine import ops
from ardiff_engine._native import native

pytest_plugins = ["cuda_machine"]
EMULATED = "attention_module"


def attention(dtype: torch.dtype) -> list[torch.Tensor]:
    """Dimensions of every instance, one of them with parts that are merged."""
    results: list[torch.Tensor] = []
    for dim in (64, 72, 96, 128) if dtype != torch.float32 else (40,):
        table = ops.FrameTable.build([9, 3], [[2, 0], [1]], [[16, 7], [12]])
        q, k, v = (draw(seed, *shape) for seed, shape in enumerate([(12, 2, dim), *2 * [(3, 1, 16, dim)]]))
        results += ops.frame_attention(q.to(dtype), k.to(dtype), v.to(dtype), table, return_lse=True)
    table = ops.FrameTable.build([70], [[0, 3, 1, 5, 2, 4] * 4], [[64] * 24])
    q, k = draw(8, 70, 1, 64).to(dtype), draw(9, 6, 1, 64, 64).to(dtype)
    results += ops.frame_attention(q, k, k, table, return_lse=True)
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_launches_and_results_are_those_of_the_launchers(cupy: EmulatedCupy, dtype: torch.dtype) -> None:
    same_as_ahead_of_time(cupy, lambda: attention(dtype))
    assert any("merge" in kernel for kernel in cupy.loaded)
    most = max(launch[6] for launch in cupy.gpu.launches())
    assert most > 48 * 1024 if dtype != torch.float32 else most == 0


def test_every_kernel_of_the_launcher_is_listed_by_its_name(
    emulated_modules: Callable[[str], ModuleType],
) -> None:
    kernels = native().launches.kernels()  # type: ignore[union-attr]
    listed = [name for name in kernels if "frame_attention" in name and "sm90" not in name]
    assert sorted(listed) == emulated_modules("attention_module").emulation.kernels()
