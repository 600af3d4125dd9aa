# SPDX-License-Identifier: Apache-2.0
"""What the tests try does not depend on the run."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from effort import COLLECTED, chosen
from hypothesis import given, settings


def drawn() -> list[int]:
    values: list[int] = []

    @settings(max_examples=300)
    @given(st.integers())
    def draw(value: int) -> None:
        values.append(value)

    draw()
    return values


def test_examples_are_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if settings.get_current_profile_name() != "fixed":
        pytest.skip("this run explores")
    first = drawn()
    assert len(set(first)) > 100
    (tmp_path / "many_constants.py").write_text(f"CONSTANTS = {list(range(10**6, 10**6 + 1000))}")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("many_constants")
    assert drawn() == first


def test_short_and_long_ones_are_all(request: pytest.FixtureRequest) -> None:
    collected = request.config.stash[COLLECTED]
    short, long = chosen(collected, ""), chosen(collected, "long")
    assert set(short) | set(long) == set(chosen(collected, "all")) == set(collected)
    own = {item.path for item in collected if item.path.name.startswith("test_")}
    asking = [path.name for path in own if '"ARDIFF_TESTS"' in path.read_text() and path != Path(__file__)]
    assert not asking, "they go by ARDIFF_TESTS; `chosen` sees only those that ask effort.py"


def test_long_ones_leave_out_what_is_the_same(tmp_path: Path) -> None:
    (plain := tmp_path / "test_plain.py").write_text("import effort_of_another_kind\n")
    (hard := tmp_path / "test_hard.py").write_text("from effort import examples\n")
    (sets := tmp_path / "test_sets.py").write_text("from native_isa import isa\nimport numpy\n")
    files = [plain, plain, hard, sets, plain]
    same, slow, by_effort, by_another, of_kernels = map(Item, files, [False, True, False, False, False])
    of_kernels.fixturenames = ("machine",)
    everything = [same, slow, by_effort, by_another, of_kernels]
    assert chosen(everything, "") == [same, by_effort, by_another, of_kernels]  # type: ignore[arg-type]
    assert chosen(everything, "long") == [slow, by_effort, by_another, of_kernels]  # type: ignore[arg-type]
    assert chosen(everything, "all") == everything  # type: ignore[arg-type]


class Item:
    """Of pytest's what `chosen` asks."""

    fixturenames: tuple[str, ...] = ()

    def __init__(self, path: Path, slow: bool) -> None:
        self.path, self.nodeid, self._slow = path, path.name, slow

    def get_closest_marker(self, name: str) -> bool:
        return name == "slow" and self._slow
