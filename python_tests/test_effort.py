# SPDX-License-Identifier: Apache-2.0
"""What the tests try does not depend on the run."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
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
