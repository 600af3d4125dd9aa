# SPDX-License-Identifier: Apache-2.0
"""Levels that are no noise levels: scales of a picture, groups of its tokens, blocks of a flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ardiff_engine.diffusion.solvers import Table
from ardiff_engine.diffusion.solvers.solver import coefficient_table
from ardiff_engine.memory import Run
from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call


def levels(count: int) -> Table:
    """A level for each part that is still to be made, count - 1 … 0, and -1 for finished frames. No latent
    moves by a formula: the network makes it."""
    stays = torch.ones(count, dtype=torch.float64)
    rows = coefficient_table((0 * stays, 0 * stays), stays, 0 * stays)
    return Table([*map(float, reversed(range(count))), -1.0], rows, waiting=float(count - 1))


def kept_by_level(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """Every level has K/V of its own, which stay as they are: a level sees all of those of earlier frames,
    and the levels of its own frame up to itself."""
    for cells in walk:
        moved = []
        for cell in [cell for cell in cells if cell.updates]:
            before = [frame for run in cell.view for frame in range(run.first, min(run.stop, cell.frame))]
            seen = [(frame, level) for frame in before for level in range(plan.num_steps)]
            seen += [(cell.frame, level) for level in range(cell.level + 1)]
            view = tuple([Run(frame, frame + 1, level) for frame, level in seen])
            moved.append(cell._replace(copy=cell.level, view=view))
        if moved:
            yield moved
