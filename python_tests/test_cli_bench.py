# SPDX-License-Identifier: Apache-2.0
"""ardiff bench: chooses, measures, writes its record, refuses before it takes its time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers.command_line import ROOT, run

from ardiff_engine import bench_run


def test_bench_runs_what_matches_prints_the_table_and_writes_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # beside other tests nothing is timed
    (tmp_path / "bench_sum.py").write_text(
        "def test_sum(benchmark):\n"
        "    benchmark.extra_info.update(op='sum', shape='9', threads=1, opponent='loop', seconds=1e-3,\n"
        "                                opponent_seconds=3e-3, ratio=3.0, bar=2.0)\n"
        "    benchmark(sum, range(9))\n"
        "def test_sum_of_no_row(benchmark):\n    benchmark(sum, range(9))\n"
    )
    (tmp_path / "bench_max.py").write_text("def test_max(benchmark):\n    benchmark(max, range(9))\n")
    target = tmp_path / "new" / "results.json"
    assert run("bench", "--folder", tmp_path, "-k", "sum", "--json", target) == 0
    printed = capsys.readouterr().out
    found = json.loads(target.read_text())
    assert [row["op"] for row in found["rows"]] == ["sum"]
    assert set(found) == {"machine", "date", "commit", "rows"} and found["machine"]["cpu"]
    assert "| 3.00" in printed and "below" not in printed
    assert run("bench", "--table", target) == 0
    assert capsys.readouterr().out == printed
    assert run("bench", "--compare", target, target) == 0
    assert "| 1.00" in capsys.readouterr().out


def test_bench_chooses_by_the_rows_of_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}")
    (tmp_path / "bench_add.py").write_text(
        "import pytest, torch\nfrom versus import Row, versus\n"
        "@pytest.mark.parametrize('threads', [1, 2])\n"
        "@pytest.mark.parametrize('size', [8, 16])\n"
        "def test_it(benchmark, threads, size):\n"
        "    x = torch.ones(size, size)\n"
        "    row = Row(op='add', shape=f'{size} x {size}', threads=threads, opponent='torch.add')\n"
        "    versus(benchmark, row, lambda: x + x, lambda: torch.add(x, x))\n"
        "def test_another(benchmark):\n    benchmark(max, range(9))\n"
    )
    target = tmp_path / "record.json"
    options = ["--folder", tmp_path, "--json", target]
    assert run("bench", *options, "-k", "Add", "-k", "16 x 16", "-k", "threads=2") == 0
    assert [(row["shape"], row["threads"]) for row in json.loads(target.read_text())["rows"]] == [
        ("16 x 16", 2)
    ]
    target.unlink()
    capfd.readouterr()
    assert run("bench", *options, "-k", "17 x 17") == 2
    errors = capfd.readouterr().err
    assert "add: 8 x 8" in errors and "add: 16 x 16" in errors and not target.exists()


def test_bench_is_refused_before_it_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_run, "measure", lambda *_, **__: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    for name in (tmp_path / "file" / "x.json", tmp_path, "n" * 300, "", "/dev/full"):
        assert run("bench", "--folder", tmp_path, "--json", name) == 2
    monkeypatch.setattr(bench_run, "native", lambda: None)
    assert run("bench", "--folder", tmp_path) == 2
    assert "kernels" in capsys.readouterr().err
