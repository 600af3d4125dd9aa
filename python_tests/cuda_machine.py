# SPDX-License-Identifier: Apache-2.0
"""The fixture `machine`: a test of CUDA kernels runs on a GPU, and on a CPU that emulates one.

"emulated" compiles csrc/cuda and csrc/bindings, unchanged, against cuda_emulation/launchers/cuda_runtime.h
and the headers of cuda_emulation/cuda, and makes the ops launch those kernels on CPU tensors. It covers
indices, barriers, shuffles, asynchronous copies and products, fragments, bindings and the Python side; what
it cannot cover is what a GPU does differently: memory order, its own sines, the driver. A test file may name
another module of cuda_emulation/launchers in `EMULATED`.

Uninitialised tensors are filled with NaN (torch's deterministic mode): a value that no thread writes shows.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

import pybind11
import pytest
import torch

from ardiff_engine.kernels import nvrtc
from ardiff_engine.ops import attention_work, backend, cuda_launch, frame_attention_cuda

ROOT = Path(__file__).resolve().parent.parent
EMULATION = ROOT / "python_tests" / "cuda_emulation" / "launchers"
BUILT = ROOT / "build" / "emulated"
SOURCES = (EMULATION.parent, ROOT / "csrc")
_COMPILER = [
    "-shared",
    "-fPIC",
    "-Og",
    "-std=c++17",
    "-x",
    "c++",
    "-DARDIFF_WITH_CUDA=1",
    "-ffp-contract=off",
]
_COMPILER += ["-fvisibility=hidden", "-Wno-unknown-pragmas", "-Wno-attributes"]
_INCLUDES = [EMULATION, EMULATION.parent, ROOT / "csrc" / "include", ROOT / "csrc", pybind11.get_include()]
_INCLUDES.append(sysconfig.get_path("include"))


@pytest.fixture(scope="session")
def emulated_modules() -> Callable[[str], ModuleType]:
    """Modules of cuda_emulation/launchers by their file names, compiled once for these sources."""
    BUILT.mkdir(parents=True, exist_ok=True)
    sources = sorted(path for folder in SOURCES for path in folder.rglob("*") if path.is_file())
    content = hashlib.sha256(repr((_COMPILER, *map(str, _INCLUDES))).encode())
    for path in sources:
        content.update(path.read_bytes())

    @cache
    def load(stem: str) -> ModuleType:
        library = BUILT / f"{stem}_{content.hexdigest()[:16]}.so"
        with open(BUILT / f"{stem}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                for older in BUILT.glob(f"{stem}_*.so"):
                    older.unlink()
                _compile(EMULATION / f"{stem}.cpp", library)
        spec = importlib.util.spec_from_file_location(stem, library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def _compile(source: Path, library: Path) -> None:
    compiler = shutil.which("g++")
    assert compiler, "needs g++, as the native module does"
    command = [compiler, *_COMPILER, *[f"-I{folder}" for folder in _INCLUDES]]
    whole = library.with_suffix(".part")
    result = subprocess.run([*command, str(source), "-o", str(whole)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    whole.rename(library)


@pytest.fixture
def emulated(
    request: pytest.FixtureRequest, emulated_modules: Callable[[str], ModuleType]
) -> Iterator[ModuleType]:
    """The module of this file; its machine is new, and must not have met a bank conflict at the end."""
    module = emulated_modules(getattr(request.module, "EMULATED", "module"))
    module.emulation.reset()
    yield module
    assert module.emulation.bank_conflicts() == 0


ON_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("gpu", "gpu-nvrtc")]


@pytest.fixture(params=["emulated", *ON_GPU])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device of the test's tensors; every op launches its CUDA kernel or raises.

    gpu-nvrtc: the kernels that NVRTC compiles, also where others were built ahead of time.
    """
    monkeypatch.setenv("ARDIFF_BACKEND", "cuda")
    # Which kernel of frame_attention runs must not depend on who runs the tests.
    monkeypatch.delenv("ARDIFF_HOPPER", raising=False)
    if request.param == "gpu-nvrtc":
        if (why_not := nvrtc.why_no_nvrtc()) is not None:
            pytest.skip(why_not)
        for module in (backend, cuda_launch):
            monkeypatch.setattr(module, "cuda", nvrtc.launchers)
    if request.param != "emulated":
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        module = request.getfixturevalue("emulated")
        monkeypatch.setattr(backend, "cuda", mock.Mock)  # has every kernel: a module has one op's alone
        monkeypatch.setattr(backend, "_not_on_gpu", lambda given: None)
        monkeypatch.setattr(backend, "_capability", lambda device: (8, 0))
        monkeypatch.setattr(cuda_launch, "cuda", lambda: module.cuda)
        monkeypatch.setattr(cuda_launch, "_place", lambda device: (0, 0))
        monkeypatch.setattr(attention_work, "native", lambda: module)
        monkeypatch.setattr(attention_work, "_multiprocessors", lambda device: 1)
        monkeypatch.setattr(frame_attention_cuda, "_capability", lambda device: (8, 0))
        device = torch.device("cpu")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    cuda_launch.error_bits(device).zero_()
    yield device
    torch.use_deterministic_algorithms(before)
    cuda_launch.check_device(device)
