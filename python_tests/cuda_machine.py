# SPDX-License-Identifier: Apache-2.0
"""The fixture `machine`: a test of CUDA kernels runs on a GPU, and on a CPU that emulates one.

"emulated" compiles csrc/cuda and csrc/bindings, unchanged, against cuda_emulation/launchers/cuda_runtime.h,
and makes the ops launch those kernels on CPU tensors. It covers indices, barriers, shuffles, bindings and the
Python side; what it cannot cover is what a GPU does differently: memory order, its own sines, the driver.

Uninitialised tensors are filled with NaN (torch's deterministic mode): a value that no thread writes shows.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import torch

from ardiff_engine.ops import backend, cuda_launch
from ardiff_engine.ops.backend import Choice

ROOT = Path(__file__).resolve().parent.parent
EMULATION = ROOT / "python_tests" / "cuda_emulation" / "launchers"


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """csrc/cuda as a module for this CPU."""
    compiler = shutil.which("g++")
    assert compiler, "needs g++, as the native module does"
    library = tmp_path_factory.mktemp("emulated_cuda") / "emulated_cuda.so"
    includes = [EMULATION, ROOT / "csrc" / "include", ROOT / "csrc", pybind11.get_include()]
    includes.append(sysconfig.get_path("include"))
    command = [compiler, "-shared", "-fPIC", "-O1", "-std=c++17", "-x", "c++", "-DARDIFF_WITH_CUDA=1"]
    command += ["-ffp-contract=off", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
    command += [f"-I{folder}" for folder in includes]
    result = subprocess.run(
        [*command, str(EMULATION / "module.cpp"), "-o", str(library)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    spec = importlib.util.spec_from_file_location("emulated_cuda", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device of the test's tensors; every op launches its CUDA kernel or raises."""
    if request.param == "gpu":
        monkeypatch.setenv("ARDIFF_BACKEND", "cuda")
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        module = request.getfixturevalue("emulated_module")
        monkeypatch.setattr(cuda_launch, "cuda", lambda: module.cuda)
        monkeypatch.setattr(cuda_launch, "_place", lambda device: (0, 0))
        monkeypatch.setattr(backend, "_choice", lambda op, tensors: Choice("cuda", "emulated"))
        device = torch.device("cpu")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    cuda_launch.error_bits(device).zero_()
    yield device
    torch.use_deterministic_algorithms(before)
    cuda_launch.check_device(device)
