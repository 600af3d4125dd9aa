# SPDX-License-Identifier: Apache-2.0
"""What a stream does call by call, without a network: who is fed, at which timestep, and sees what.

It follows the walk of the engine's own feeder. The engine stores K/V in passes that move other blocks, since
in every layer they are written before anyone reads them. Most published code spends a call of its own on
that; `trace` shows it so, unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.errors import PlanError
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.memory.view import View
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan

CallsOf = Literal["pass", "kind", "block"]

ANY_NETWORK = ModelSpec(
    num_frames=1, tokens_per_frame=1, channels=1, layers=1, heads=1, kv_heads=1, head_dim=1
)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Of C calls over F frames.

    fed, updated: bool [C, F]: inputs of the call, and those that the solver moves. timestep: float64 [C, F],
        NaN where not fed.
    visible: bool [C, F, F]: query frame sees key frame. position: float64 [C, F]: where a key frame is seen,
        NaN where it is not. key_call: int64 [C, F]: the call that computed the K/V that are seen, or -1.
    """

    fed: npt.NDArray[np.bool_]
    updated: npt.NDArray[np.bool_]
    timestep: npt.NDArray[np.float64]
    visible: npt.NDArray[np.bool_]
    position: npt.NDArray[np.float64]
    key_call: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, calls: int, frames: int) -> Trace:
        return cls(
            fed=np.zeros((calls, frames), np.bool_),
            updated=np.zeros((calls, frames), np.bool_),
            timestep=np.full((calls, frames), np.nan),
            visible=np.zeros((calls, frames, frames), np.bool_),
            position=np.full((calls, frames), np.nan),
            key_call=np.full((calls, frames), -1, np.int64),
        )


@dataclass(frozen=True, slots=True)
class _Cell:
    frame: int
    copy: int
    updates: bool
    timestep: float
    view: View


def trace(
    plan: Plan,
    memory: MemoryPolicy,
    timesteps: Sequence[Sequence[float]],
    *,
    num_ticks: int | None = None,
    spec: ModelSpec = ANY_NETWORK,
    calls_of: CallsOf = "kind",
    stores_last: bool = True,
) -> Trace:
    """The calls of a plan, or of its first `num_ticks` ticks.

    timesteps: of each track, the one that is fed at each level, then that of a finished frame; and, for a
        network that is fed frames that have not started, theirs.
    calls_of: what has a call of its own. "pass": a pass of the engine. "kind": the blocks that are stored,
        and then those that move; given blocks have one each. "block": every block.
    stores_last: what the plan leaves unstored at its end is stored, for nobody.

    Raises PlanError for an endless plan without `num_ticks`, for timesteps that do not fit its tracks, and
    for a view of K/V that no call has computed.
    """
    ticks, frames = plan.shape(num_ticks)
    feeder = Feeder(plan, memory, spec)
    calls: list[list[_Cell]] = []
    while feeder.tick < ticks:
        feed = feeder.next()
        roster = feed.roster
        cells = [
            _Cell(frame, copy, updates, _told(timesteps, track, level), view)
            for frame, copy, updates, track, level, view in zip(
                roster.frames,
                roster.copies,
                roster.updates,
                roster.tracks,
                feed.levels,
                roster.views,
                strict=True,
            )
        ]
        calls += _calls(plan, cells, calls_of)
        feeder.advance(feed)
    if stores_last and ticks == plan.num_ticks:
        last = [
            _Cell(f, memory.copy(fed), False, _told(timesteps, plan.track(f), fed.level), view)
            for fed, view in feeder.unstored()
            for f in fed.block
        ]
        calls += [last] if last else []
    return _arrays(calls, frames)


def _told(timesteps: Sequence[Sequence[float]], track: int, level: int) -> float:
    try:
        told = track < len(timesteps) and level < len(timesteps[track])
    except TypeError:  # one list of numbers
        raise PlanError(
            "timesteps: got numbers, expected a list for each track. Use [solver.timesteps]."
        ) from None
    if not told:
        raise PlanError(
            f"timesteps have no entry for level {level} of track {track}: give S + 1 for each track, or S + 2"
            " with that of waiting frames"
        )
    return timesteps[track][level]


def _calls(plan: Plan, cells: list[_Cell], calls_of: CallsOf) -> list[list[_Cell]]:
    if calls_of == "pass":
        return [cells]
    by_block = calls_of == "block" or not any(cell.updates for cell in cells)
    calls: dict[tuple[bool, range | None], list[_Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.updates):
        calls.setdefault((cell.updates, plan.block(cell.frame) if by_block else None), []).append(cell)
    return list(calls.values())


def _arrays(calls: list[list[_Cell]], frames: int) -> Trace:
    made = Trace.empty(len(calls), frames)
    writer: dict[tuple[int, int], int] = {}
    for call, cells in enumerate(calls):
        for cell in cells:
            writer[cell.frame, cell.copy] = call
            made.fed[call, cell.frame] = True
            made.updated[call, cell.frame] |= cell.updates
            made.timestep[call, cell.frame] = cell.timestep
        for cell in cells:
            for run in cell.view:
                for frame in range(run.first, run.stop):
                    if (frame, run.copy) not in writer:
                        raise PlanError(
                            f"call {call}: frame {cell.frame} sees copy {run.copy} of frame {frame}, "
                            "which no call has written"
                        )
                    made.visible[call, cell.frame, frame] = True
                    made.position[call, frame] = frame + run.shift
                    made.key_call[call, frame] = writer[frame, run.copy]
    return made
