# SPDX-License-Identifier: Apache-2.0
"""What the engine knows of one stream. It knows neither the engine nor the user's handle (engine.stream)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from ardiff_engine.diffusion.guidance import Branch, noise_weights
from ardiff_engine.engine.branch_rosters import branch_rosters, noised_cells, noises, source_of
from ardiff_engine.engine.condition_store import ConditionKey
from ardiff_engine.engine.decoding import StreamDecoder
from ardiff_engine.engine.feed import Feed, Roster
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.engine.frame_inputs import FrameInputs
from ardiff_engine.engine.page_lists import Part, Place
from ardiff_engine.engine.reader import Outbox
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.schedules import ScheduleRows, tracks_of
from ardiff_engine.engine.starting_noise import StartingNoise
from ardiff_engine.engine.stream_pages import SavedPages, StreamPages
from ardiff_engine.errors import ArdiffError
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.memory.view import outside
from ardiff_engine.plan import Plan

ROSTERS_KNOWN = 16  # of a stream: those of its cycle

Status = Literal["waiting", "running", "suspended", "finished", "cancelled", "failed"]


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """branches: of guidance. weights: float32 [branches, levels of all tracks]. conditions: of the branches;
    condition_keys: of cross ones."""

    branches: tuple[Branch, ...]
    weights: np.ndarray
    conditions: torch.Tensor
    condition_keys: tuple[ConditionKey, ...]


@dataclass(slots=True, eq=False)
class StreamState:
    """
    number: in the order of submission.
    request: without its callback, which belongs to the handle: through it a stream would keep itself alive.
    watched: it has a callback, so passes are not run several at a time.
    tokens: of one frame.
    branches, weights, conditions, condition_keys: as in `Steering`. next_steering: new ones, for the passes
        after those that store what is finished.
    inputs: of frames, beside the latents.
    latents: frame -> float32 [tokens, channels], of all frames that somebody may still need.
    history: frame -> float32 [steps, tokens, channels], the predictions of its last steps, the latest first,
        for solvers that look back.
    then: what follows the present plan: an extension that came too late to be part of it.
    turn: place in the queue for passes that have no room for all.
    collecting: `result()` takes all frames, so max_ahead does not hold.
    leaving: it was cancelled; this takes effect before the next pass.
    decoder: where the engine has a codec.
    under_way: steps that have moved the stream and whose frames have not been delivered.
    """

    number: int
    request: Request
    watched: bool
    feeder: Feeder
    policy: MemoryPolicy
    tokens: int
    conditions: torch.Tensor
    condition_keys: tuple[ConditionKey, ...]
    branches: tuple[Branch, ...]
    weights: np.ndarray
    pages: StreamPages
    noise: StartingNoise
    inputs: FrameInputs
    latents: dict[int, torch.Tensor]
    outbox: Outbox
    schedule: ScheduleRows
    history: dict[int, torch.Tensor] = field(default_factory=dict)
    next_steering: Steering | None = None
    decoder: StreamDecoder | None = None
    then: Plan | None = None
    exact: bool = True
    turn: int = 0
    status: Status = "waiting"
    error: ArdiffError | None = None
    saved: SavedPages | None = None
    collecting: bool = False
    leaving: bool = False
    under_way: int = 0
    _known: dict[Roster, tuple[tuple[Roster, ...], Part]] = field(init=False, default_factory=dict)
    _laid: tuple[tuple[Roster, int], Place, tuple[int, ...]] | None = field(init=False, default=None)

    @property
    def ended(self) -> bool:
        return self.status in ("finished", "cancelled", "failed")

    @property
    def over(self) -> bool:
        """Whether nothing more will be computed, for all that anybody outside the engine can tell."""
        return self.ended or self.leaving

    @property
    def shown(self) -> Status:
        """The status as users see it."""
        return "cancelled" if self.leaving and not self.ended else self.status

    @property
    def num_frames(self) -> int | None:
        return (self.then or self.feeder.plan).num_frames

    @property
    def runnable(self) -> bool:
        """Whether the next pass may feed it: not while it waits for its reader or for its last frames."""
        if self.status != "running" or self.leaving or self.feeder.done:
            return False
        limit = self.request.ahead_limit
        return limit is None or self.collecting or self.outbox.unread < limit

    @property
    def repacked(self) -> bool:
        """Whether every pass has inputs that do not follow from the one before."""
        return self.noise.gives_updates or any(map(noises, self.branches))

    @property
    def awaited(self) -> bool:
        """Whether its callback may come without anybody's doing."""
        return self.runnable or self.status == "waiting" or (self.under_way > 0 and not self.ended)

    def prepare(self, feed: Feed) -> None:
        """Give back pages that nobody sees any more; take pages and noise for the frames that start."""
        frames = feed.numbered(feed.planned.frames)
        self.inputs.fetch(frames)
        if self.pages.ready_for(feed):
            return
        self._laid = None
        for frame in outside(feed.kept, self.latents):
            del self.latents[frame]
            self.inputs.drop(frame)
            self.history.pop(frame, None)
        for frame in frames:
            if frame not in self.latents:
                self.latents[frame] = self.noise.of(frame)
        self.pages.prepare(feed, self.rosters(feed), self.condition_keys)

    def rosters(self, feed: Feed) -> tuple[Roster, ...]:
        """What each guidance branch feeds in its part of this pass, as planned."""
        return self._of(feed.planned)[0]

    def laid(self, feed: Feed) -> tuple[Place, tuple[int, ...]]:
        """Where its part of this pass is, and the positions of the frames of all cells."""
        now, found = (feed.planned, feed.by), self._laid
        if found is None or found[0] != now:
            found = self._laid = now, *self._lay(feed)
        return found[1:]

    def _lay(self, feed: Feed) -> tuple[Place, tuple[int, ...]]:
        rosters, part = self._of(feed.planned)
        held, source = self.pages, source_of(self.branches)
        pages: list[int] = []
        conditions: list[int] = []
        positions: list[int] = []
        for branch, own in enumerate(rosters):
            pages += held.context[branch]
            for of_frame in held.shown(branch, source, feed.view(own.shown)):
                pages += of_frame
            positions += feed.numbered(own.positions)
            if held.conditions and own.frames:
                conditions += held.conditions[branch].pages
        return Place(part, tuple(pages), tuple(conditions)), tuple(positions)

    def _of(self, roster: Roster) -> tuple[tuple[Roster, ...], Part]:
        """What follows from a roster, whatever the numbers of its frames: those of the branches, and the
        shape of a pass over them."""
        found = self._known.get(roster)
        if found is not None:
            return found
        rosters, schedule = branch_rosters(self.branches, roster, self.feeder.plan), self.schedule
        distinct = list(dict.fromkeys(rosters))
        part = Part(
            size=self.request.size,
            once=roster.once,
            # A condition goes by the first cell of those that are fed where its branch feeds no frames.
            sequences=tuple(
                [
                    own.sequence if own.frames else own.sequence._replace(first=roster.sequence.first)
                    for own in distinct
                ]
            ),
            branches=tuple(map(distinct.index, rosters)),
            timesteps=schedule.timesteps,
            table_offsets=schedule.table_offsets,
            coefficient_offsets=schedule.coefficient_offsets,
            conditions=tuple([key.distinct for key in self.condition_keys]),
        )
        if len(self._known) == ROSTERS_KNOWN:
            self._known.clear()
        self._known[roster] = rosters, part
        return rosters, part

    def latents_of(self, branch: Branch, own: Roster, feed: Feed) -> list[torch.Tensor]:
        """Of each cell that a branch feeds, as it sees them. own: its roster, as planned."""
        frames, fed = feed.numbered(own.frames), feed.planned
        latents = [self.latents[frame] for frame in frames]
        for cell in noised_cells(branch, own, fed):
            solver = tracks_of(self.schedule.solver)[own.tracks[cell]]
            signal, sigma = noise_weights(solver, own.levels[cell])
            noise = self.noise.over(frames[cell], self.feeder.ticks_total)
            latents[cell] = signal * latents[cell] + sigma * noise
        return latents

    def settled(self, feed: Feed, latents: torch.Tensor) -> tuple[range, dict[int, torch.Tensor]]:
        """The frames that are due after a pass over `feed`, and new latents of them and of all that it moved;
        latents: [updates * tokens, channels] of these. Changes nothing."""
        due, moved = self.feeder.due(feed), feed.updated
        # Due frames are copied: a row would keep the whole batch alive.
        if moved == tuple(due):
            return due, dict(zip(moved, self._rows(latents.clone()), strict=True))
        new = dict(zip(moved, self._rows(latents), strict=True))
        if due:
            own = torch.cat([new[frame] if frame in new else self.latents[frame] for frame in due])
            new.update(zip(due, self._rows(own), strict=True))
        return due, new

    def _rows(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Those of each frame."""
        return latents.view(-1, self.tokens, latents.shape[1]).unbind(0)

    def move(
        self,
        feed: Feed,
        passes: int,
        due: range,
        latents: dict[int, torch.Tensor],
        history: torch.Tensor | None,
    ) -> None:
        """`passes` have run, the last one over `feed`. due, latents: as `settled` says; history [P, ...]: of
        the frames that it moved."""
        self.pages.turned()
        self.latents.update(latents)
        if history is not None and self.schedule.looks_back:
            own = history[: self.schedule.looks_back].unbind(1)
            self.history.update(zip(feed.updated, own, strict=True))
        for frame in due:
            self.history.pop(frame, None)
        self.feeder.advance(feed, passes)
        if self.next_steering is not None:
            self.steer(self.next_steering)

    def steer(self, new: Steering, *, stored_first: bool = True) -> None:
        """By new conditions from the next pass on. stored_first: from the one after, where finished frames
        wait for their K/V, which are those of the conditions that they were made under."""
        if stored_first and self.feeder.store_first():
            self.next_steering = new
            return
        self.feeder.renew_context()
        self.next_steering, self.branches, self.weights, self._known = None, new.branches, new.weights, {}
        self.conditions, self.condition_keys = new.conditions, new.condition_keys

    def restart(self, plan: Plan, *, from_scratch: bool, given: Sequence[torch.Tensor] = ()) -> None:
        """Go on with another plan, whose given frames are the finished ones and then `given`.

        from_scratch: nothing that is stored can be used; all given frames are stored as of a new video.
        """
        made, latents = plan.prefix - len(given), self.latents
        self.inputs.go_back(made)
        if from_scratch:
            assert self.outbox.kept is not None, "finite streams keep their clean frames"
            latents, given, made = {}, self.outbox.kept[: plan.prefix], 0
        self.history.clear()
        self.inputs.drop_from(made)
        self.pages.drop_from(made)
        self.latents = {f: latent for f, latent in latents.items() if f < made} | dict(enumerate(given, made))
        self.feeder.restart(plan, len(given))
        if self.next_steering is not None:
            self.steer(self.next_steering, stored_first=False)

    def start_extension(self) -> None:
        """The plan is done and an extension waits: its frames continue the finished ones."""
        assert self.then is not None
        new, self.then = self.then, None
        self.restart(new, from_scratch=bool(self.feeder.missing(new)))
