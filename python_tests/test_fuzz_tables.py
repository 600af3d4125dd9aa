# SPDX-License-Identifier: Apache-2.0
"""A short campaign of `tools.fuzz.tables`; `make test-all` and a person run longer ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ardiff_engine.errors import ConfigError, PageTableError
from ardiff_engine.ops import FrameTable
from tools.fuzz import tables


def test_no_table_ends_untyped() -> None:
    ends = tables.run(600, seed=20, show=True)
    assert not [end for end in ends if "WRONG" in end]
    assert {"attention: agrees", "write: agrees", "pages: agrees", "attention: PageTableError"} <= set(ends)


@pytest.mark.slow
def test_a_long_campaign() -> None:
    assert not [end for end in tables.run(20_000, seed=21, show=True) if "WRONG" in end]


def test_offsets_that_rise_by_more_than_32_bits_do_not_wrap() -> None:
    ends = torch.tensor([0, 2**31 - 1, -(2**31) + 7], dtype=torch.int32)
    one = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ConfigError, match="frame_ptr"):
        FrameTable(
            ends, torch.tensor([0, 2], dtype=torch.int32), one.repeat(2), one[:0], one[:0], one.repeat(2)
        )


@pytest.mark.parametrize("pages", [[1.5], [True], ["1"], [[1], [2]], None, {}, 3, [2**31], np.array([2**40])])
def test_flat_lists_of_other_things(pages: object) -> None:
    with pytest.raises(PageTableError, match="pages"):
        FrameTable.from_flat([1], [1], [1], pages, [1], [1])  # type: ignore[arg-type]
