# SPDX-License-Identifier: Apache-2.0
"""What is measured on a GPU does the same work as its opponents; here on a CPU, on small shapes, untimed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.scripts import run_script

from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu"
MODULES = ("lines", "timing", "case", "memory_bound", "attention", "training", "wan", "bench_wan")


@pytest.fixture
def benchmark_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


def compared(case_module: ModuleType, case) -> float:
    """The error of the opponent in PyTorch against the op: what both return and write."""

    def opponent() -> object:
        result = case.opponents["PyTorch"]()
        return () if result is None else result

    own, theirs = case_module._effects(case, case.call), case_module._effects(case, opponent)
    return case_module.worst(own, theirs)


def test_memory_bound_ops_and_their_opponents(benchmark_of):
    case_module, module = benchmark_of("case"), benchmark_of("memory_bound")
    shape = module.Shape(frames=2, tokens=40, heads=2, dim=16, page_rows=16, layers=2, latents=64)
    found = {case.op: case for case in module.cases(shape, "cpu", torch.float32)}
    assert len(found) == 8
    for op, case in found.items():
        assert case_module.relative_error(case) < 1e-5, op
    for op in ("modulate", "gate_residual_", "norm_rope_write_", "copy_pages_", "solver_step"):
        assert compared(case_module, found[op]) < 1e-5, op
    assert compared(case_module, found["add_noise"]) > 0.1


def test_attention_and_its_opponents(benchmark_of, monkeypatch):
    case_module, module = benchmark_of("case"), benchmark_of("attention")

    def kernel(q, k, v, frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias, scale, kernel):
        table = FrameTable(frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias)
        return frame_attention(q, k, v, table, scale=scale, return_lse=True)

    monkeypatch.setattr(module, "frame_attention_cuda", kernel)
    for streams in (1, 3):
        shape = module.Shape(streams, 20, 75, 2, 16, 16, {"sm_80": 1.0})
        case = module.case(shape, "sm_80", "cpu", torch.float32)
        assert case_module.relative_error(case) < 1e-5
    assert set(case.opponents) == {"cuDNN", "FlashAttention"}
    names = [(s.streams, s.queries, s.keys) for s in module.SHAPES]
    assert names == [(1, 4680, 18720), (1, 4680, 32760), (1, 1560, 14040), (64, 32, 589)]


def test_training_and_its_opponents(benchmark_of):
    case_module, module = benchmark_of("case"), benchmark_of("training")
    case = module.case(module.Shape(clips=2, frames=3, tokens=8, heads=2, dim=16), "cpu", torch.float32)
    assert case_module.relative_error(case) < 1e-5
    assert set(case.opponents) == {"FlexAttention", "SDPA, boolean mask"}


@pytest.mark.parametrize("streams", [1, 3])
def test_blocks_of_wan(benchmark_of, streams):
    module, models = benchmark_of("wan"), benchmark_of("bench_wan")
    model = models.random_wan(models.WanConfig(48, 1, 2, 64, text_dim=8, text_tokens=4))
    found = module.run(model, module.Shape((4, 6), 6, streams), cuda_graphs=False)
    assert found.seconds > 0 and found.replayed == 0
    assert found.seconds_per_frame == pytest.approx(found.seconds / (3 * streams))


def test_the_opponent_of_wan_computes_the_same(benchmark_of):
    """As the benchmark asks before it times: block by block, also once the window is full."""
    module = benchmark_of("bench_wan")
    sides = module.Sides(module.WanConfig(48, 2, 2, 64, text_dim=8, text_tokens=4), (4, 6))
    for _ in range(module.BLOCKS + 2):
        torch.testing.assert_close(sides.ours(), sides.theirs(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("script", ["timing", "memory_bound", "attention", "training", "engine", "wan"])
def test_every_benchmark_has_a_command_line(script, tmp_path):
    assert "--json" in run_script(FOLDER / f"{script}.py", "--help", folder=tmp_path)


def test_wrong_results_are_not_timed_and_refusals_are_named(benchmark_of, monkeypatch, tmp_path):
    module = benchmark_of("case")
    x, timed = torch.ones(4), []

    def timing(call: Callable[[], object]) -> float:
        timed.append(call)
        call()
        return 2.0

    def refuses() -> object:
        raise RuntimeError("No available kernel. Aborting execution.\nand more")

    monkeypatch.setattr(module, "microseconds", timing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    wrong = module.Case("double", "4", lambda: 3 * x, expected=lambda: 2 * x)
    right = module.Case(
        "add_",
        "4",
        lambda: x.add_(1),
        written=(x,),
        expected=lambda: x.add_(1),
        opponents={"PyTorch": lambda: x.add_(1), "cuDNN": refuses},
        bars={"PyTorch": 3.0},
        moved=32000,
        share_bar=0.8,
    )
    assert "0.5" in module.measured(wrong, 100.0)["wrong"] and not timed
    nan = module.Case("split", "4", lambda: (x, x / 0 * 0), expected=lambda: (x, x))
    assert "inf" in module.measured(nan, 100.0)["wrong"] and not timed, "of the second result"
    row = module.measured(right, 100.0)
    assert row["PyTorch"] == {"microseconds": 2.0, "ratio": 1.0, "bar": 3.0}
    assert row["cuDNN"] == {"refused": "No available kernel. Aborting execution."}
    assert row["share_of_copy"] == pytest.approx(0.16) and torch.equal(x, torch.ones(4))
    monkeypatch.setattr(module, "copy_rate", lambda: 100.0)
    monkeypatch.setattr(module.ops, "check_device", lambda device: None)
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(tmp_path / "rows.json")])
    assert module.main("what", lambda _: [wrong, right]) == 1
    rows = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    assert ["wrong" in row for row in rows] == [True, False]
