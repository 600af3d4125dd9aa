# SPDX-License-Identifier: Apache-2.0
"""The promises of pyproject.toml, and of the files around it."""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import ardiff_engine
from ardiff_engine.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc (the CUDA compiler; no GPU)")


def test_few_dependencies_none_pinned_no_torchvision() -> None:
    assert len(PROJECT["dependencies"]) <= 6
    everything = PROJECT["dependencies"] + [
        r for extra in PROJECT["optional-dependencies"].values() for r in extra
    ]
    assert not [r for r in PROJECT["dependencies"] if "==" in r or "<" in r or "~" in r]
    assert not [r for r in everything if r.startswith(("torchvision", "torchaudio"))]


def module_level_imports(file: Path) -> list[str]:
    found: list[str] = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.append(node.module.split(".")[0])
    return found


def test_runtime_code_imports_only_what_is_declared() -> None:
    """Imports at module level must be dependencies; those of extras may only stand inside functions. Some
    folders are code of an extra, imported when that is used: Triton's kernels, the server, its replicas."""

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=;\[ ]", r)[0].replace("-", "_") for r in requirements}

    declared = names(PROJECT["dependencies"]) | {"PIL", "ardiff_engine"}
    extras = PROJECT["optional-dependencies"]
    rooms = {
        "kernels/triton": names(extras["gpu"]),
        "serve": names(extras["serve"]) | {"starlette"},
        "serve/ray": names(extras["cluster"]),
    }
    foreign = set()
    for file in sorted((ROOT / "ardiff_engine").rglob("*.py")):
        own = [extra for room, extra in rooms.items() if file.is_relative_to(ROOT / "ardiff_engine" / room)]
        allowed = declared.union(*own)
        for name in module_level_imports(file):
            if name not in allowed and name not in sys.stdlib_module_names:
                foreign.add(f"{file.relative_to(ROOT)}: {name}")
    assert not foreign


def test_no_extra_is_imported_with_the_package() -> None:
    code = "import sys, ardiff_engine.ops; print(*sorted(set(sys.argv[1:]) & set(sys.modules)))"
    command = [sys.executable, "-c", code, "triton", "cupy", "nvtx", "av", "sklearn", "prometheus_client"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_one_version_everywhere() -> None:
    assert ardiff_engine.__version__ == __version__
    assert PROJECT["dynamic"] == ["version"]
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_license_and_type_marker_are_there() -> None:
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in (ROOT / "LICENSE").read_text()
    assert (ROOT / "ardiff_engine" / "py.typed").exists()
    for folder in ("ardiff_engine", "python_tests", "examples", "tools", "benchmarks", "csrc"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                assert "SPDX-License-Identifier: Apache-2.0" in file.read_text()[:120], file


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        # In C++ code a lambda looks like a link.
        text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_make_target_is_explained() -> None:
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "bench", "cuda-check", "gpu", "lint", "build", "wheel", "clean"):
        assert re.search(rf"^{target} +\S", result.stdout, re.MULTILINE), target


def copy_of_the_tree(target: Path) -> list[str]:
    """The files of the repository, committed and new, nothing ignored. Returns their names."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:  # no repository, as in a copy of this kind
        names = [
            str(p.relative_to(ROOT))
            for folder in ("ardiff_engine", "csrc")
            for p in (ROOT / folder).rglob("*")
            if p.is_file() and p.suffix not in (".so", ".pyc")
        ]
        names += ["CMakeLists.txt", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md"]
        names += ["pyproject.toml", "setup.py"]
    else:
        names = [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return names


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_data(tmp_path: Path) -> None:
    """Built without compiler and without network: the package must still come out whole, and say so."""
    source = tmp_path / "source"
    names = copy_of_the_tree(source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "-v", "--no-deps", "--no-build-isolation"]
    environment = {"PATH": str(Path(sys.executable).parent), "HOME": str(tmp_path)}
    built = run([*command, "-w", str(tmp_path)], cwd=source, env=environment)
    message = r"native kernels were NOT built.*\n.*reference.*\n.*install a C\+\+17 compiler"
    assert re.search(message, built.stdout + built.stderr)
    wheel = next(tmp_path.glob("ardiff_engine-*.whl"))
    files = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if name.startswith("ardiff_engine/")}
    assert package <= files
    kernels = {name for name in names if re.match(r"csrc/(include|cuda)/", name)}
    assert kernels and {f"ardiff_engine/kernels/{name}" for name in kernels} <= files
    assert not [
        name for name in files if name.startswith(("python_tests/", "benchmarks/", "examples/", "tools/"))
    ]


# In an environment with nothing but PyTorch and the wheel: the kernels are there, and use torch's OpenMP.
USE_THE_WHEEL = """
import json, torch
from ardiff_engine import info, ops
from ardiff_engine.kernels.nvrtc_compiler import source_folder
torch.set_num_threads(2)
x, bias = torch.randn(4096, 256), torch.randn(256)
expected = torch.nn.functional.gelu(x + bias, approximate="tanh")
torch.testing.assert_close(ops.bias_gelu(x, bias), expected, rtol=1e-5, atol=1e-5)
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "libiomp" in line}
print(json.dumps({**info.collect(), "openmp": sorted(runtimes), "sources": str(source_folder())}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="manylinux")
def test_make_wheel_and_its_wheel_needs_no_compiler(tmp_path: Path) -> None:
    pytest.importorskip("auditwheel", reason="of the extra dev")
    source, home = tmp_path / "source", tmp_path / "home"
    copy_of_the_tree(source)
    # This environment has the tools that the stamp stands for.
    make = ["make", "wheel", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/tools.stamp"]
    made = run(make, cwd=source, env={**os.environ, "ARDIFF_CUDA": "0"})
    said = r"compiling \d+ files of C\+\+ with.*about \d+ s(.|\n)*_C\.\S+ is built, in \d+ s"
    assert re.search(said, made.stdout + made.stderr)
    (wheel,) = (source / "dist").iterdir()
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert re.search(rf"-{python}-{python}-manylinux_2_\d+_{platform.machine()}\.whl$", wheel.name)
    files = zipfile.ZipFile(wheel).namelist()
    assert [name for name in files if name.startswith("ardiff_engine/_C.")]
    assert [name for name in files if re.match("ardiff_engine/kernels/csrc/cuda/.*[.]cu$", name)]
    assert not [name for name in files if ".libs/" in name], "a copy of a library that torch has too"

    run([sys.executable, "-m", "venv", "--without-pip", str(home)])
    python_there = str(home / "bin" / "python")
    environment = {"PATH": str(home / "bin"), "HOME": str(tmp_path)}
    install = [sys.executable, "-m", "pip", "--python", python_there, "install", "--no-deps", "--no-index"]
    run([*install, str(wheel)], cwd=tmp_path, env=environment)
    packages = next((home / "lib").glob("python3*/site-packages"))
    (packages / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    used = run([python_there, "-c", USE_THE_WHEEL], cwd=tmp_path, env=environment)
    facts = json.loads(used.stdout)
    native = facts["native"]
    assert native["loaded"] and Path(native["file"]).is_relative_to(home), native
    assert native["openmp"] and len(facts["openmp"]) == 1, facts["openmp"]
    assert Path(facts["sources"]).is_relative_to(home)
    assert facts["backends"]["bias_gelu"]["cpu"]["backend"] == "cpu"
    # Every op against its formula, without tests or compilers. `run` raises if one is off.
    run([python_there, "-m", "ardiff_engine.info", "--check"], cwd=tmp_path, env=environment)


@needs_nvcc
def test_cuda_check_compiles_the_shared_headers_and_fails_on_errors_and_warnings(tmp_path: Path) -> None:
    def check(root: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / "cuda_check.py"), "--root", str(root)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    include, cuda = tmp_path / "csrc" / "include" / "ardiff", tmp_path / "csrc" / "cuda"
    include.mkdir(parents=True)
    cuda.mkdir()
    (include / "scale.h").write_text(
        "#pragma once\n__host__ __device__ inline float twice(float x) { return 2 * x; }\n"
    )
    body = "__global__ void scale(float* x) { x[threadIdx.x] = twice(x[threadIdx.x]); }"
    kernel = f'#include "ardiff/scale.h"\n{body}\n'
    (cuda / "scale.cu").write_text(kernel)
    good = check(tmp_path)
    assert good.returncode == 0, good.stdout
    assert good.stdout.count(": ok") == 4
    (cuda / "scale.cu").write_text(kernel.replace("{ x", "{ int unused; x"))
    warned = check(tmp_path)
    assert warned.returncode == 1 and "unused" in warned.stdout
    (cuda / "scale.cu").unlink()
    (include / "scale.h").write_text("#pragma once\nfloat twice(float x) { return 2 * }\n")
    broken = check(tmp_path)
    assert broken.returncode == 1 and "no .cu files yet" in broken.stdout
