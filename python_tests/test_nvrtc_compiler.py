# SPDX-License-Identifier: Apache-2.0
"""What a compiled kernel depends on, and how it is kept on disk."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
from emulated_cupy import EmulatedNvrtc

from ardiff_engine.errors import BackendNotAvailableError, KernelError
from ardiff_engine.kernels import kernel_cache, nvrtc_compiler
from ardiff_engine.kernels.kernel_cache import CompiledKernel
from ardiff_engine.kernels.nvrtc_compiler import architecture, compile_kernel, key, source_of, sources_digest

ROOT = Path(__file__).resolve().parent.parent
KERNEL = "ardiff::cuda::add_noise_kernel<float>"


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    """The sources, where a test may change them."""
    for folder in ("include", "cuda"):
        shutil.copytree(ROOT / "csrc" / folder, tmp_path / "csrc" / folder)
    return tmp_path / "csrc"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARDIFF_CACHE", str(tmp_path / "cache"))
    kernel_cache._warn_once.cache_clear()
    return tmp_path / "cache" / "kernels"


def test_a_key_changes_with_everything_that_the_binary_depends_on(
    csrc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvrtc = EmulatedNvrtc()

    def now(kernel: str = KERNEL, target: str = "sm_90", nvrtc: EmulatedNvrtc = nvrtc) -> str:
        sources_digest.cache_clear()
        return key(nvrtc, kernel, target, csrc)

    keys = [now(), now(target="sm_80"), now(kernel=KERNEL.replace("float", "ardiff::Float16"))]
    keys.append(now(nvrtc=EmulatedNvrtc((13, 1))))
    assert now() == keys[0]
    for name in (
        "cuda/add_noise.cu", "cuda/packed.cuh", "cuda/extent.h", "cuda/sm90/slab.cuh",
        "include/ardiff/scalar.h",
    ):  # fmt: skip
        file = csrc / name
        file.write_text(file.read_text() + "\n")
        keys.append(now())
    (csrc / "include" / "ardiff" / "hd.h").rename(csrc / "include" / "ardiff" / "hosts.h")
    keys.append(now())
    monkeypatch.setattr(nvrtc_compiler, "FLAGS", ("-std=c++17",))
    keys.append(now())
    assert len(set(keys)) == len(keys)
    assert all(text.isalnum() and len(text) == 40 for text in keys)


def test_architectures() -> None:
    def target(capability: tuple[int, int], *archs: int, source: str = "pages.cu") -> str:
        return architecture(EmulatedNvrtc(archs=archs), capability, source)

    known, hopper = (75, 80, 86, 90), "sm90/frame_attention.cu"
    assert target((8, 0), *known) == "sm_80" and target((9, 0), *known) == "sm_90"
    assert target((8, 9), *known) == "compute_86" and target((12, 0), *known) == "compute_90"
    assert target((9, 0), *known, source=hopper) == "sm_90a"
    with pytest.raises(BackendNotAvailableError, match=r"compute capability 7.5, expected 8.0"):
        target((7, 5), *known)
    with pytest.raises(BackendNotAvailableError, match="does not know sm_90.*expected.* sm_80 or newer"):
        target((9, 0), 70, 75)
    for capability in ((8, 9), (10, 0)):  # nothing translates this code
        with pytest.raises(
            BackendNotAvailableError, match=r"sm90/frame_attention.cu.*expected 9.0 \(Hopper\)"
        ):
            target(capability, *known, 100, source=hopper)
    with pytest.raises(BackendNotAvailableError, match="does not know sm_90.*compiles for sm_90a"):
        target((9, 0), 80, 86, source=hopper)


def test_the_source_of_a_kernel(csrc: Path) -> None:
    assert source_of(KERNEL, csrc) == "add_noise.cu"
    assert source_of("ardiff::cuda::frame_attention_kernel<ardiff::BFloat16, 64, 64>", csrc) == (
        "frame_attention.cu"
    )
    for kernel in ("_kernel<ardiff::BFloat16, 64, 112>", "_merge_kernel<ardiff::Float16>"):
        name = f"ardiff::cuda::frame_attention_sm90{kernel}"
        assert source_of(name, csrc) == "sm90/frame_attention.cu"


def test_an_unknown_kernel(csrc: Path) -> None:
    with pytest.raises(KernelError, match="no file of .*cuda declares it"):
        compile_kernel(EmulatedNvrtc(), "ardiff::cuda::other_kernel<float>", "sm_90", csrc)


def test_a_stored_kernel_comes_back(folder: Path) -> None:
    kernel = CompiledKernel("_Z3abc", bytes(range(256)) * 3 + b"\n\n")
    assert kernel_cache.load("k") is None
    kernel_cache.store("k", kernel)
    kernel_cache.store("k", kernel)  # another process was as fast
    assert kernel_cache.load("k") == kernel and os.listdir(folder) == ["k.kernel"]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:5], lambda b: b"", lambda b: b[:-1] + b"x"]
)
def test_a_damaged_file_counts_as_absent(folder: Path, damage: object) -> None:
    kernel_cache.store("k", CompiledKernel("_Z3abc", b"binary"))
    file = folder / "k.kernel"
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    assert kernel_cache.load("k") is None
    kernel_cache.store("k", CompiledKernel("_Z3abc", b"again"))
    assert kernel_cache.load("k") == CompiledKernel("_Z3abc", b"again")


def test_a_folder_that_cannot_be_written_is_named_once(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where a folder should be")
    with pytest.warns(RuntimeWarning, match="are not kept: .*cannot be written.*ARDIFF_CACHE") as seen:
        for _ in range(2):
            kernel_cache.store("k", CompiledKernel("_Z3abc", b"binary"))
    assert len(seen) == 1 and kernel_cache.load("k") is None


def test_a_write_that_fails_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        kernel_cache.store("k", CompiledKernel("_Z3abc", b"binary"))
    assert os.listdir(folder) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ARDIFF_CACHE")
    assert kernel_cache.cache_folder() == tmp_path / "xdg" / "ardiff-engine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel_cache.cache_folder() == tmp_path / ".cache" / "ardiff-engine"


@pytest.fixture(scope="module")
def nvrtc_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nvrtc_check", ROOT / "tools" / "nvrtc_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_parameter_sizes_are_read_from_ptx(nvrtc_check: ModuleType) -> None:
    ptx = """.visible .entry _Z1k(
	.param .align 8 .b8 _Z1k_param_0[184],
	.param .u32 _Z1k_param_1,
	.param .u64 .ptr .align 1 _Z1k_param_2
)
.maxntid 256
{"""
    assert list(nvrtc_check.parameter_sizes(ptx, "_Z1k")) == [184, 4, 8]
    assert list(nvrtc_check.parameter_sizes(ptx, "_Z1l")) == []


def layouts() -> dict[str, list[str]]:
    """The parameter structs of the shared headers, and the names of their fields."""
    found = {}
    for header in sorted((ROOT / "csrc" / "include" / "ardiff").glob("*.h")):
        text = re.sub(r"//.*", "", header.read_text())
        for name, of, body in re.findall(
            r"struct (\w*(?:Params|Work|Tile|Merge|Block|Row))(Of)? \{(.*?)\n\};", text, re.DOTALL
        ):
            body = re.sub(r"ARDIFF_HD[^{]*\{.*?\n  \}", "", body, flags=re.DOTALL)  # its functions
            if "Backward" not in name:  # those stay on the CPU
                fields = [
                    re.findall(r"\w+", part.split("[")[0])[-1]
                    for line in body.split(";")
                    for part in line.split(",")
                    if part.strip()
                ]
                found[f"ardiff::{name}{of}<ardiff::BFloat16>" if of else f"ardiff::{name}"] = fields
    return found


def test_structs_have_one_layout_for_the_host_and_for_nvrtc(nvrtc_check: ModuleType, tmp_path: Path) -> None:
    library, compiler = nvrtc_check.find_library(), shutil.which("g++")
    if library is None or compiler is None:
        pytest.skip("needs g++ and libnvrtc (pip install nvidia-cuda-nvrtc; no GPU)")
    structs = layouts()
    assert len(structs) == 21 and sum(map(len, structs.values())) > 100
    headers = sorted(file.name for file in (ROOT / "csrc" / "include" / "ardiff").glob("*.h"))
    includes = "".join(f'#include "ardiff/{name}"\n' for name in headers)
    fields = [(name, field) for name, fields in structs.items() for field in fields]
    sizes = [f"sizeof({name})" for name in structs]
    here = [f"__builtin_offsetof({name}, {field})" for name, field in fields]
    there = [f"__INTADDR__(&(({name}*)0)->{field})" for name, field in fields]  # NVRTC has no offsetof
    prints = "".join(f'printf("%zu\\n", {place});' for place in sizes + here)
    (tmp_path / "host.cpp").write_text(f"{includes}#include <cstdio>\nint main() {{ {prints} }}\n")
    command = [compiler, "-w", "-std=c++17", f"-I{ROOT / 'csrc' / 'include'}", str(tmp_path / "host.cpp")]
    subprocess.run([*command, "-o", str(tmp_path / "host")], check=True)
    numbers = subprocess.run(
        [str(tmp_path / "host")], check=True, capture_output=True, text=True
    ).stdout.split()
    nvrtc = nvrtc_check.Nvrtc(library)

    def problems(numbers: list[str]) -> str:
        same = "".join(
            f"static_assert({place} == {n});" for place, n in zip(sizes + there, numbers, strict=True)
        )
        program = nvrtc.createProgram(f"{includes}{same}", "layout.cu")
        try:
            nvrtc.compileProgram(program, ["-std=c++17", "-arch=sm_80", f"-I{ROOT / 'csrc' / 'include'}"])
        except RuntimeError:
            return nvrtc.getProgramLog(program)
        finally:
            nvrtc.destroyProgram(program)
        return ""

    assert problems(numbers) == ""
    assert "static assertion failed" in problems([*numbers[:-1], "1"])


def test_the_real_nvrtc(nvrtc_check: ModuleType, csrc: Path) -> None:
    library = nvrtc_check.find_library()
    if library is None:
        pytest.skip("needs libnvrtc (pip install nvidia-cuda-nvrtc; no GPU)")
    nvrtc = nvrtc_check.Nvrtc(library)
    assert nvrtc_check.check(nvrtc, KERNEL, [80], "compute_80", csrc) is None
    assert "[80] bytes, the launcher passes [88]" in nvrtc_check.check(
        nvrtc, KERNEL, [88], "compute_80", csrc
    )
    compiled = compile_kernel(nvrtc, KERNEL, "sm_90", csrc)
    assert compiled.binary.startswith(b"\x7fELF") and compiled.symbol.encode() in compiled.binary
    (csrc / "cuda" / "noise.cuh").write_text("#pragma once\nint nonsense(\n")
    with pytest.raises(
        KernelError, match=r"add_noise_kernel<float>: NVRTC .* sm_90(.|\n)*noise.cuh\(\d+\): error"
    ):
        compile_kernel(nvrtc, KERNEL, "sm_90", csrc)
