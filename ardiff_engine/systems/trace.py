# SPDX-License-Identifier: Apache-2.0
"""What a stream does call by call, without a network: who is fed, at which timestep, and sees what.

It follows the walk of the engine's own feeder, cut into calls as `systems.calls` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ardiff_engine.errors import PlanError
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import ANY_NETWORK, Call, CallsOf, by_kind, passes

Timesteps = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Of C calls over F frames.

    fed, updated: bool [C, F]: inputs of the call, and those that the solver moves. timestep: float64 [C, F],
        NaN where not fed. written: bool [C, F]: whose K/V, as the call computes them, are in the cache
        afterwards.
    visible: bool [C, F, F]: query frame sees key frame. position: float64 [C, F]: where a key frame is seen,
        NaN where it is not. key_call: int64 [C, F]: the call that computed the K/V that are seen, or -1.
    x_in: float64 [C, F], NaN where not fed: the latent before the call; final: float64 [F]: after the last
        one. Of the toy network, where it was given noise; None without.
    """

    fed: npt.NDArray[np.bool_]
    updated: npt.NDArray[np.bool_]
    timestep: npt.NDArray[np.float64]
    written: npt.NDArray[np.bool_]
    visible: npt.NDArray[np.bool_]
    position: npt.NDArray[np.float64]
    key_call: npt.NDArray[np.int64]
    x_in: npt.NDArray[np.float64] | None = None
    final: npt.NDArray[np.float64] | None = None

    @classmethod
    def empty(cls, calls: int, frames: int) -> Trace:
        return cls(
            fed=np.zeros((calls, frames), np.bool_),
            updated=np.zeros((calls, frames), np.bool_),
            timestep=np.full((calls, frames), np.nan),
            written=np.zeros((calls, frames), np.bool_),
            visible=np.zeros((calls, frames, frames), np.bool_),
            position=np.full((calls, frames), np.nan),
            key_call=np.full((calls, frames), -1, np.int64),
        )


def trace(
    plan: Plan,
    memory: MemoryPolicy,
    timesteps: Timesteps,
    *,
    num_ticks: int | None = None,
    spec: ModelSpec = ANY_NETWORK,
    calls_of: CallsOf = by_kind,
    stores_last: bool = True,
) -> Trace:
    """The calls of a plan, or of its first `num_ticks` ticks.

    timesteps: of each track, the one that is fed at each level, then that of a finished frame; and, for a
        network that is fed frames that have not started, theirs.
    calls_of: how passes become calls: `calls.by_kind`, `by_block` or `by_pass`.
    stores_last: what the plan leaves unstored at its end is stored, for nobody.

    Raises PlanError for an endless plan without `num_ticks`, for timesteps that do not fit its tracks, and
    for a view of K/V that no call has computed.
    """
    walk = passes(plan, memory, spec, num_ticks, stores_last)
    return trace_of(calls_of(plan, walk), plan.shape(num_ticks)[1], timesteps)


def trace_of(calls: Iterable[Call], frames: int, timesteps: Timesteps) -> Trace:
    """The trace of these calls; timesteps as in `trace`."""
    calls = list(calls)
    made = Trace.empty(len(calls), frames)
    writer: dict[tuple[int, int], int] = {}
    for call, cells in enumerate(calls):
        for cell in [cell for cell in cells if cell.frame >= 0]:
            writer[cell.frame, cell.copy] = call
            made.fed[call, cell.frame] = True
            made.updated[call, cell.frame] |= cell.updates
            made.written[call, cell.frame] |= cell.written
            made.timestep[call, cell.frame] = _told(timesteps, cell.track, cell.level)
        for cell in cells:
            for run in cell.view:
                for frame in range(run.first, run.stop):
                    if (frame, run.copy) not in writer:
                        raise PlanError(
                            f"call {call}: frame {cell.frame} sees copy {run.copy} of frame {frame}, "
                            "which no call has written"
                        )
                    made.visible[call, cell.frame, frame] |= cell.frame >= 0
                    made.position[call, frame] = frame + run.shift
                    made.key_call[call, frame] = writer[frame, run.copy]
    return made


def _told(timesteps: Timesteps, track: int, level: int) -> float:
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
