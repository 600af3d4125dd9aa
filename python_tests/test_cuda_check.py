# SPDX-License-Identifier: Apache-2.0
"""tools/cuda_check.py reads ptxas as it writes, and docs/kernels.md lists the kernels that exist."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
REPORT = """
ptxas info    : Compiling entry function 'good' for 'sm_90a'
ptxas info    : Function properties for good
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 2304 bytes smem
ptxas info    : Compiling entry function 'spilled' for 'sm_90a'
ptxas info    : Function properties for spilled
    24 bytes stack frame, 28 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""
SASS = """
Fatbin elf code:
		Function : good
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64] ;
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
		Function : other
        /*0000*/                   LDL R1, [R1] ;
"""
PTX = """
.visible .entry good(
	.param .align 8 .b8 good_param_0[80]
)
.maxntid 256, 1, 1
.minnctapersm 3
{
"""


@pytest.fixture(scope="module")
def cuda_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_check", ROOT / "tools" / "cuda_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_what_ptxas_reports(cuda_check: ModuleType) -> None:
    threads = cuda_check._block_sizes(PTX)
    assert threads == {"good": 256}
    good, spilled = cuda_check._kernels(REPORT, "x.cu", "sm_90a", threads)
    assert (good.registers, good.shared, good.threads, good.spills, good.stack) == (48, 2304, 256, 0, 0)
    assert (spilled.spills, spilled.stack, spilled.threads) == (48, 24, 1024)


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "occupancy"),
    [
        (32, 0, 256, 1.0),
        (48, 2304, 256, 0.625),  # registers
        (255, 0, 128, 0.125),
        (32, 100_000, 256, 0.25),  # shared memory
        (16, 0, 32, 0.5),  # blocks
    ],
)
def test_occupancy(
    cuda_check: ModuleType, registers: int, shared: int, threads: int, occupancy: float
) -> None:
    kernel = cuda_check.Kernel("x.cu", "sm_90a", "x", registers, shared, threads, 0, 0)
    assert kernel.occupancy == occupancy


def test_instructions_are_looked_for_kernel_by_kernel(cuda_check: ModuleType) -> None:
    functions = cuda_check._functions(SASS)
    assert list(functions) == ["good", "other"]
    words = ("HMMA", "LDGSTS", "LDSM")
    assert cuda_check._missing("good", functions["good"], words) == ["good: no LDSM"]
    assert cuda_check._missing("other", functions["other"], words[:2]) == [
        "other: no HMMA",
        "other: no LDGSTS",
    ]
    held = {name: cuda_check._holds(text, "LDL") for name, text in functions.items()}
    assert held == {"good": False, "other": True}


def test_weights_are_looked_for_between_the_waits_of_wgmma(cuda_check: ModuleType) -> None:
    def sass(*between: str) -> str:
        one, none = (f"WARPGROUP.DEPBAR.LE gsb0, 0x{pending} ;\n" for pending in (1, 0))
        return "MUFU.EX2 R1, R2 ;\n" + one + "".join(between) + none + "MUFU.EX2 R1, R2 ;\n"

    assert cuda_check._overlaps(sass("MUFU.EX2 R1, R2 ;\n"))
    assert not cuda_check._overlaps(sass("FMUL R1, R2, R3 ;\n"))
    assert not cuda_check._overlaps("MUFU.EX2 R1, R2 ;\n")


def test_notes_of_serialised_wgmma_are_recognised(cuda_check: ModuleType) -> None:
    for number in (7508, 7510, 7511, 7512, 7513):
        assert cuda_check.SERIALISED.search(f"ptxas info    : (C{number}) Potential Performance Loss: wgmma")
    assert not cuda_check.SERIALISED.search("ptxas info    : (C7509) something else")


def test_the_document_lists_every_kernel(tmp_path: Path, cuda_check: ModuleType) -> None:
    document = (ROOT / "docs" / "kernels.md").read_text()
    table = document[document.index(cuda_check.BEGIN) : document.index(cuda_check.END)]
    for source in sorted((ROOT / "csrc" / "cuda").rglob("*.cu")):
        for name in re.findall(r"\b(\w+_kernel)\(", source.read_text()):
            assert name in table, f"{source.name}: run python tools/cuda_check.py --markdown docs/kernels.md"
    copy = tmp_path / "kernels.md"
    copy.write_text(document)
    cuda_check._write(copy, ["| new |"])
    written = copy.read_text()
    assert "| new |" in written and table not in written
    assert written.startswith(document[: document.index(cuda_check.BEGIN)])
    assert written.endswith(document[document.index(cuda_check.END) :])
