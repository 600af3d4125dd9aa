# SPDX-License-Identifier: Apache-2.0
"""What `ardiff_engine.kernels.nvrtc` uses of `cupy.cuda`, on the emulated GPU of cuda_machine.py.

The emulated NVRTC "compiles" a kernel to its own C++ name, and the emulated driver starts the kernel of that
name (cuda_emulation/launchers/start_by_name.h) with the parameters that it is given, as cuLaunchKernel does.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ardiff_engine import ops
from ardiff_engine.kernels import nvrtc, tensor_map
from ardiff_engine.ops import attention_work, backend, cuda_launch

CPU = torch.device("cpu")


class EmulatedNvrtc:
    """cupy.cuda.nvrtc. `compiled` lists (kernel, options) in order; a kernel named in `broken` does not
    compile."""

    def __init__(
        self, version: tuple[int, int] = (13, 0), archs: tuple[int, ...] = (75, 80, 90, 120)
    ) -> None:
        self.version, self.archs = version, archs
        self.compiled: list[tuple[str, tuple[str, ...]]] = []
        self.broken: set[str] = set()
        self.alive = 0

    def getVersion(self) -> tuple[int, int]:
        return self.version

    def getSupportedArchs(self) -> tuple[int, ...]:
        return self.archs

    def createProgram(self, source: str, name: str, headers: Any, include_names: Any) -> SimpleNamespace:
        assert not headers and not include_names
        self.alive += 1
        return SimpleNamespace(source=source, name=name, kernel="")

    def addNameExpression(self, program: SimpleNamespace, kernel: str) -> None:
        program.kernel = kernel

    def compileProgram(self, program: SimpleNamespace, options: tuple[str, ...]) -> None:
        if program.kernel in self.broken:
            raise RuntimeError("NVRTC_ERROR_COMPILATION (6)")
        self.compiled.append((program.kernel, options))

    def getProgramLog(self, program: SimpleNamespace) -> str:
        return f'{program.name}(7): error: expected a ";"\n'

    def getLoweredName(self, program: SimpleNamespace, kernel: str) -> str:
        return "_Z" + hashlib.sha256(kernel.encode()).hexdigest()

    def getCUBIN(self, program: SimpleNamespace) -> bytes:
        return b"cubin\n" + program.kernel.encode()

    def getPTX(self, program: SimpleNamespace) -> bytes:
        return b"ptx\n" + program.kernel.encode()

    def destroyProgram(self, program: SimpleNamespace) -> None:
        self.alive -= 1


class EmulatedCupy:
    """cupy.cuda with one emulated GPU, which answers to every device number; `devices` lists those that were
    made current, `streams` the streams of all launches."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self, module: ModuleType, nvrtc: EmulatedNvrtc, driver_version: int = 13000) -> None:
        self.module, self.gpu = module, module.emulation
        self.nvrtc, self.driver_version = nvrtc, driver_version
        self.runtime = self.driver = self  # of both, what is used
        self.devices: list[int] = []
        self.streams: list[int] = []
        self.loaded: list[str] = []
        self._context = threading.local()  # a thread has none until it asks for one
        self.refuses = ""  # what the driver says instead of loading a module

    def driverGetVersion(self) -> int:
        return self.driver_version

    def Device(self, index: int) -> EmulatedCupy:
        self.devices.append(index)
        return self

    def setDevice(self, index: int) -> None:
        assert index == self.devices[-1]
        self._context.current = index

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def Module(self) -> SimpleNamespace:
        module = SimpleNamespace(kernel="")

        def load(binary: bytes) -> None:
            if self.refuses:
                raise RuntimeError(self.refuses)
            module.kernel = binary.split(b"\n", 1)[1].decode()

        def get_function(symbol: str) -> SimpleNamespace:
            assert symbol == self.nvrtc.getLoweredName(module, module.kernel)
            self.loaded.append(module.kernel)
            return SimpleNamespace(ptr=len(self.loaded) - 1)

        module.load, module.get_function = load, get_function
        return module

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        assert attribute == self.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        if self.gpu.allow_shared(self.loaded[function], value):
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")

    def launchKernel(
        self, function: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int,
        shared: int, stream: int, parameters: int, extra: int,
    ) -> None:  # fmt: skip
        assert extra == 0
        if not hasattr(self._context, "current"):
            raise RuntimeError("CUDA_ERROR_INVALID_CONTEXT: invalid device context")
        self.streams.append(stream)
        if self.gpu.start(self.loaded[function], (gx, gy, gz), (bx, by, bz), shared, parameters):
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(name="cupy")
def through_nvrtc(
    emulated_modules: Callable[[str], ModuleType],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[EmulatedCupy]:
    """Ops launch through NVRTC, on the emulated GPU; the cache on disk is empty."""
    module = emulated_modules(getattr(request.module, "EMULATED", "module"))
    module.emulation.reset()
    emulated = EmulatedCupy(module, EmulatedNvrtc())
    cached_calls = (nvrtc.why_no_nvrtc, nvrtc._launchers, nvrtc._function, nvrtc.route, tensor_map.encode)
    for cached in cached_calls:
        cached.cache_clear()
    monkeypatch.setenv("ARDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(nvrtc, "_cupy", lambda: emulated)
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda_launch, "cuda", nvrtc.launchers)
    monkeypatch.setattr(cuda_launch, "_place", lambda device: (0, 77))
    monkeypatch.setattr(attention_work, "native", lambda: module)
    monkeypatch.setattr(attention_work, "_multiprocessors", lambda device: 132)
    monkeypatch.setattr(backend, "_choice", lambda op, tensors: backend.Choice("cuda", "emulated"))
    cuda_launch.error_bits(CPU).zero_()
    yield emulated
    for cached in cached_calls:
        cached.cache_clear()


def same_as_ahead_of_time(cupy: EmulatedCupy, run: Callable[[], list[torch.Tensor]]) -> None:
    """`run` launches the same grids and gives the same bits through NVRTC as through `_C.cuda`."""
    got, launches = run(), cupy.gpu.launches()
    assert launches and len(launches) == len(cupy.streams)
    assert set(cupy.streams) == {77} and set(cupy.devices) == {0}
    cupy.gpu.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_launch, "cuda", lambda: cupy.module.cuda)
        want = run()
    assert cupy.gpu.launches() == launches and len(cupy.streams) == len(launches)
    for number, (one, other) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(one, other), number
    ops.check_device(CPU)
