# SPDX-License-Identifier: Apache-2.0
"""The native module: what it reports, its instruction sets, and that it shares torch's one OpenMP runtime."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from types import ModuleType

import pytest
import torch

from ardiff_engine._native import cuda, native, why_no_cuda, why_not
from ardiff_engine.errors import BackendNotAvailableError
from ardiff_engine.ops import cuda_launch


@pytest.fixture
def module() -> ModuleType:
    loaded = native()
    assert loaded is not None, why_not()
    return loaded


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables)


def test_native_and_why_not_exclude_each_other(module: ModuleType) -> None:
    assert why_not() is None


def test_build_info(module: ModuleType) -> None:
    info = module.build_info()
    assert set(info) == {"compiler", "isas", "cuda", "openmp"}
    assert re.match(r"(gcc|clang) ", info["compiler"])
    assert info["isas"][0] == "scalar"
    assert module.isa() in info["isas"]
    assert info["openmp"] is True


def test_the_cuda_part_loads_without_a_driver_and_says_what_is_missing(module: ModuleType) -> None:
    assert module.build_info()["cuda"] is (cuda() is not None) is (why_no_cuda() is None)
    if cuda() is None:
        assert "nvcc" in str(why_no_cuda())
        with pytest.raises(BackendNotAvailableError, match="nvcc"):
            cuda_launch.launch("philox_normal", torch.device("cuda", 0), 0, 0, 0, 0)
        return
    driver, toolkit = cuda().versions()
    assert toolkit >= 11000
    if driver:
        return
    status = cuda().philox_normal(0, 0, 1, 1, 0, 0)
    error = cuda_launch.cuda_error("philox_normal", status)
    assert isinstance(error, BackendNotAvailableError) and "no NVIDIA driver" in str(error)


def test_set_isa(module: ModuleType) -> None:
    before = module.isa()
    for isa in module.build_info()["isas"]:
        module.set_isa(isa)
        assert module.isa() == isa
    with pytest.raises(ValueError, match="mmx"):
        module.set_isa("mmx")
    module.set_isa(before)


LOAD = "from ardiff_engine._native import native, why_not\n"


def test_isa_from_the_environment() -> None:
    assert run(LOAD + "print(native().isa())", ARDIFF_ISA="scalar").stdout.strip() == "scalar"
    refused = run(LOAD + "print(native(), why_not())", ARDIFF_ISA="mmx").stdout
    assert refused.startswith("None") and "mmx" in refused and "scalar" in refused


def test_threads_follow_torch_in_every_thread(module: ModuleType) -> None:
    before = torch.get_num_threads()
    seen: list[tuple[int, int]] = []
    try:
        torch.set_num_threads(3)
        worker = threading.Thread(target=lambda: seen.append((module.max_threads(), torch.get_num_threads())))
        worker.start()
        worker.join()
        assert module.max_threads() == 3
        assert seen[0][0] == seen[0][1]
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_openmp_runtime_and_one_thread_pool() -> None:
    """Two pools would fight for the cores: the second library to run in parallel must not start threads."""
    code = (
        LOAD
        + """
import os, torch
from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable
torch.set_num_threads(4)
a = torch.randn(1 << 20)
a.add(a)
after_torch = len(os.listdir('/proc/self/task'))
q, k = torch.randn(64, 4, 16), torch.randn(2, 4, 32, 16)
frame_attention(q, k, k, FrameTable.build([64], [[0, 1]], [[32, 32]]))
files = {line.split()[-1] for line in open('/proc/self/maps')}
runtimes = [f for f in files if 'libgomp' in f or 'libiomp' in f or 'libomp' in f]
print(after_torch, len(os.listdir('/proc/self/task')), len(runtimes))
"""
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    after_torch, after_ours, runtimes = map(int, result.stdout.split())
    assert after_torch >= 4
    assert after_ours == after_torch
    assert runtimes == 1
