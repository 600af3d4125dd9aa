# SPDX-License-Identifier: Apache-2.0
"""What the code of Lumos-1 does in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import floor, pi

import numpy as np
import torch

from ardiff_engine.diffusion.solvers import Table
from ardiff_engine.diffusion.solvers.solver import coefficient_table
from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, by_kind
from ardiff_engine.systems.trace import Trace

PIXELS = 8
"""Pixels along an edge of a token."""


FIRST_VISUAL = (9, 6)
"""Where the first frame begins: after the prompt with its three marks, after none but the marks."""


TIME = 4
"""Places of a frame along time."""


def history_mask(rows: int, columns: int, ratio: float) -> torch.Tensor:
    """bool [rows, columns]: which tokens of a stored frame are masked: always the same, evenly spaced over
    its lines, each of which has one more token for its end."""
    tokens = rows * (columns + 1)
    count = round(tokens * ratio)
    masked = torch.zeros(tokens, dtype=torch.bool)
    masked[[round(i * tokens / count) for i in range(count)]] = True
    return masked.view(rows, columns + 1)[:, :columns]


def masked_steps(rows: int, columns: int, steps: int, history: float) -> Table:
    """Steps that leave ⌊N·cos(π/2·(i + 1)/S)⌋ of N tokens masked, at least one and fewer than before; the
    last one keeps all. A stored frame is told the share of `history_mask`. In float32, as its code: cos(π/3)
    is less than a half there, and one token fewer stays masked."""
    count, left = rows * columns, [rows * columns]
    for ratio in torch.cos(torch.arange(1, steps) / steps * pi * 0.5).tolist():
        left.append(min(max(floor(count * ratio), 1), left[-1] - 1))
    stays = torch.ones(steps, dtype=torch.float64)
    unmoved = coefficient_table((0 * stays, 0 * stays), stays, 0 * stays)
    told = [n / count for n in left]
    return Table([*told, float(history_mask(rows, columns, history).double().mean())], unmoved, waiting=1.0)


def in_two_branches(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """Each call with the prompt and without, over K/V of its own. Steps take theirs out of the cache."""
    for cells in by_kind(plan, walk):
        for branch in range(2):
            views = [tuple([run._replace(copy=branch) for run in cell.view]) for cell in cells]
            yield [
                cell._replace(copy=branch, written=not cell.updates, view=view)
                for cell, view in zip(cells, views, strict=True)
            ]


def along_the_sequence(first: tuple[int, int]) -> Callable[[Trace], Trace]:
    """Places count from the first visual token of the branch, and are on record for frames that are fed."""

    def of(trace: Trace) -> Trace:
        start = np.resize(first, len(trace.fed))[:, None]
        return replace(trace, position=np.where(trace.fed, trace.position * TIME + start, np.nan))

    return of
