# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on a machine without nvcc: compiled by NVRTC at first use, launched through CuPy.

`launchers()` stands in for `ardiff_engine._C.cuda`, with the same functions: `modulate_float32(arguments...,
device, stream) -> status`. Each asks the native module what its launcher would launch (`_C.launches`, from
the launchers of csrc/cuda themselves: kernels by name, grids, the bytes of every argument; a tensor map is
named by what it is encoded from), compiles what is not in memory or in the cache on disk, and starts it on
the given stream. So geometry and layouts exist once, in C++. What this route costs is some ten microseconds
of Python per launch.

Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import threading
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch

from ardiff_engine._native import native, why_not
from ardiff_engine.errors import BackendNotAvailableError, KernelError, explain
from ardiff_engine.kernels import kernel_cache
from ardiff_engine.kernels.nvrtc_compiler import (
    architecture,
    compile_kernel,
    key,
    source_folder,
    source_of,
    version,
)
from ardiff_engine.kernels.tensor_map import encode

_SHARED_WITHOUT_ASKING = 48 * 1024  # csrc/cuda/launch.cuh
_COMPILING = threading.Lock()


def launchers() -> SimpleNamespace | None:
    """The functions of `_C.cuda`, by way of NVRTC; None where that cannot work."""
    return None if why_no_nvrtc() is not None else _launchers()


@cache
def why_no_nvrtc() -> str | None:
    """Why `launchers()` is None; None where it is not. Looked up once: it imports CuPy."""
    module = native()
    if module is None:
        return why_not()
    if not hasattr(module, "launches") or source_folder() is None:
        return "the CUDA sources are not installed"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install cupy-cuda13x)"
    try:
        driver = _cupy().runtime.driverGetVersion()
    except Exception as error:  # CuPy reports a broken installation in many ways
        return f"CuPy does not load: {error}"
    if driver == 0:
        return "there is no NVIDIA driver"
    try:
        major, minor = _cupy().nvrtc.getVersion()
    except Exception as error:  # of its own kinds, from its search for the library
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"NVRTC is not installed (pip install nvidia-cuda-nvrtc): {reason}"
    if driver // 1000 < major:
        return (
            f"the driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, older than NVRTC {major}.{minor}"
        )
    return None


@cache
def route() -> str:
    """One line for people: what compiles, and where the results are kept."""
    compiler, folder = version(_cupy().nvrtc), kernel_cache.cache_folder()
    return f"NVRTC {compiler} compiles the CUDA kernels at first use, into {folder}"


@cache
def _launchers() -> SimpleNamespace:
    listed: Any = native().launches  # type: ignore[union-attr]
    names = [name for name in dir(listed) if not name.startswith("_") and name != "kernels"]
    functions = {name: partial(_launch, getattr(listed, name)) for name in names}
    return SimpleNamespace(**functions, describe=_describe, versions=_versions)


def _launch(launches_of: Any, *arguments: Any) -> int:
    """Starts what a launcher lists. The last two arguments are the number of the device and the stream."""
    *given, device, stream = arguments
    status, launches = launches_of(*given)
    if status:
        return int(status)
    cuda = _cupy()
    with cuda.Device(device):
        # The context of the device, in a thread in which nobody has used it: raw launches need a current one.
        cuda.runtime.setDevice(device)
        for kernel, grid, block, shared, values in launches:
            function = _function(kernel, device)
            given_bytes = [value if isinstance(value, bytes) else encode(value) for value in values]
            buffers = [(ctypes.c_char * len(value)).from_buffer_copy(value) for value in given_bytes]
            addresses = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
            try:
                if shared > _SHARED_WITHOUT_ASKING:
                    most = cuda.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                    cuda.driver.funcSetAttribute(function.ptr, most, shared)
                cuda.driver.launchKernel(
                    function.ptr, *grid, *block, shared, stream, ctypes.addressof(addresses), 0
                )
            except RuntimeError as error:
                raise KernelError(f"{kernel}: CUDA refused the launch: {error}") from error
    return 0


@cache
def _function(kernel: str, device: int) -> Any:
    """The kernel, loaded into the device: from the cache on disk, or compiled and put there.

    Raises:
        KernelError: it does not compile, or a CUDA graph is being captured and this is its first call.
        BackendNotAvailableError: the GPU or the driver cannot run it.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise KernelError(
            explain(
                f"{kernel} inside of a CUDA graph capture",
                got="its first call, which has to compile and load it",
                expected="a kernel that is loaded",
                fix="Call the op once with these shapes before the capture.",
            )
        )
    cuda, csrc = _cupy(), source_folder()
    if csrc is None:
        raise BackendNotAvailableError("the CUDA sources are not installed")
    with _COMPILING:  # another thread may be at the same kernel: it is on disk afterwards
        capability = torch.cuda.get_device_capability(device)
        target = architecture(cuda.nvrtc, capability, source_of(kernel, csrc))
        name = key(cuda.nvrtc, kernel, target, csrc)
        compiled = kernel_cache.load(name)
        if compiled is None:
            compiled = compile_kernel(cuda.nvrtc, kernel, target, csrc)
            kernel_cache.store(name, compiled)
        module = cuda.Module()
        try:
            module.load(compiled.binary)
            return module.get_function(compiled.symbol)
        except RuntimeError as error:
            raise BackendNotAvailableError(
                explain(
                    f"{kernel}, compiled for {target} by NVRTC {version(cuda.nvrtc)}",
                    got=f"a driver that does not load it ({error})",
                    expected="a driver at least as new as NVRTC",
                    fix="Update the driver, or set ARDIFF_BACKEND=triton or reference.",
                )
            ) from error


def _describe(status: int) -> tuple[str, str, bool]:
    """As `_C.cuda.describe`, of what a launcher itself refuses; CuPy raises everything else."""
    return "cudaErrorInvalidValue", f"invalid argument ({status})", False


def _versions() -> tuple[int, int]:
    """Driver and NVRTC, 13000 for 13.0."""
    major, minor = _cupy().nvrtc.getVersion()
    return int(_cupy().runtime.driverGetVersion()), 1000 * major + 10 * minor


def _cupy() -> Any:
    return importlib.import_module("cupy.cuda")
