# SPDX-License-Identifier: Apache-2.0
"""One kernel of csrc/cuda, compiled by NVRTC for one GPU architecture.

The program is the file that holds the kernel; the kernel is asked for by its C++ name, so NVRTC instantiates
it and nothing else: half a second, up to three for frame_attention, where the whole file takes thirty.
`nvrtc` is the module `cupy.cuda.nvrtc`, or anything with its functions (tools/nvrtc_check.py).
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from ardiff_engine.errors import BackendNotAvailableError, KernelError, explain
from ardiff_engine.kernels.kernel_cache import CompiledKernel

# As nvcc is called (CMakeLists.txt): without -fmad=false results would differ from those of the CPU and of
# kernels compiled ahead of time.
FLAGS = ("-std=c++17", "-fmad=false")
_FORMAT = 1  # of what a key stands for; raise it when FLAGS or the includes are put together in another way
_LEAST = (8, 0)
_HOPPER, _HOPPER_FOLDER = (9, 0), "sm90"


def source_folder() -> Path | None:
    """csrc: installed with the package, or beside it in a source tree. None where there is neither."""
    package = Path(__file__).resolve().parent
    for folder in (package / "csrc", package.parent.parent / "csrc"):
        if (folder / "cuda" / "launch.cuh").is_file():
            return folder
    return None


def architecture(nvrtc: Any, capability: tuple[int, int], source: str) -> str:
    """sm_90 for (9, 0): code for this very GPU. Where this NVRTC is older than the GPU, PTX for the newest
    architecture that it knows (compute_90), which the driver translates. sm_90a for sources of sm90/: their
    instructions exist on Hopper alone, and nothing translates them.

    Raises:
        BackendNotAvailableError: the kernels do not run on this GPU.
    """
    hopper = is_hopper(source)
    if hopper and capability != _HOPPER:
        raise BackendNotAvailableError(
            explain(
                f"the kernels of csrc/cuda/{source}",
                got=f"a GPU of compute capability {capability[0]}.{capability[1]}",
                expected="9.0 (Hopper)",
                fix="Unset ARDIFF_HOPPER.",
            )
        )
    if capability < _LEAST:
        raise BackendNotAvailableError(
            explain(
                "CUDA kernels",
                got=f"a GPU of compute capability {capability[0]}.{capability[1]}",
                expected="8.0 (Ampere) or newer",
                fix="Set ARDIFF_BACKEND=reference.",
            )
        )
    wanted = 10 * capability[0] + capability[1]
    known = [number for number in nvrtc.getSupportedArchs() if number <= wanted]
    if wanted in known:
        return f"sm_{wanted}{'a' if hopper else ''}"
    if hopper or not known or max(known) < 80:
        raise BackendNotAvailableError(
            explain(
                "NVRTC",
                got=f"version {version(nvrtc)}, which does not know sm_{wanted}",
                expected=f"one that compiles for {'sm_90a' if hopper else 'sm_80 or newer'}",
                fix="Update nvidia-cuda-nvrtc.",
            )
        )
    return f"compute_{max(known)}"


def version(nvrtc: Any) -> str:
    major, minor = nvrtc.getVersion()
    return f"{major}.{minor}"


def key(nvrtc: Any, kernel: str, target: str, csrc: Path) -> str:
    """What the binary depends on: sources and headers, the kernel's name, flags, target, NVRTC."""
    parts = (str(_FORMAT), sources_digest(csrc), kernel, *FLAGS, target, version(nvrtc))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


@cache
def sources_digest(csrc: Path) -> str:
    """Of all sources and headers that NVRTC may read. Read once per process: a running process goes on with
    the sources that it began with."""
    digest = hashlib.sha256()
    for file in sorted([*(csrc / "include").rglob("*.h"), *(csrc / "cuda").rglob("*.*")]):
        digest.update(f"{file.relative_to(csrc)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def compile_kernel(nvrtc: Any, kernel: str, target: str, csrc: Path) -> CompiledKernel:
    """A cubin for sm_XX, PTX for compute_XX. `kernel` is a C++ name: ardiff::cuda::add_noise_kernel<float>.

    Raises:
        KernelError: no source has this kernel, or it does not compile; the message holds NVRTC's log.
    """
    source = source_of(kernel, csrc)
    includes = (f"-I{csrc / 'include'}", f"-I{csrc}", f"-I{csrc / 'cuda'}")
    program = nvrtc.createProgram(f'#include "cuda/{source}"\n', source, (), ())
    try:
        nvrtc.addNameExpression(program, kernel)
        try:
            nvrtc.compileProgram(program, (*FLAGS, f"-arch={target}", *includes))
        except RuntimeError as error:
            log = nvrtc.getProgramLog(program).strip()
            raise KernelError(
                f"{kernel}: NVRTC {version(nvrtc)} does not compile it for {target} ({error}):\n{log}"
            ) from error
        symbol = nvrtc.getLoweredName(program, kernel)
        binary = nvrtc.getCUBIN(program) if target.startswith("sm_") else nvrtc.getPTX(program)
    finally:
        nvrtc.destroyProgram(program)
    return CompiledKernel(symbol, binary)


@cache
def source_of(kernel: str, csrc: Path) -> str:
    """The file of csrc/cuda that declares the kernel: add_noise.cu, sm90/frame_attention.cu."""
    name = kernel.split("<")[0].rsplit("::")[-1]
    for file in sorted((csrc / "cuda").rglob("*.cu")):
        if re.search(rf"\b{name}\(", file.read_text(encoding="utf-8")):
            return file.relative_to(csrc / "cuda").as_posix()
    raise KernelError(f"{kernel}: no file of {csrc / 'cuda'} declares it; install ardiff-engine again")


def is_hopper(source: str) -> bool:
    """Whether a source of csrc/cuda is for sm_90a."""
    return source.startswith(f"{_HOPPER_FOLDER}/")
