# SPDX-License-Identifier: Apache-2.0
"""Compiles every CUDA kernel with NVRTC, as machines without nvcc do at first use. Needs no GPU and no nvcc.

For each kernel that a launcher can start, through the package's own code (kernels/nvrtc_compiler.py):

    cubins     for sm_80 and sm_90; those of csrc/cuda/sm90 for sm_90a alone. NVRTC's log must be empty: no
               warning, no note of ptxas that wgmma was serialised
    SASS       as tools/cuda_check.py wants it after nvcc, where there is a disassembler (Triton's wheel has
               one; the output says if it was left out)
    PTX        in which each parameter must be as large as the bytes that the native module passes for it

Exit code 0 only if all of it holds.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from cuda_check import REQUIRED_SASS, base_name, cuobjdump, function_problems, sass_functions  # noqa: E402

from ardiff_engine._native import native, why_not  # noqa: E402
from ardiff_engine.errors import KernelError  # noqa: E402
from ardiff_engine.kernels.nvrtc_compiler import (  # noqa: E402
    compile_kernel,
    is_hopper,
    source_folder,
    source_of,
    version,
)

TARGETS = ("sm_80", "sm_90", "compute_80")
HOPPER_TARGETS = ("sm_90a", "compute_90a")
PARAMETER = re.compile(r"\.param (?:\.align \d+ )?\.(\w+)[^,\[]*(?:\[(\d+)\])?")


class Nvrtc:
    """libnvrtc with the functions of `cupy.cuda.nvrtc`: CuPy itself would be a download of 100 MB more."""

    def __init__(self, library: Path) -> None:
        for builtins in sorted(library.parent.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(builtins))  # NVRTC opens it by name alone, and finds it once it is loaded
        self._library = ctypes.CDLL(str(library))

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise RuntimeError(f"{function}: status {status}")

    def getVersion(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def getSupportedArchs(self) -> tuple[int, ...]:
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        return tuple(numbers)

    def createProgram(self, source: str, name: str, *_headers: object) -> ctypes.c_void_p:
        program, text = ctypes.c_void_p(), source.encode()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, name.encode(), 0, None, None)
        return program

    def addNameExpression(self, program: ctypes.c_void_p, name: str) -> None:
        self._call("nvrtcAddNameExpression", program, name.encode())

    def compileProgram(self, program: ctypes.c_void_p, options: Sequence[str]) -> None:
        flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        self._call("nvrtcCompileProgram", program, len(options), flags)
        if self.getProgramLog(program).strip():
            raise RuntimeError("it compiles, but not without remarks")

    def getLoweredName(self, program: ctypes.c_void_p, name: str) -> str:
        lowered = ctypes.c_char_p()
        self._call("nvrtcGetLoweredName", program, name.encode(), ctypes.byref(lowered))
        return (lowered.value or b"").decode()

    def getProgramLog(self, program: ctypes.c_void_p) -> str:
        return self._output("ProgramLog", program).rstrip(b"\0").decode(errors="replace")

    def getCUBIN(self, program: ctypes.c_void_p) -> bytes:
        return self._output("CUBIN", program)

    def getPTX(self, program: ctypes.c_void_p) -> bytes:
        return self._output("PTX", program).rstrip(b"\0")

    def destroyProgram(self, program: ctypes.c_void_p) -> None:
        self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _output(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, text)
        return text.raw


def find_library() -> Path | None:
    """Of NVIDIA's wheel, or of the toolkit."""
    folders = [site for path in sys.path for site in sorted(Path(path).glob("nvidia/c*/lib"))]
    nvcc = shutil.which("nvcc")
    folders += [Path(nvcc).resolve().parent.parent / "lib64"] if nvcc else []
    for folder in [*folders, Path("/usr/local/cuda/lib64")]:
        for library in sorted(folder.glob("libnvrtc.so*")):
            return library
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="libnvrtc.so, where it is not found by itself")
    parser.add_argument("--only", default="", help="kernels whose names hold this text")
    options = parser.parse_args()
    library, module, csrc = options.library or find_library(), native(), source_folder()
    if library is None:
        print("nvrtc-check: FAILED: no libnvrtc here (pip install nvidia-cuda-nvrtc, or --library FILE)")
        return 1
    if module is None or csrc is None:
        print(f"nvrtc-check: FAILED: it needs the native module: {why_not()}")
        return 1
    nvrtc, disassembler = Nvrtc(library), cuobjdump(shutil.which("nvcc") or "nvcc")
    kernels = {name: sizes for name, sizes in module.launches.kernels().items() if options.only in name}
    print(f"nvrtc-check: NVRTC {version(nvrtc)}, {len(kernels)} kernels", flush=True)
    if disassembler is None:
        print("nvrtc-check: SASS LEFT OUT: there is no cuobjdump here (pip install triton)")
    failures = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            (name, target): pool.submit(check, nvrtc, name, sizes, target, csrc, disassembler)
            for name, sizes in kernels.items()
            for target in targets(name, csrc)
        }
        for (name, target), job in jobs.items():
            problem = job.result()
            if problem is not None:
                failures += 1
                print(f"nvrtc-check: {name} for {target}: FAILED\n{problem}", flush=True)
    print(f"nvrtc-check: {failures} failures" if failures else "nvrtc-check: ok")
    return 1 if failures or not kernels else 0


def targets(kernel: str, csrc: Path) -> tuple[str, ...]:
    return HOPPER_TARGETS if is_hopper(source_of(kernel, csrc)) else TARGETS


def check(
    nvrtc: Nvrtc, kernel: str, sizes: Sequence[int], target: str, csrc: Path, disassembler: str | None = None
) -> str | None:
    """What is wrong with a kernel, or None."""
    try:
        compiled = compile_kernel(nvrtc, kernel, target, csrc)
    except KernelError as error:
        return str(error)
    if target.startswith("sm_"):
        if compiled.binary[:4] != b"\x7fELF":
            return "not a cubin"
        return None if disassembler is None else sass_problems(compiled.binary, kernel, disassembler)
    found = list(parameter_sizes(compiled.binary.decode(), compiled.symbol))
    return None if found == list(sizes) else f"parameters of {found} bytes, the launcher passes {list(sizes)}"


def sass_problems(binary: bytes, kernel: str, disassembler: str) -> str | None:
    """What is wrong with the SASS of a kernel that cuda_check.py has demands on, or None."""
    name = base_name(kernel).rsplit("::")[-1]
    if name not in REQUIRED_SASS:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(binary)
        cubin.flush()
        functions = sass_functions(disassembler, Path(cubin.name))
    # Kernels that are no templates are compiled with every other one of their file.
    own = {function: text for function, text in functions.items() if base_name(function) == name}
    if len(own) != 1:
        return f"{name} should be once in its SASS, found {list(functions)}"
    return "\n".join(line for each in own.items() for line in function_problems(*each)) or None


def parameter_sizes(ptx: str, symbol: str) -> Iterator[int]:
    """Bytes of each parameter of an entry of a PTX program."""
    entry = re.search(rf"\.entry {re.escape(symbol)}\((.*?)\n\)", ptx, re.DOTALL)
    for kind, length in PARAMETER.findall(entry[1] if entry else ""):
        yield int(length) if length else int(kind[1:]) // 8


if __name__ == "__main__":
    sys.exit(main())
