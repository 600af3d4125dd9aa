# SPDX-License-Identifier: Apache-2.0
"""The Hopper frame attention kernel against float64 softmax attention, from the public op down.

Without a GPU the kernel runs on the CPU (`machine`, cuda_machine.py), with emulated mbarriers, bulk tensor
copies and wgmma: descriptors and swizzles are decoded as the PTX ISA states them. Cases and limits are those
of test_cuda_frame_attention.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from test_cuda_frame_attention import (
    BACKWARD, CASES, CAUSAL, FORWARD, LIMIT, LONG, LSE_LIMIT, RAGGED, RANDOM, SMALL, Case, attend, by_half,
    check, compare, given, on_gpu,
)  # fmt: skip
from test_frame_attention import NAN, relative

from ardiff_engine import ops
from ardiff_engine.errors import KernelError, PageTableError
from ardiff_engine.ops import cuda_launch, frame_attention_cuda
from ardiff_engine.ops.attention_work import StreamKWork, stream_k_work
from ardiff_engine.ops.frame_attention import frame_attention

pytest_plugins = ["cuda_machine"]
EMULATED = "attention_sm90_module"
HOPPER_SHARED = 227 * 1024  # bytes that a block can have


@pytest.fixture
def hopper(
    request: pytest.FixtureRequest, machine: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    """The device of the test's tensors; calls that the Hopper kernel takes run on it, which is checked."""
    if machine.type == "cuda":
        if torch.cuda.get_device_capability(machine)[0] != 9:
            pytest.skip("needs a Hopper GPU")
        yield machine
        return
    monkeypatch.setattr(frame_attention_cuda, "_capability", lambda device: (9, 0))
    yield machine
    assert request.getfixturevalue("emulated").emulation.wgmma() > 0


def work_of(case: Case, device: torch.device) -> StreamKWork:
    on = case.table().to(device)
    offsets = (on.frame_ptr, on.group_ptr, on.page_ptr, on.valid, on.seen)
    return stream_k_work(*offsets, case.heads, case.kv_heads, frame_attention_cuda.block_rows(case.rows))


def parts_of(case: Case, device: torch.device) -> int:
    return work_of(case, device).sizes[5]


@pytest.mark.parametrize("multiprocessors", [1, 5])
@pytest.mark.parametrize("name", [name for name in CASES if name != "one-token-frames"])
def test_kernel_matches_float64(
    hopper: torch.device, monkeypatch: pytest.MonkeyPatch, name: str, multiprocessors: int
) -> None:
    on_gpu(monkeypatch, multiprocessors)
    check(CASES[name], torch.bfloat16, hopper)
