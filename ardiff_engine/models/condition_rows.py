# SPDX-License-Identifier: Apache-2.0
"""Equal keys of a condition, stored once.

Texts are filled up with rows of zeros, which networks attend to: of 512 rows of a short prompt, 490 are
equal. Under softmax, m equal keys with equal values are one key whose logit is larger by log m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log

import torch


@dataclass(frozen=True, slots=True)
class ConditionRows:
    """One part of a condition in its pages, as many as all its rows would take.

    places: of each row, page · page_rows + row; -1: not stored, as it equals the last one that is. That one
        has a page of its own. valid: rows of each page that are read; bias: what is added to their logits.
    """

    places: tuple[int, ...]
    valid: tuple[int, ...]
    bias: tuple[float, ...]


@lru_cache(maxsize=4096)
def condition_rows(rows: int, distinct: int, page_rows: int) -> ConditionRows:
    """rows: of the part. distinct: those that are stored, of which the last stands for all that follow."""
    pages = -(-rows // page_rows)
    before = distinct - 1
    last = -(-before // page_rows)
    if distinct == rows or last >= pages:  # no page is left for the last one alone
        full = [min(page_rows, rows - page * page_rows) for page in range(pages)]
        return ConditionRows(tuple(range(rows)), tuple(full), (0.0,) * pages)
    valid = [max(0, min(page_rows, before - page * page_rows)) for page in range(pages)]
    bias = [0.0] * pages
    valid[last], bias[last] = 1, log(rows - before)
    places = [*range(before), last * page_rows] + [-1] * (rows - distinct)
    return ConditionRows(tuple(places), tuple(valid), tuple(bias))


def distinct_rows(part: torch.Tensor) -> int:
    """Rows of part [rows, ...] up to the first of the equal ones at its end."""
    differ = (part != part[-1]).flatten(1).any(1).nonzero()
    return int(differ[-1]) + 2 if len(differ) else 1


def distinct_of_parts(condition: torch.Tensor, parts: Sequence[int]) -> tuple[int, ...]:
    """parts: rows of each; where they are more than the condition has, it is repeated for them."""
    found, first = [], 0
    for rows in parts:
        found.append(distinct_rows(condition[first : first + rows]))
        first = (first + rows) % len(condition)
    return tuple(found)
