# SPDX-License-Identifier: Apache-2.0
"""Compiles every Triton kernel for sm_80 and sm_90 and inspects the result; needs Triton, no GPU.

The kernels' own launchers are called with CPU tensors, and what they would launch is compiled instead: the
same tile sizes, types and constants as on a GPU. Fails where a kernel does not compile, uses local memory
(spilled registers end up there), needs more shared memory than a block may have, or multiplies half-precision
matrices without tensor cores.

Prints registers and shared memory of every kernel; --markdown FILE writes that table into the marked part of
a document. Exit code 0 only if all of it holds.
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Bytes of shared memory that a block may have.
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
TENSOR_CORES = re.compile(r"mma\.sync|wgmma\.mma_async")
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
TYPES = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
TYPES |= {"int64": "i64", "int32": "i32", "uint8": "u8", "int16": "i16"}
BEGIN, END = "<!-- triton_check: begin -->", "<!-- triton_check: end -->"


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: the case that made it, the kernel, its arguments by name, and launch options."""

    case: str
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return f"{self.kernel.__module__.rsplit('.', 1)[-1]}.{self.kernel.__name__}"

    def source(self) -> Any:
        """What Triton's own launcher would compile for these arguments."""
        from triton.compiler import ASTSource

        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        attributes: dict[tuple[int], list[list[Any]]] = {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.do_not_specialize:
                signature[parameter.name] = parameter.annotation_type
                continue
            kind = "constexpr" if parameter.is_constexpr else _kind(value)
            signature[parameter.name] = kind
            if kind == "constexpr":
                constants[parameter.name] = value
            elif _is_aligned(value):
                attributes[(index,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of a launch on one architecture."""

    kernel: str
    case: str
    architecture: str
    warps: int
    registers: int
    shared: int
    problems: tuple[str, ...]


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


def compile_launch(launch: Launch, architecture: str) -> Any:
    """Triton's compiled kernel, for an architecture that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return triton.compile(launch.source(), target=target, options=launch.options)


def check(launch: Launch, architecture: str, folder: Path) -> Compiled:
    """Compiles a launch and looks for what would make it slow or fail on a GPU."""
    place = (launch.name, launch.case, architecture, launch.options.get("num_warps", 4))
    try:
        compiled = compile_launch(launch, architecture)
    except Exception as error:  # a compiler may fail in any way; the others are still checked
        why = " ".join(str(error).splitlines()[-3:])
        return Compiled(*place, 0, 0, (f"does not compile: {type(error).__name__}: {why}",))
    registers, stack, local = _usage(compiled.asm["cubin"], folder)
    shared, problems = compiled.metadata.shared, []
    if stack or local:
        problems.append(f"{stack + local} bytes of local memory: registers spill")
    if shared > SHARED_LIMIT[architecture]:
        problems.append(f"{shared} bytes of shared memory, {architecture} has {SHARED_LIMIT[architecture]}")
    halves = any(kind in ("*bf16", "*fp16") for kind in launch.source().signature.values())
    if halves and "tt.dot" in compiled.asm["ttir"] and not TENSOR_CORES.search(compiled.asm["ptx"]):
        problems.append("matrix products without tensor cores")
    return Compiled(*place, registers, shared, tuple(problems))


def _usage(cubin: bytes, folder: Path) -> tuple[int, int, int]:
    """(registers, bytes of stack, bytes of local memory) by the cuobjdump that Triton's wheel carries."""
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "--dump-resource-usage", str(file)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = USAGE.search(report)
    if usage is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {report}")
    registers, stack, _, local = map(int, usage.groups())
    return registers, stack, local


def table(kernels: Iterable[Compiled]) -> list[str]:
    """One row per kernel and case, both architectures side by side; a case may launch several variants."""
    rows = ["| kernel | case | warps | registers sm_80 / sm_90 | shared bytes sm_80 / sm_90 |"]
    rows.append("|---|---|---|---|---|")
    grouped: dict[tuple[str, str], list[Compiled]] = {}
    for kernel in kernels:
        grouped.setdefault((kernel.kernel, kernel.case), []).append(kernel)
    for (name, case), found in sorted(grouped.items()):
        by_architecture = [[k for k in found if k.architecture == a] for a in SHARED_LIMIT]
        registers = " / ".join(_range(k.registers for k in part) for part in by_architecture)
        shared = " / ".join(_range(k.shared for k in part) for part in by_architecture)
        rows.append(f"| `{name}` | {case} | {_range(k.warps for k in found)} | {registers} | {shared} |")
    return rows


def _range(values: Iterable[int]) -> str:
    ordered = sorted(set(values))
    return "-" if not ordered else "-".join(map(str, ordered[:1] + ordered[1:][-1:]))


def write(document: Path, rows: list[str]) -> None:
    """Replaces what stands between the two marks of the document."""
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"triton-check: {document} has no lines {BEGIN} and {END}")
    document.write_text("\n".join([before + BEGIN, *rows, END + after]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="compile only the cases whose name contains this")
    parser.add_argument("--markdown", type=Path, help="write the table of kernels into this document")
    options = parser.parse_args()
    if options.only and options.markdown:
        parser.error("--markdown writes the whole table: leave --only out")
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
    kernels: list[Compiled] = []
    with tempfile.TemporaryDirectory() as folder:
        for launch in launches:
            for architecture in SHARED_LIMIT:
                kernel = check(launch, architecture, Path(folder))
                kernels.append(kernel)
                print(
                    f"triton-check: {kernel.kernel} ({kernel.case}) for {architecture}: {kernel.registers} "
                    f"registers, {kernel.shared} B shared, {kernel.warps} warps: "
                    f"{'FAILED' if kernel.problems else 'ok'}",
                    flush=True,
                )
                print("".join(f"  {line}\n" for line in kernel.problems), end="")
    failures = sum(bool(kernel.problems) for kernel in kernels)
    print(f"triton-check: {len(launches)} kernels for {' and '.join(SHARED_LIMIT)}, {failures} failures")
    if options.markdown is not None and not failures:
        write(options.markdown, table(kernels))
    return 1 if failures or not launches else 0


if __name__ == "__main__":
    sys.exit(main())
