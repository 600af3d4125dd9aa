# SPDX-License-Identifier: Apache-2.0
"""What the engine knows of one stream. It knows neither the engine nor the user's handle (engine.stream)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from ardiff_engine.diffusion.guidance import Branch, noise_weights
from ardiff_engine.engine.branch_rosters import branch_rosters, noised_cells, noises
from ardiff_engine.engine.decoding import StreamDecoder
from ardiff_engine.engine.feed import Feed, Roster
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.engine.frame_inputs import FrameInputs
from ardiff_engine.engine.reader import Outbox
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.schedules import ScheduleRows, tracks_of
from ardiff_engine.engine.starting_noise import StartingNoise
from ardiff_engine.engine.stream_pages import SavedPages, StreamPages
from ardiff_engine.errors import ArdiffError
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.memory.view import outside
from ardiff_engine.plan import Plan

Status = Literal["waiting", "running", "suspended", "finished", "cancelled", "failed"]


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """branches: of guidance. weights: float32 [branches, levels of all tracks]. conditions: of the branches;
    condition_keys: of cross ones."""

    branches: tuple[Branch, ...]
    weights: np.ndarray
    conditions: torch.Tensor
    condition_keys: tuple[bytes, ...]


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
    condition_keys: tuple[bytes, ...]
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
    _rosters: tuple[Roster, tuple[Roster, ...]] | None = None

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
        roster = feed.roster
        self.inputs.fetch(roster.frames)
        if self.pages.ready_for(feed.first):
            return
        rosters = self.rosters(feed)
        for frame in outside(roster.kept, self.latents):
            del self.latents[frame]
            self.inputs.drop(frame)
            self.history.pop(frame, None)
        for frame in roster.frames:
            if frame not in self.latents:
                self.latents[frame] = self.noise.of(frame)
        self.pages.prepare(feed, rosters, self.condition_keys)

    def rosters(self, feed: Feed) -> tuple[Roster, ...]:
        """What each guidance branch feeds in its part of this pass."""
        roster, found = feed.roster, self._rosters
        if found is None or found[0] is not roster:
            own = branch_rosters(self.branches, roster, self.feeder.plan, self.feeder.tick)
            found = self._rosters = roster, own
        return found[1]

    def latents_of(self, branch: Branch, own: Roster, fed: Roster) -> list[torch.Tensor]:
        """Of each cell that a branch feeds, as it sees them; own: its roster, fed: the stream's."""
        latents = [self.latents[frame] for frame in own.frames]
        for cell in noised_cells(branch, own, fed):
            solver = tracks_of(self.schedule.solver)[own.tracks[cell]]
            signal, sigma = noise_weights(solver, own.levels[cell])
            noise = self.noise.over(own.frames[cell], self.feeder.ticks_total)
            latents[cell] = signal * latents[cell] + sigma * noise
        return latents

    def clean_copies(self, feed: Feed, latents: Sequence[torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
        """The frames that are due after a pass over `feed`; latents: of those it moved. Changes nothing."""
        due = self.feeder.due(feed)
        moved = dict(zip(feed.first.updated, latents, strict=True)) if due else {}
        # Copied: a row would keep the whole batch alive.
        return [(frame, (moved[frame] if frame in moved else self.latents[frame]).clone()) for frame in due]

    def move(
        self,
        feed: Feed,
        passes: int,
        latents: Sequence[torch.Tensor],
        history: torch.Tensor | None,
        clean: list[tuple[int, torch.Tensor]],
    ) -> None:
        """`passes` have run, the last one over `feed`; latents, history [P, ...]: of the frames it moved."""
        self.pages.turned()
        self.latents.update(zip(feed.first.updated, latents, strict=True))
        if history is not None and self.schedule.looks_back:
            own = history[: self.schedule.looks_back].unbind(1)
            self.history.update(zip(feed.first.updated, own, strict=True))
        self.latents.update(clean)
        for frame, _ in clean:
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
        self.next_steering, self.branches, self.weights = None, new.branches, new.weights
        self.conditions, self.condition_keys = new.conditions, new.condition_keys

    def restart(self, plan: Plan, *, from_scratch: bool, given: Sequence[torch.Tensor] = ()) -> None:
        """Go on with another plan, whose given frames are the finished ones and then `given`.

        from_scratch: nothing that is stored can be used; all given frames are stored as of a new video.
        """
        made, latents = plan.prefix - len(given), self.latents
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
