# SPDX-License-Identifier: Apache-2.0
"""The pages of one stream: of its conditions and frames, for each guidance branch.

Frames that a pass sees elsewhere than where their K/V were written have second pages for that. They follow
from the first ones: forks, suspension and edits know nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ardiff_engine.engine.condition_store import ConditionKey, ConditionStore, StoredCondition
from ardiff_engine.engine.feed import Feed, Roster
from ardiff_engine.errors import ConfigError, PageTableError, PlanError, explain
from ardiff_engine.memory.made import Made, Making
from ardiff_engine.memory.page_manager import Lease
from ardiff_engine.memory.page_pool import PagePool
from ardiff_engine.memory.view import View, contains


@dataclass(frozen=True, slots=True, eq=False)
class SavedPages:
    """K/V on the host, in the order of `ids`: k, v [layers, pages, heads, page_rows, head_dim]."""

    k: torch.Tensor
    v: torch.Tensor


class StreamPages:
    """Which pages hold what. A stream that waits or is suspended has no lease.

    most: pages that the stream can ever hold. context: page ids per branch, of joint conditions; conditions:
        cross ones, of each branch; frames: page ids per branch and (frame, copy), as written; placed: those
        seen elsewhere. makings, then turns (page, page for its rotation, places), are what the next pass
        begins with.
    """

    __slots__ = (
        "_per_context",
        "_per_frame",
        "_places",
        "_prepared",
        "_shifts",
        "_store",
        "conditions",
        "context",
        "frames",
        "lease",
        "makings",
        "most",
        "placed",
        "turns",
    )

    def __init__(
        self, branches: int, per_context: int, per_frame: int, most: int, store: ConditionStore
    ) -> None:
        self._per_context = per_context
        self._per_frame = per_frame
        self._store = store
        self.most = most
        self.lease: Lease | None = None
        self.context: list[list[int]] = [[] for _ in range(branches)]
        self.conditions: list[StoredCondition] = []
        self.frames: list[dict[tuple[int, int], list[int]]] = [{} for _ in range(branches)]
        self.placed: list[dict[tuple[int, int], list[int]]] = [{} for _ in range(branches)]
        self.makings: list[Making] = []
        self.turns: list[tuple[int, int, int]] = []
        # The shift of each (frame, copy) as it was written, 0 where it is not named, and as it is placed.
        self._shifts: dict[tuple[int, int], int] = {}
        self._places: dict[tuple[int, int], int] = {}
        self._prepared: Feed | None = None

    @property
    def held(self) -> int:
        return 0 if self.lease is None else self.lease.held

    @property
    def ids(self) -> list[int]:
        """All pages that hold what was written, but for cross conditions, in a fixed order."""
        contexts = [page for pages in self.context for page in pages]
        return contexts + [page for frames in self.frames for pages in frames.values() for page in pages]

    def ready_for(self, feed: Feed) -> bool:
        """Whether `prepare` has nothing to do: it was done with this roster, and no page was shared since."""
        return feed.is_of(self._prepared) and self.lease is not None

    def prepare(self, feed: Feed, rosters: Sequence[Roster], keys: Sequence[ConditionKey]) -> None:
        """Give back pages that nobody sees any more; make sure that what is fed has pages of its own, in this
        pass and those that follow with its roster.

        rosters: what each branch feeds, as planned. keys: of the branches' cross conditions.
        """
        roster = feed.planned
        self._unprepare()
        lease = self._open()
        if keys:
            self.conditions = self._store.exchanged(self.conditions, keys, lease)
        cells = [list(zip(feed.numbered(b.frames), b.copies, strict=True)) for b in rosters]
        unseen = self._let_go(feed, rosters)
        new = sum([len(set(fed) - held.keys()) for held, fed in zip(self.frames, cells, strict=True)])
        for pages in unseen[new:]:
            lease.give_back(pages)
        self._make(roster.made)
        places = self._seen_elsewhere(feed)
        if self._places:
            # Those that no pass has begun with are not there.
            self._drop_placed(
                [c for c, place in self._places.items() if self.turns or places.get(c) != place]
            )
        if roster.feeds_context:
            for number, pages in enumerate(self.context):
                self.context[number] = pages or lease.take(self._per_context)
                lease.make_writable(self.context[number])
        # What starts lies where that lay which nobody sees any more: a window that slides stays where it is.
        spare = iter(unseen[:new])
        for held, fed in zip(self.frames, cells, strict=True):
            for cell in fed:
                if cell not in held:
                    held[cell] = next(spare, []) or lease.take(self._per_frame)
                lease.make_writable(held[cell])
        self._place(places)
        self._prepared = feed

    def shown(self, branch: int, source: int, seen: View) -> list[list[int]]:
        """The pages of each frame that is seen, those of `source` where the branch has none of its own."""
        cells = [(frame, run.copy) for run in seen for frame in range(run.first, run.stop)]
        own, others = self.frames[branch], self.frames[source]
        if not self._places:
            held = own if branch == source else others | own
            return [held[cell] for cell in cells]
        holders = [branch if cell in own else source for cell in cells]
        places = zip(cells, holders, strict=True)
        return [self.placed[holder].get(cell) or self.frames[holder][cell] for cell, holder in places]

    def written(self, frame: int) -> tuple[list[int], int]:
        """The pages of a frame of the first branch, and the place where it was written."""
        cell = frame, 0
        if cell not in self.frames[0]:
            raise ConfigError(
                f"frame {frame} has no K/V of copy 0: look while the stream works on it or sees it"
            )
        return self.frames[0][cell], frame + self._shifts.get(cell, 0)

    def turned(self) -> None:
        """A pass has begun with `makings` and `turns`."""
        self.turns, self.makings = [], []

    def drop_from(self, frame: int) -> None:
        """Give back the pages of `frame` and of all later ones."""
        self._unprepare()
        lease = self._open()
        for frames in self.frames:
            for later in [cell for cell in frames if cell[0] >= frame]:
                lease.give_back(frames.pop(later))

    def fork(self, lease: Lease) -> StreamPages:
        """The same pages under another lease. Whoever feeds a shared page next takes a fresh one for it."""
        self._unprepare()
        other = StreamPages(len(self.context), self._per_context, self._per_frame, self.most, self._store)
        lease.share(self._open(), self.ids)
        other.conditions = self._store.exchanged([], [stored.key for stored in self.conditions], lease)
        other.lease = lease
        other.context = [list(pages) for pages in self.context]
        other.frames = [{cell: list(pages) for cell, pages in frames.items()} for frames in self.frames]
        other._shifts = dict(self._shifts)
        return other

    def save(self, pool: PagePool) -> SavedPages:
        """Copy all pages to the host and give them back, the promise included. Cross conditions are written
        again."""
        self._unprepare()
        ids = torch.tensor(self.ids, dtype=torch.int64, device=pool.k.device)
        saved = SavedPages(pool.k.index_select(1, ids).cpu(), pool.v.index_select(1, ids).cpu())
        self.close()
        return saved

    def restore(self, pool: PagePool, saved: SavedPages, lease: Lease) -> None:
        """Pages again, under a new lease; the ids may be others, the contents are the same."""
        fresh = lease.take(len(self.ids))
        into = torch.tensor(fresh, dtype=torch.int64, device=pool.k.device)
        pool.k.index_copy_(1, into, saved.k.to(pool.k.device))
        pool.v.index_copy_(1, into, saved.v.to(pool.v.device))
        rest = iter(fresh)
        self.context = [[next(rest) for _ in pages] for pages in self.context]
        self.frames = [
            {cell: [next(rest) for _ in pages] for cell, pages in frames.items()} for frames in self.frames
        ]
        self.lease = lease

    def close(self) -> None:
        """Return everything. The maps of what was written stay, for `restore`."""
        self._unprepare()
        self.conditions = []
        if self.lease is not None:
            self.lease.close()
            self.lease = None
            self.placed, self._places, self.turns = [{} for _ in self.frames], {}, []

    def _unprepare(self) -> None:
        """What no pass has begun with is not there."""
        self._prepared = None
        for making in self.makings:
            self._open().give_back(making.pages)
            for frames in self.frames:
                frames.pop(making.made.cell, None)
        self.makings = []

    def _let_go(self, feed: Feed, rosters: Sequence[Roster]) -> list[list[int]]:
        """The pages of what nobody sees any more, of each branch."""
        unseen = []
        for frames, branch in zip(self.frames, rosters, strict=True):
            seen = set().union(*feed.runs(branch.kept))
            unseen += [frames.pop(gone) for gone in [cell for cell in frames if cell[0] not in seen]]
        if self._shifts:
            kept = feed.kept
            self._shifts = {cell: shift for cell, shift in self._shifts.items() if contains(kept, cell[0])}
        return unseen

    def _make(self, made: Sequence[Made]) -> None:
        """Pages for what is made of others, in every branch that holds all of them."""
        for own in made:
            for frames in self.frames:
                if own.cell in frames or not all([source in frames for source in own.sources]):
                    continue
                pages = frames[own.cell] = self._open().take(self._per_frame)
                self._shifts[own.cell] = own.shift
                sources = [
                    (frames[source], source[0] + self._shifts.get(source, 0)) for source in own.sources
                ]
                self.makings.append(Making(own, pages, sources))

    def _seen_elsewhere(self, feed: Feed) -> dict[tuple[int, int], int]:
        """The shifts of what the roster sees elsewhere than where it was written. Notes those of what it
        feeds."""
        shifts, roster = self._shifts, feed.planned
        if not shifts and not roster.shifted:
            return {}
        roster = feed.roster
        runs = {run for view in dict.fromkeys(roster.views) for run in view}
        for frame, copy, position in zip(roster.frames, roster.copies, roster.positions, strict=True):
            shifts[frame, copy] = position - frame
        seen: dict[tuple[int, int], int] = {}
        for run in runs:
            for frame in range(run.first, run.stop):
                if seen.setdefault((frame, run.copy), run.shift) != run.shift:
                    raise PlanError(f"frame {frame} is seen at two places in one pass")
        return {cell: shift for cell, shift in seen.items() if shift != shifts.get(cell, 0)}

    def _place(self, places: dict[tuple[int, int], int]) -> None:
        """Pages for what is seen elsewhere, and what turns their K."""
        lease = self._open()
        for cell, place in places.items():
            if cell in self._places:
                continue
            self._places[cell], turn = place, place - self._shifts.get(cell, 0)
            for frames, placed in zip(self.frames, self.placed, strict=True):
                if cell in frames:
                    pages = placed[cell] = lease.take(self._per_frame)
                    self.turns += [(page, to, turn) for page, to in zip(frames[cell], pages, strict=True)]

    def _drop_placed(self, cells: list[tuple[int, int]]) -> None:
        lease = self._open()
        for cell in cells:
            del self._places[cell]
            for placed in self.placed:
                lease.give_back(placed.pop(cell, []))
        self.turns = []

    def _open(self) -> Lease:
        if self.lease is None:
            raise PageTableError(
                explain(
                    "pages of a stream that waits, is suspended or has ended",
                    got="a call",
                    expected="none",
                    fix="Resume the stream first.",
                )
            )
        return self.lease
