# SPDX-License-Identifier: Apache-2.0
"""Tables instead of work: what the network computes from timesteps, and
solver coefficients, of every solver in use.

A cell carries a level; row `table_base + model.frame_rows(level)` is of its tokens and row
`coefficient_base + level` moves it on; rows of later tracks follow those of the first. So streams of
different solvers share one pass, and no timestep embedding is computed while a video is generated.
"""

from __future__ import annotations

from itertools import accumulate

import torch

from ardiff_engine.diffusion.solvers import Solver, look_back
from ardiff_engine.errors import ConfigError
from ardiff_engine.models.agreement import checked_tables
from ardiff_engine.models.protocol import Tables, VideoModel

Tracks = Solver | tuple[Solver, ...]
"""How frames become clean: one solver, or one for each track of a plan."""


def tracks_of(steps: Tracks) -> tuple[Solver, ...]:
    tracks = steps if isinstance(steps, tuple) else (steps,)
    if not tracks or not all(hasattr(own, "coefficients") for own in tracks):
        raise ConfigError(f"solver must be one of ade.solvers, or a tuple of them, got {steps!r:.80}")
    return tracks


def drawn_levels(steps: Tracks) -> int:
    """Updates at levels below this may add noise."""
    rows = [(own.coefficients[:, 4] != 0).nonzero() for own in tracks_of(steps)]
    return max((int(found.max()) + 1 for found in rows if found.numel()), default=0)


class ScheduleRows:
    """Where the rows of one solver, or of the solvers of several tracks, begin. The bases move when tables of
    solvers that nobody uses are dropped.

    looks_back: earlier predictions that a step reads.
    users: streams with this solver. Without one the rows stay until another solver needs room.
    table_offsets, coefficient_offsets: of each track, from the bases on.
    """

    __slots__ = (
        "coefficient_base",
        "coefficient_offsets",
        "draws_noise",
        "looks_back",
        "solver",
        "table_base",
        "table_offsets",
        "timesteps",
        "users",
    )

    def __init__(self, solver: Tracks) -> None:
        tracks = tracks_of(solver)
        self.solver = solver
        self.draws_noise = any(bool((own.coefficients[:, 4] != 0).any()) for own in tracks)
        self.looks_back = max(look_back(own.coefficients) for own in tracks)
        # Timesteps of a track: one per level, CLEAN, waiting.
        *table, self.timesteps = accumulate((own.num_steps + 2 for own in tracks), initial=0)
        *coefficients, _ = accumulate((own.num_steps for own in tracks), initial=0)
        self.table_offsets, self.coefficient_offsets = tuple(table), tuple(coefficients)
        self.users = 0
        self.table_base = 0
        self.coefficient_base = 0


class Schedules:
    """tables: of the model; coefficients: float32 [C, 9], row 0 for padding, as it asks for no input.
    version rises when rows have moved."""

    def __init__(self, model: VideoModel, default: Tracks) -> None:
        self._model = model
        self._entries: dict[object, ScheduleRows] = {}
        self._blocks: dict[object, tuple[Tables, torch.Tensor]] = {}
        self.version = 0
        self.default = self.use(default)

    def use(self, solver: Tracks) -> ScheduleRows:
        """The rows of this solver, for one more user."""
        key = _key(solver)
        rows = self._entries.get(key)
        if rows is None:
            rows = self._added(key, solver)
        rows.users += 1
        return rows

    @torch.no_grad()
    def _block(self, solver: Tracks) -> tuple[Tables, torch.Tensor]:
        device = self._model.device
        tracks = tracks_of(solver)
        timesteps = [t for own in tracks for t in (*own.timesteps.tolist(), own.waiting_timestep)]
        table = checked_tables(self._model, torch.tensor(timesteps, dtype=torch.float32, device=device))
        return table, torch.cat([own.coefficients for own in tracks]).to(device, torch.float32)

    def _added(self, key: object, solver: Tracks) -> ScheduleRows:
        """Rows of one more solver, in new tables without the solvers that nobody uses."""
        added = ScheduleRows(solver)
        entries = {k: rows for k, rows in self._entries.items() if rows.users} | {key: added}
        blocks = {k: self._blocks[k] for k in entries if k != key} | {key: self._block(solver)}
        tables = Tables.joined([table for table, _ in blocks.values()])
        steps = [steps for _, steps in blocks.values()]
        neutral = steps[0].new_tensor([[0.0] * 8 + [float("inf")]])
        coefficients = torch.cat([neutral, *steps])
        # Memory may be short up to here. Nothing below can fail: rows and tables move together or not at all.
        table_row, coefficient_row = 0, len(neutral)
        for rows, (table, own) in zip(entries.values(), blocks.values(), strict=True):
            rows.table_base, rows.coefficient_base = table_row, coefficient_row
            table_row += table.rows
            coefficient_row += len(own)
        self._entries, self._blocks = entries, blocks
        self.tables, self.coefficients = tables, coefficients
        self.version += 1
        return added


def _key(solver: Tracks) -> object:
    return tuple(
        (tuple(own.timesteps.tolist()), own.waiting_timestep, tuple(own.coefficients.flatten().tolist()))
        for own in tracks_of(solver)
    )
