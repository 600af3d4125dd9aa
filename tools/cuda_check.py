# SPDX-License-Identifier: Apache-2.0
"""Checks the CUDA side for sm_80 and sm_90a: needs nvcc, no GPU.

    compile    csrc/cuda/**/*.cu and the shared headers of csrc/include, warnings as errors
    ptxas      no register spills, no local memory, no note that wgmma was serialised (C7508, C7510-C7513)
    SASS       tensor-core and bulk-copy instructions where a kernel is built around them, no access to local
               memory there, and softmax under the products of the Hopper kernel

Prints registers, shared memory and occupancy of every kernel; --markdown FILE writes that table into the
marked part of a document. Exit code 0 only if all of it holds. tools/nvrtc_check.py compiles the same sources
with NVRTC.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOPPER_ONLY = "sm90"
FLAGS = ("-std=c++17", "-fmad=false")
SERIALISED = re.compile(r"C75(?:08|10|11|12|13)\b")
# What the SASS of every kernel of this name must hold: it would run without, several times slower. Hopper
# kernels are known by their folder; a file of them must hold theirs.
REQUIRED_SASS = {
    "frame_attention_kernel": ("HMMA", "LDGSTS", "LDSM"),
    "frame_attention_sm90_kernel": ("HGMMA", "UTMALDG", "USETMAXREG", "SYNCS"),
}
# Kernels that compute weights (EX2) while products are under way: after the wait for all groups of them but
# one, and before the wait for the last. ptxas may move waits, and the overlap is then gone without a word.
OVERLAPPED = "frame_attention_sm90_kernel"
WAIT_SASS = re.compile(r"\bWARPGROUP\.DEPBAR\.LE gsb0, 0x([01])\b")
REQUIRED_HOPPER_SASS = ("HGMMA", "UTMALDG")
LOCAL_MEMORY_SASS = ("LDL", "STL")
# Per SM: registers, threads, shared memory in bytes, blocks.
SM_LIMITS = {"sm_80": (65536, 2048, 164 * 1024, 32), "sm_90a": (65536, 2048, 228 * 1024, 32)}
RESERVED_SHARED = 1024  # of each block, taken by CUDA
BEGIN, END = "<!-- cuda_check: begin -->", "<!-- cuda_check: end -->"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of one architecture, as ptxas reports it. Dynamic shared memory is not known here."""

    source: str
    architecture: str
    name: str
    registers: int
    shared: int
    threads: int
    spills: int
    stack: int

    @property
    def occupancy(self) -> float:
        """The share of an SM's threads that can be resident, by registers, shared memory and blocks."""
        registers, threads, shared, blocks = SM_LIMITS[self.architecture]
        warps = -(-self.threads // 32)
        per_warp = -(-self.registers * 32 // 256) * 256
        fit = [blocks, threads // (32 * warps), registers // (per_warp * warps)]
        fit.append(shared // (self.shared + RESERVED_SHARED))
        return min(fit) * warps * 32 / threads


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--root", type=Path, default=ROOT, help="the source tree (default: this one)")
    parser.add_argument("--markdown", type=Path, help="write the table of kernels into this document")
    options = parser.parse_args()
    nvcc = shutil.which(options.nvcc)
    if nvcc is None:
        print(
            f"cuda-check: no {options.nvcc} here, so nothing was compiled: make cuda-check NVCC=/path/to/nvcc"
        )
        return 1
    csrc = options.root / "csrc"
    sources = sorted((csrc / "cuda").rglob("*.cu"))
    kernels: list[Kernel] = []
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for source in [_headers(csrc, Path(folder)), *sources]:
            label = str(source.relative_to(options.root)) if source in sources else "shared headers"
            for architecture in _architectures(source):
                found, problems = _check(nvcc, source, architecture, csrc, Path(folder))
                kernels += found
                failures += bool(problems)
                print(f"cuda-check: {label} for {architecture}: {'FAILED' if problems else 'ok'}", flush=True)
                print("".join(f"  {line}\n" for line in problems), end="")
    if not sources:
        print("cuda-check: csrc/cuda has no .cu files yet: only the headers that CPU and GPU share compiled")
    print("\n".join(["", *_table(kernels)]))
    if options.markdown is not None and not failures:
        _write(options.markdown, _table(kernels))
    return 1 if failures else 0


def _headers(csrc: Path, folder: Path) -> Path:
    """A source that includes every shared header: device code, even where no kernel uses it yet."""
    probe = folder / "headers.cu"
    names = sorted(header.relative_to(csrc / "include") for header in (csrc / "include").rglob("*.h"))
    probe.write_text("".join(f'#include "{name}"\n' for name in names))
    return probe


def _architectures(source: Path) -> tuple[str, ...]:
    return ("sm_90a",) if HOPPER_ONLY in source.parts else ("sm_80", "sm_90a")


def _check(
    nvcc: str, source: Path, architecture: str, csrc: Path, folder: Path
) -> tuple[list[Kernel], list[str]]:
    """Compiles one file for one architecture: its kernels, and what is wrong with it."""
    cubin, ptx = folder / "out.cubin", folder / f"{source.stem}.ptx"
    command = [nvcc, "-cubin", "-O3", *FLAGS, f"-arch={architecture}", f"-I{csrc / 'include'}", f"-I{csrc}"]
    command += ["-Xptxas=-v,-warn-spills", "-Werror=all-warnings", "-keep", "-keep-dir", str(folder)]
    result = subprocess.run(
        [*command, "-o", str(cubin), str(source)], capture_output=True, text=True, check=False
    )
    report = result.stdout + result.stderr
    if result.returncode:
        return [], report.splitlines()
    threads = _block_sizes(ptx.read_text()) if ptx.exists() else {}
    kernels = list(_kernels(report, source.name, architecture, threads))
    problems = [line for line in report.splitlines() if SERIALISED.search(line)]
    for kernel in kernels:
        if kernel.spills or kernel.stack:
            problems.append(
                f"{kernel.name}: {kernel.spills} bytes spilled, {kernel.stack} bytes of local memory"
            )
    return kernels, problems + _sass_problems(cubin, source, nvcc)


def _block_sizes(ptx: str) -> dict[str, int]:
    """Threads per block of each entry that states them (__launch_bounds__)."""
    sizes = {}
    for name, rest in re.findall(r"\.entry (\w+)\((.*?)\n\{", ptx, re.DOTALL):
        bound = re.search(r"\.maxntid (\d+)(?:, (\d+), (\d+))?", rest)
        if bound:
            x, y, z = (int(size or 1) for size in bound.groups())
            sizes[name] = x * y * z
    return sizes


def _kernels(report: str, source: str, architecture: str, threads: dict[str, int]) -> Iterator[Kernel]:
    for block in report.split("Compiling entry function '")[1:]:
        symbol = block[: block.index("'")]
        used = re.search(r"Used (\d+) registers", block)
        if used is None:
            continue
        memory = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block
        )
        stack, stores, loads = map(int, memory.groups()) if memory else (0, 0, 0)
        shared = re.search(r"(\d+) bytes smem", block)
        yield Kernel(
            source,
            architecture,
            _readable(symbol),
            int(used.group(1)),
            int(shared.group(1)) if shared else 0,
            threads.get(symbol, 1024),
            stores + loads,
            stack,
        )


def _readable(symbol: str) -> str:
    """kernel<float, 4> of a mangled name; the mangled name where there is no c++filt."""
    tool = shutil.which("c++filt")
    if tool is None:
        return symbol
    plain = subprocess.run([tool, symbol], capture_output=True, text=True, check=False).stdout.strip()
    plain = plain.replace("(anonymous namespace)::", "").replace("ardiff::cuda::", "").replace("ardiff::", "")
    return plain.removeprefix("void ").split("(")[0]


def _sass_problems(cubin: Path, source: Path, nvcc: str) -> list[str]:
    hopper = HOPPER_ONLY in source.parts
    hot = [name for name in REQUIRED_SASS if name in source.read_text()]
    if not (hopper or hot):
        return []
    tool = cuobjdump(nvcc)
    if tool is None:
        return ["its SASS must be looked at, but there is no cuobjdump: pip install triton"]
    functions = sass_functions(tool, cubin)
    problems = _missing("its SASS", "".join(functions.values()), REQUIRED_HOPPER_SASS) if hopper else []
    for kernel in hot:
        problems += [] if kernel in map(base_name, functions) else [f"no {kernel} in its SASS"]
    for name, text in functions.items():
        problems += function_problems(name, text)
    return problems


def function_problems(name: str, sass: str) -> list[str]:
    """What is wrong with the SASS of a kernel, one of a file that holds hot ones."""
    problems = _missing(name, sass, REQUIRED_SASS.get(base_name(name), ()))
    if base_name(name) == OVERLAPPED and not _overlaps(sass):
        problems.append(f"{name}: no EX2 between the waits for its products")
    return problems + [f"{name}: local memory ({word})" for word in LOCAL_MEMORY_SASS if _holds(sass, word)]


def base_name(kernel: str) -> str:
    """frame_attention_kernel of frame_attention_kernel<float, 4>."""
    return kernel.split("<")[0]


def _overlaps(sass: str) -> bool:
    """Whether weights are computed between a wait for all groups of wgmma but one, and the next wait."""
    _, *rest = WAIT_SASS.split(sass)
    return any(
        pending == "1" and _holds(text, "MUFU.EX2")
        for pending, text in zip(rest[::2], rest[1::2], strict=True)
    )


def sass_functions(tool: str, cubin: Path) -> dict[str, str]:
    """The SASS of each function of a cubin, by its readable name."""
    result = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=False)
    return _functions(result.stdout)


def _functions(sass: str) -> dict[str, str]:
    """The text of each function, by its readable name."""
    parts = re.split(r"^\s*Function : (\S+)\n", sass, flags=re.MULTILINE)
    return {_readable(symbol): text for symbol, text in zip(parts[1::2], parts[2::2], strict=True)}


def _missing(name: str, sass: str, words: tuple[str, ...]) -> list[str]:
    return [f"{name}: no {word}" for word in words if not _holds(sass, word)]


def _holds(sass: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", sass) is not None


def cuobjdump(nvcc: str) -> str | None:
    """Of the toolkit, or the one that Triton's wheel carries."""
    beside = Path(nvcc).resolve().parent / "cuobjdump"
    if beside.exists():
        return str(beside)
    for site in (Path(path) for path in [*sys.path, ROOT / ".venv" / "lib"]):
        for tool in (
            site.glob("**/triton/backends/nvidia/bin/cuobjdump")
            if site.name == "lib"
            else [site / "triton" / "backends" / "nvidia" / "bin" / "cuobjdump"]
        ):
            if tool.exists():
                return str(tool)
    return shutil.which("cuobjdump")


def _table(kernels: list[Kernel]) -> list[str]:
    """One row per kernel, both architectures side by side."""
    rows = ["| kernel | threads | registers sm_80 / sm_90a | shared bytes | occupancy sm_80 / sm_90a |"]
    rows.append("|---|---|---|---|---|")
    grouped: dict[tuple[str, str], dict[str, Kernel]] = {}
    for kernel in kernels:
        grouped.setdefault((kernel.source, kernel.name), {})[kernel.architecture] = kernel
    for (_, name), found in sorted(grouped.items()):
        one = next(iter(found.values()))
        columns = [found.get(architecture) for architecture in SM_LIMITS]
        registers = " / ".join("-" if k is None else str(k.registers) for k in columns)
        occupancy = " / ".join("-" if k is None else f"{k.occupancy:.0%}" for k in columns)
        rows.append(f"| `{name}` | {one.threads} | {registers} | {one.shared} | {occupancy} |")
    return rows


def _write(document: Path, rows: list[str]) -> None:
    """Replaces what stands between the two marks of the document."""
    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text("\n".join([before + BEGIN, *rows, END + after]))


if __name__ == "__main__":
    sys.exit(main())
