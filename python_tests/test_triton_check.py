# SPDX-License-Identifier: Apache-2.0
"""tools/triton_check.py compiles what the launchers would launch, sees spills, and fills docs/kernels.md.

Compiles for GPUs that need not be there, so these tests run without one, and not in Triton's interpreter.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
import triton.language as tl  # noqa: E402

from ardiff_engine.kernels.triton import frame_attention, sample_timesteps  # noqa: E402
from ardiff_engine.ops import FrameTable  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret),
    reason="TRITON_INTERPRET=1 is set: interpreted kernels do not compile",
)


@triton.jit
def _holds_too_much_in_one_warp(x, y):
    at = tl.arange(0, 16384)
    value = tl.load(x + at)
    tl.store(y + at, value / tl.sum(value, 0))


@pytest.fixture(scope="module")
def triton_check() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("triton_check")
    sys.path.remove(str(ROOT / "tools"))


def test_spills_are_seen(triton_check: ModuleType, tmp_path: Path) -> None:
    x = torch.zeros(16384)
    launch = triton_check.Launch("x", _holds_too_much_in_one_warp, {"x": x, "y": x}, {"num_warps": 1})
    compiled = triton_check.check(launch, "sm_80", tmp_path)
    assert compiled.registers > 0 and "registers spill" in compiled.problems[0]


def test_offsets_beyond_31_bits_are_64_bit(triton_check: ModuleType) -> None:
    """A stride may fit 32 bits where stride times head or row does not."""
    head, row, tokens = 2**30 + 8, 2**29 + 16, 2**28 + 32
    q = torch.empty(0, device="meta").as_strided((64, 4, 64), (tokens, head, 1))
    pool = torch.empty(0, device="meta").as_strided((2, 4, 64, 64), (64, head, row, 1))
    table = FrameTable.build([64], [[0]], [[64]])
    lists = (table.frame_ptr, table.group_ptr, table.page_ptr, table.pages, table.valid, table.seen)
    lists = tuple(t.to("meta") for t in lists)
    (launch,) = triton_check.record({"": partial(frame_attention.run, q, pool, pool, *lists, None, 1.0)})
    code = triton_check.compile_launch(launch, "sm_80").asm["ttir"]
    for stride in (head, row, tokens):
        kinds = re.findall(rf"arith.constant (?:dense<)?{stride}>? : (?:tensor<[0-9x]*)?(i\d+)", code)
        assert kinds and set(kinds) == {"i64"}


def test_seeds_do_not_compile_a_kernel_anew(triton_check: ModuleType) -> None:
    def draw(seed: int, first: int) -> object:
        return sample_timesteps.run(4, 3, 10, "fopp", seed, first, "cpu")

    cases = {
        str(seed): partial(draw, seed, first) for seed, first in ((0, 0), (1, 1), (16, 32), (-(2**63), 2**60))
    }
    (launch,) = triton_check.record(cases)
    assert launch.source().signature["seed"] == launch.source().signature["first_sample"] == "i64"


def test_the_document_lists_every_kernel(triton_check: ModuleType, tmp_path: Path) -> None:
    document = (ROOT / "docs" / "kernels.md").read_text()
    table = document[document.index(triton_check.BEGIN) : document.index(triton_check.END)]
    launches = triton_check.record(importlib.import_module("triton_cases").cases())
    for launch in launches:
        row = f"| `{launch.name}` | {launch.case} |"
        assert row in table, "run python tools/triton_check.py --markdown docs/kernels.md"
    kernels = ROOT / "ardiff_engine" / "kernels" / "triton"
    for source in kernels.glob("*.py"):
        for name in re.findall(r"^ +(_\w+)\[", source.read_text(), re.MULTILINE):
            assert f"`{source.stem}.{name}`" in table, f"tools/triton_cases.py has no case of {name}"
    copy = tmp_path / "kernels.md"
    copy.write_text(document)
    one = triton_check.Compiled("a._b", "case", "sm_80", 4, 40, 0, ())
    other = triton_check.Compiled("a._b", "case", "sm_80", 4, 48, 16, ())
    triton_check.write(copy, triton_check.table([one, other]))
    assert "| `a._b` | case | 4 | 40-48 / - | 0-16 / - |" in copy.read_text()
    assert copy.read_text().startswith(document[: document.index(triton_check.BEGIN)])
    assert copy.read_text().endswith(document[document.index(triton_check.END) :])
