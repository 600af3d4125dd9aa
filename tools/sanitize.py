# SPDX-License-Identifier: Apache-2.0
"""Runs the op tests on C++ kernels built with the address and undefined-behaviour sanitizers.

    python tools/sanitize.py [pytest arguments]

Everything lies in build/sanitize: objects, module, and a package folder of links in which that module stands
instead of the usual one, which is left alone. Tested is every file of python_tests that chooses an
instruction set, by native_isa.py or itself, so a new kernel's test is found without a list. GCC on Linux: its
libasan is loaded first, before an interpreter that was built without it. Leaks are not looked for: Python's
own would drown them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
PACKAGE = BUILD / "tree" / "ardiff_engine"
LIBRARIES = ("libasan.so", "libubsan.so")


def main() -> int:
    compiler = os.environ.get("CXX", "g++")
    preload = [_library(compiler, name) for name in LIBRARIES]
    _link_package()
    _build()
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(PACKAGE.parent),
    }
    # -P: the working directory, with the usual module, must not come before PYTHONPATH.
    python = [sys.executable, "-P"]
    loaded = subprocess.run(
        [*python, "-c", "import ardiff_engine._native as n; print(n.native().__file__)"],
        env=environment, cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    if Path(loaded).parent != PACKAGE:
        print(f"sanitize: {loaded} was loaded instead of the module in {PACKAGE}", file=sys.stderr)
        return 1
    command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *_tests(), *sys.argv[1:]]
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


def _library(compiler: str, name: str) -> str:
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"sanitize: {compiler} has no {name}; it needs GCC with its sanitizer libraries")
    return str(path.resolve())


def _link_package() -> None:
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for entry in PACKAGE.iterdir():
        if entry.is_symlink():
            entry.unlink()
    for entry in (ROOT / "ardiff_engine").iterdir():
        if not entry.name.startswith("_C.") and entry.name != "__pycache__":
            (PACKAGE / entry.name).symlink_to(entry)


def _build() -> None:
    generator = ["-GNinja"] if shutil.which("ninja") else []
    configure = [
        "cmake", *generator, f"-S{ROOT}", f"-B{BUILD / 'cmake'}", "-DARDIFF_SANITIZE=ON", "-DARDIFF_CUDA=0",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={PACKAGE}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(BUILD / "cmake"), "--parallel"], check=True)


def _tests() -> list[str]:
    files = sorted((ROOT / "python_tests").glob("test_*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    return [str(path) for path, text in texts.items() if "native_isa" in text or "set_isa(" in text]


if __name__ == "__main__":
    sys.exit(main())
