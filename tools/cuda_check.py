# SPDX-License-Identifier: Apache-2.0
"""Compiles the CUDA side for sm_80 and sm_90a with warnings as errors; needs nvcc, no GPU.

Two things are compiled: the shared headers of csrc/include, whose functions are device code as well, and
every csrc/cuda/**/*.cu. Register spills fail the check, and so do ptxas notes that wgmma was serialised.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOPPER_ONLY = "sm90"
SPILL = re.compile(r"([1-9]\d*) bytes spill (?:stores|loads)")
SERIALISED = re.compile(r"C75(?:08|10|11|12|13)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--root", type=Path, default=ROOT, help="the source tree (default: this one)")
    options = parser.parse_args()
    nvcc = shutil.which(options.nvcc)
    if nvcc is None:
        print(
            f"cuda-check: no {options.nvcc} here, so nothing was compiled: make cuda-check NVCC=/path/to/nvcc"
        )
        return 1
    csrc = options.root / "csrc"
    headers = sorted((csrc / "include").rglob("*.h"))
    sources = sorted((csrc / "cuda").rglob("*.cu"))
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "headers.cu"
        names = [header.relative_to(csrc / "include") for header in headers]
        probe.write_text("".join(f'#include "{name}"\n' for name in names))
        for source in [probe, *sources]:
            label = f"{len(headers)} headers" if source == probe else str(source.relative_to(options.root))
            for architecture in _architectures(source):
                problems = _compile(nvcc, source, architecture, csrc / "include", Path(folder) / "out.cubin")
                print(f"cuda-check: {label} for {architecture}: {'FAILED' if problems else 'ok'}")
                print(problems, end="")
                failures += bool(problems)
    if not sources:
        print("cuda-check: csrc/cuda has no .cu files yet: only the headers that CPU and GPU share compiled")
    return 1 if failures else 0


def _architectures(source: Path) -> tuple[str, ...]:
    return ("sm_90a",) if HOPPER_ONLY in source.parts else ("sm_80", "sm_90a")


def _compile(nvcc: str, source: Path, architecture: str, include: Path, output: Path) -> str:
    """Compiles one file; returns what is wrong, or nothing."""
    command = [
        nvcc,
        "-cubin",
        "-std=c++17",
        "-O3",
        f"-arch={architecture}",
        f"-I{include}",
        f"-I{include.parent}",
    ]
    command += ["-Xptxas=-v", "-Werror=all-warnings", "-o", str(output), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    report = result.stdout + result.stderr
    if result.returncode:
        return report
    lines = report.splitlines()
    return "".join(f"{line}\n" for line in lines if SPILL.search(line) or SERIALISED.search(line))


if __name__ == "__main__":
    sys.exit(main())
