# SPDX-License-Identifier: Apache-2.0
"""docs/add_a_kernel.md works: its files, put into a copy of the tree, build, and the new op passes its test.

Only what the new op needs is copied, so that the build takes seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).resolve().parent.parent
EMULATION = ROOT / "python_tests" / "cuda_emulation" / "launchers"
# Of csrc/cpu and csrc/bindings: what is not an op.
SHARED = ("cpu/*.h", "cpu/common/*.cpp", "bindings/*.h", "bindings/module.cpp", "bindings/cuda_status.cpp")


def run(command: list[str], folder: Path) -> None:
    """In `folder`, which comes first where Python looks for ardiff_engine."""
    variables = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=folder, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, without its ops in C++, and with the files of the page."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "csrc" / "include", root / "csrc" / "include")
    shutil.copytree(ROOT / "csrc" / "cuda", root / "csrc" / "cuda", ignore=lambda _, names: ["sm90"])
    for pattern in SHARED:
        for file in (ROOT / "csrc").glob(pattern):
            target = root / "csrc" / file.relative_to(ROOT / "csrc")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    shutil.copy(ROOT / "CMakeLists.txt", root)
    shutil.copytree(
        ROOT / "ardiff_engine",
        root / "ardiff_engine",
        ignore=shutil.ignore_patterns("*.so", "__pycache__", "assets"),
    )
    (root / "python_tests").mkdir()
    for name in ("native_isa.py", "effort.py"):
        shutil.copy(ROOT / "python_tests" / name, root / "python_tests")
    page = (ROOT / "docs" / "add_a_kernel.md").read_text()
    files = re.findall(r"^```(?:cpp|python)\n(?://|#) (\S+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(files) == 6
    for name, text in files:
        assert not (root / name).exists()
        (root / name).write_text(text)
    return root


@pytest.mark.slow
def test_the_page_builds_and_its_test_passes(tree: Path) -> None:
    configure = ["cmake", f"-S{tree}", f"-B{tree / 'build'}", "-DCMAKE_BUILD_TYPE=Release", "-DARDIFF_CUDA=0"]
    configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tree / 'ardiff_engine'}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    run([*configure, *(["-GNinja"] if shutil.which("ninja") else [])], tree)
    run(["cmake", "--build", str(tree / "build")], tree)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tree)]
    run([*command, str(tree / "python_tests" / "test_scale.py")], tree)


@pytest.mark.parametrize("name", ["cuda/scale.cu", "cpu/scale.cpp"])
def test_the_files_of_the_page_compile(tree: Path, name: str) -> None:
    """The kernel for the host, against the emulated CUDA runtime: nvcc is not everywhere."""
    source = tree / "csrc" / name
    includes = [f"-I{folder}" for folder in (EMULATION, tree / "csrc" / "include", tree / "csrc")]
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-x", "c++"]
    run(["g++", *flags, *includes, str(source)], tree)
