# SPDX-License-Identifier: Apache-2.0
"""Compiles every Triton kernel for sm_80 and sm_90 and inspects the result; needs Triton, no GPU.

The kernels' own launchers are called with CPU tensors, and what they would launch is compiled instead: the
same tile sizes, types and constants as on a GPU. Fails where a kernel does not compile, uses local memory
(spilled registers end up there), needs more shared memory than a block may have, or multiplies half-precision
matrices without tensor cores. Prints registers and shared memory per kernel.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
TENSOR_CORES = re.compile(r"mma\.sync|wgmma\.mma_async")
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
TYPES = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
TYPES |= {"int64": "i64", "int32": "i32", "uint8": "u8", "int16": "i16"}


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: the case that made it, the kernel, its arguments by name, and launch options."""

    case: str
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]

    def source(self) -> Any:
        """What Triton's own launcher would compile for these arguments."""
        from triton.compiler import ASTSource

        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        attributes: dict[tuple[int], list[list[Any]]] = {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            kind = "constexpr" if parameter.is_constexpr else _kind(value)
            signature[parameter.name] = kind
            if kind == "constexpr":
                constants[parameter.name] = value
            elif _is_aligned(value):
                attributes[(index,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)


def _kind(value: Any) -> str:
    if value is None or value is True or value is False or (isinstance(value, int) and value == 1):
        return "constexpr"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    return "*" + TYPES[str(value.dtype).removeprefix("torch.")]


def _is_aligned(value: Any) -> bool:
    number = value if isinstance(value, int) else None if isinstance(value, float) else value.data_ptr()
    return number is not None and number % 16 == 0


def record(cases: dict[str, Callable[[], object]]) -> list[Launch]:
    """Every distinct launch of the cases, without launching."""
    from triton.runtime.jit import JITFunction

    launches: dict[str, Launch] = {}
    current = ""

    def run(self: Any, *positional: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        bound = inspect.signature(self.fn).bind(*positional, **named)
        bound.apply_defaults()
        launch = Launch(current, self, dict(bound.arguments), options)
        launches.setdefault(launch.source().hash() + str(options), launch)

    original, JITFunction.run = JITFunction.run, run
    try:
        for name, case in cases.items():
            current = name
            case()
    finally:
        JITFunction.run = original
    return list(launches.values())


def inspect_launch(launch: Launch, capability: int, folder: Path) -> tuple[str, list[str]]:
    """(a line about the compiled kernel, what is wrong with it)"""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(launch.source(), target=target, options=launch.options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "--dump-resource-usage", str(cubin)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = USAGE.search(report)
    if usage is None:
        return "no resource usage", [f"cuobjdump printed no resource usage: {report}"]
    registers, stack, _, local = map(int, usage.groups())
    shared = compiled.metadata.shared
    problems = []
    if stack or local:
        problems.append(f"{stack + local} bytes of local memory: registers spill")
    if shared > SHARED_LIMIT[capability]:
        problems.append(f"{shared} bytes of shared memory, sm_{capability} has {SHARED_LIMIT[capability]}")
    halves = any(kind in ("*bf16", "*fp16") for kind in launch.source().signature.values())
    if halves and "tt.dot" in compiled.asm["ttir"] and not TENSOR_CORES.search(compiled.asm["ptx"]):
        problems.append("matrix products without tensor cores")
    warps = launch.options.get("num_warps", 4)
    return f"{registers:3d} registers, {shared:6d} B shared, {warps} warps", problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="compile only the cases whose name contains this")
    options = parser.parse_args()
    try:
        import triton
    except ImportError:
        print("triton-check: Triton is not installed, so nothing was compiled: pip install triton")
        return 1
    if triton.knobs.runtime.interpret:
        print("triton-check: TRITON_INTERPRET is set: unset it, interpreted kernels are never compiled")
        return 1
    sys.path.insert(0, str(ROOT))
    from triton_cases import cases

    launches = record({name: case for name, case in cases().items() if options.only in name})
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for launch in launches:
            for capability in SHARED_LIMIT:
                name = f"{launch.kernel.__module__.rsplit('.', 1)[-1]}.{launch.kernel.__name__}"
                try:
                    line, problems = inspect_launch(launch, capability, Path(folder))
                except Exception as error:  # a compiler may fail in any way; the others are still checked
                    why = " ".join(str(error).splitlines()[-3:])
                    line, problems = "does not compile", [f"{type(error).__name__}: {why}"]
                failures += bool(problems)
                state = "FAILED" if problems else "ok"
                print(
                    f"triton-check: {name} ({launch.case}) for sm_{capability}: {line}: {state}", flush=True
                )
                for problem in problems:
                    print(f"  {problem}")
    print(f"triton-check: {len(launches)} kernels, {failures} failures")
    return 1 if failures or not launches else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
