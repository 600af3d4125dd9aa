# SPDX-License-Identifier: Apache-2.0
"""The record of a benchmark run: what becomes a row, what is judged, and how two records are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ardiff_engine import bench_table
from ardiff_engine.errors import ConfigError


def row(**changes: Any) -> dict[str, Any]:
    plain = {"op": "add", "shape": "8 x 8", "threads": 2, "opponent": "torch.add", "seconds": 0.002}
    return {**plain, "opponent_seconds": 0.005, "ratio": 2.5, "bar": 2.0, **changes}


def record(*rows: dict[str, Any]) -> bench_table.Record:
    machine = {"cpu": "Some CPU", "cores": 2, "isa": "avx2", "torch": "2.13.0"}
    return {"machine": machine, "date": "2026-01-02", "commit": "abc1234", "rows": list(rows)}


def cells(text: str, line: int) -> list[str]:
    return [cell.strip() for cell in text.splitlines()[line].strip("|").split("|")]


def test_only_benchmarks_with_an_op_are_rows() -> None:
    measured = {"benchmarks": [{"extra_info": row()}, {"extra_info": {"steps": 50}}, {}]}
    found = bench_table.record(measured)
    assert found["rows"] == [row()]
    assert found["machine"]["cpu"] and found["machine"]["isa"] and len(found["date"]) == 10


def test_a_row_without_a_time_is_refused() -> None:
    broken = row()
    del broken["seconds"]
    with pytest.raises(ConfigError, match="seconds"):
        bench_table.record({"benchmarks": [{"extra_info": broken}]})


def test_the_table_says_what_misses_its_bar() -> None:
    text = bench_table.markdown(
        record(
            row(share=0.79, share_of="copy", share_bar=0.8),
            row(ratio=1.9),
            row(bar=None, share=0.5, share_of="GEMM", share_bar=None, seconds=2.0),
        )
    )
    assert "Some CPU, avx2, 2 cores, torch 2.13.0, 2026-01-02, commit abc1234" in text.splitlines()[0]
    assert cells(text, 4)[3:] == ["2 ms", "torch.add", "5 ms", "2.50", "2", "copy 79 % below", "80 %"]
    assert cells(text, 5)[6:] == ["1.90 below", "2", "", ""]
    assert cells(text, 6)[3:] == ["2.00 s", "torch.add", "5 ms", "2.50", "", "GEMM 50 %", ""]


def test_records_are_compared_by_op_shape_threads_and_opponent() -> None:
    before = record(row(), row(threads=1), row(op="gone"))
    after = record(row(seconds=0.001, ratio=5.0), row(threads=1, opponent="another"), row(op="new"))
    text = bench_table.comparison(before, after)
    assert len(text.splitlines()) == 6  # two records, an empty line, two of the header, one row
    assert cells(text, 5) == ["add", "8 x 8", "2", "2 ms", "1 ms", "2.00", "2.50", "5.00"]


def test_a_record_is_read_back_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record(row())))
    assert bench_table.read(path) == record(row())
    odd = [record(row(**{name: value})) for name, value in (("ratio", "x"), ("seconds", 0), ("op", [1]))]
    odd += [record(row()) | {"machine": {}}, record(row()) | {"rows": ["op"]}, record(row()) | {"date": []}]
    nested = "[" * 100_000 + "]" * 100_000
    for content in ("[]", "{}", "no json", nested, *map(json.dumps, [{"benchmarks": []}, *odd])):
        path.write_text(content)
        with pytest.raises(ConfigError, match="record.json"):
            bench_table.read(path)
