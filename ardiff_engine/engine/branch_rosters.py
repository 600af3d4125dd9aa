# SPDX-License-Identifier: Apache-2.0
"""What each guidance branch of a stream feeds in a pass, and what its cells see: all, or less, of what the
stream's memory shows.

    branch                 feeds                     sees                            keeps pages of
    as the memory says     all                       all                             all
    view=Past(frames=n)    all                       its block, n frames before it   all
    view=Past(level=k)     all; finished frames      all                             all
                           noised to level k
    view=Past(frames=0)    what the solver moves     its block                       what it feeds
    writes=False           what the solver moves     as its view says; finished      frames in flight
                                                     frames in the K/V of `source`

All branches feed what the solver moves, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ardiff_engine.diffusion.guidance import Branch
from ardiff_engine.engine.feed import Roster
from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.policy import MemoryPolicy
from ardiff_engine.memory.view import View
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan


def source_of(branches: Sequence[Branch]) -> int:
    """Of the branches, the one whose K/V those read that store none."""
    return next((i for i, own in enumerate(branches) if own.writes and own.view is None), -1)


def check_branches(branches: Sequence[Branch], spec: ModelSpec, steps: Sequence[int]) -> None:
    """ConfigError if a branch reads K/V that no branch, or no pass, stores, or that are elsewhere, or noises
    what is not fed, or back to a level that there is not."""
    for level in [own.view.level for own in branches if noises(own) and own.view is not None]:
        if spec.forgets:
            raise ConfigError(
                f"Past(level={level}) and a model whose finished frames are not fed again: only what is fed "
                "in every pass can be noised anew; Past(frames=0) leaves the past out"
            )
        if level is not None and level >= min(steps):
            raise ConfigError(f"Past(level={level}): expected one of the levels 0..{min(steps) - 1}")
    if not any(own.writes and _sees_past(own) for own in branches):
        raise ConfigError(
            "branches none of which stores a past: one must have writes=True and see more than its own block"
        )
    if all(own.writes for own in branches):
        return
    if source_of(branches) < 0:
        raise ConfigError(
            "branches with writes=False, and none that they could read: one must store K/V as memory says "
            "(writes=True, view=None)"
        )
    if spec.branches_apart:
        raise ConfigError(
            "branches with writes=False, which read the K/V of another branch, and a model whose branches "
            "are computed in different processes. Share its heads instead, or store K/V in every branch."
        )
    if not spec.forgets:
        raise ConfigError(
            "branches with writes=False and a model in which later frames change the K/V of earlier ones: "
            "nothing is stored in it that another branch could read"
        )


def noises(branch: Branch) -> bool:
    return branch.view is not None and branch.view.level is not None


def noised_cells(branch: Branch, own: Roster, fed: Roster) -> list[int]:
    """Which cells of the branch's own roster are finished frames that it sees noised; fed: by the stream."""
    if not noises(branch) or not _sees_past(branch):
        return []
    cells = zip(fed.updates, fed.levels, fed.steps, strict=True)
    return [i for i, (updates, level, steps) in enumerate(cells) if not updates and level == steps]


def most_frames(branch: Branch, plan: Plan, memory: MemoryPolicy) -> int:
    """The most frames that a branch ever holds pages of, each copy counted."""
    if _sees_past(branch) and branch.writes:
        return memory.most_frames(plan)
    copies = plan.num_steps if memory.by_level and _sees_past(branch) else 1
    return min(plan.max_live * copies, memory.most_frames(plan))


def branch_rosters(branches: Sequence[Branch], roster: Roster, plan: Plan) -> tuple[Roster, ...]:
    """One for each branch."""
    return tuple([_of_branch(branch, roster, plan) for branch in branches])


def _of_branch(branch: Branch, roster: Roster, plan: Plan) -> Roster:
    if branch.view is None and branch.writes:
        return roster
    own = roster
    frames = None if branch.view is None else branch.view.frames
    if frames is not None:
        seen = [
            _recent(view, plan.block(frame), frames)
            for frame, view in zip(roster.frames, roster.views, strict=True)
        ]
        layers = [
            tuple([_recent(view, plan.block(frame), frames) for view in views])
            for frame, views in zip(roster.frames, roster.layers, strict=bool(roster.layers))
        ]
        own = replace(own, views=tuple(seen), layers=tuple(layers))
    if noises(branch) and branch.view is not None:
        levels = list(own.levels)
        for cell in noised_cells(branch, own, roster):
            levels[cell] = branch.view.level or 0
        own = replace(own, levels=tuple(levels))
    if branch.writes and _sees_past(branch):
        return own
    kept = plan.now(roster.tick).unfinished if _sees_past(branch) else ()
    return replace(own, **own.moving(), kept=kept)


def _sees_past(branch: Branch) -> bool:
    return branch.view is None or branch.view.frames != 0


def _recent(view: View, block: range, frames: int) -> View:
    """The block, and so many frames before it, of a view."""
    first, stop = block.start - frames, block.stop
    cut = [run._replace(first=max(run.first, first), stop=min(run.stop, stop)) for run in view]
    return tuple([run for run in cut if run.first < run.stop])
