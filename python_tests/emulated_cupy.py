# SPDX-License-Identifier: Apache-2.0
"""What `ardiff_engine.kernels.nvrtc` uses of `cupy.cuda`, on the emulated GPU of cuda_machine.py.

The emulated NVRTC "compiles" a kernel to its own C++ name, and the emulated driver starts the kernel of that
name (cuda_emulation/launchers/start_by_name.h) with the parameters that it is given, as cuLaunchKernel does.
"""

from __future__ import annotations

import hashlib
from types import ModuleType, SimpleNamespace
from typing import Any


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
        self.refuses = ""  # what the driver says instead of loading a module

    def driverGetVersion(self) -> int:
        return self.driver_version

    def Device(self, index: int) -> EmulatedCupy:
        self.devices.append(index)
        return self

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
        self.streams.append(stream)
        if self.gpu.start(self.loaded[function], (gx, gy, gz), (bx, by, bz), shared, parameters):
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")
