# SPDX-License-Identifier: Apache-2.0
"""Old frames that become fewer: several of them are told by one (ConvKV of SoulX-LiveAct).

Plain algorithm: K without rotation and V of `taps` frames, laid one after the other, are summed over each
`taps` neighbouring tokens, with weights or as their mean, and make the tokens of one frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import NamedTuple

import torch

from ardiff_engine import ops
from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.around import Around
from ardiff_engine.memory.made import Copy, Held, Made
from ardiff_engine.memory.page_pool import PagePool
from ardiff_engine.memory.per_level import PerLevel
from ardiff_engine.memory.policy import Event, require_size
from ardiff_engine.memory.view import Fed, Run, View, contains, union, within
from ardiff_engine.memory.window import Window
from ardiff_engine.models.spec import ModelSpec, Size
from ardiff_engine.ops.norm_rope import rotate
from ardiff_engine.plan import Frames, Now, Plan
from ardiff_engine.plan.now import frames_of


@dataclass(frozen=True, eq=False)
class Pooling:
    """k_weights, v_weights: float32 [layers, taps, kv_heads, head_dim], or 1 for layers; None: the mean."""

    k_weights: torch.Tensor | None = None
    v_weights: torch.Tensor | None = None

    def __call__(
        self, pool: PagePool, spec: ModelSpec, size: Size | None, sources: list[Held], target: Held
    ) -> None:
        taps, tokens = len(sources), len(target.rows)
        read = torch.cat([own.rows for own in sources])
        ops.pool_pages_(pool.v, read.view(tokens, taps), target.rows, self._of(self.v_weights, taps))
        before = self._angles(spec, size, [own.place for own in sources]).to(read.device)
        after = self._angles(spec, size, [target.place]).to(read.device)
        # K of a layer without its rotation, behind it the sums: rows of one page.
        flat = torch.empty(1, 1, spec.kv_heads, taps * tokens + tokens, spec.head_dim, device=read.device)
        rows = torch.arange(taps * tokens + tokens, device=read.device)
        for number, layer in enumerate(pool.k):
            pages = layer.transpose(1, 2)  # [pages, page_rows, heads, head_dim]
            at, to = (divmod_rows(own, pool.page_rows) for own in (read, target.rows))
            flat[0, 0, :, : len(read)] = turned(pages[at].float(), -before).transpose(0, 1)
            weights = self._of(self.k_weights, taps)
            own_weights = weights if weights is None or len(weights) == 1 else weights[number : number + 1]
            ops.pool_pages_(flat, rows[: len(read)].view(tokens, taps), rows[len(read) :], own_weights)
            pages[to] = turned(flat[0, 0, :, len(read) :].transpose(0, 1), after).to(pages.dtype)

    @staticmethod
    def _of(weights: torch.Tensor | None, taps: int) -> torch.Tensor | None:
        return None if weights is None else weights[:, :taps].contiguous()

    @staticmethod
    def _angles(spec: ModelSpec, size: Size | None, places: list[int]) -> torch.Tensor:
        """float64 [frames * tokens, head_dim / 2]: by how much K of each token is turned."""
        grid = spec.grid(size)
        inside = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij")).flatten(1).T.double()
        of_token = inside @ torch.tensor(spec.grid_angles, dtype=torch.float64)
        of_frame = torch.tensor(places)[:, None] * torch.tensor(spec.frame_angles, dtype=torch.float64)
        return (of_frame[:, None] + of_token).flatten(0, 1)


def divmod_rows(rows: torch.Tensor, page_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Their pages, and which row of it each one is."""
    return rows // page_rows, rows % page_rows


def turned(keys: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """keys float32 [rows, heads, head_dim], each row by its angles [rows, head_dim / 2]."""
    return rotate(keys, angles.cos().float()[:, None], angles.sin().float()[:, None])


MEAN = Pooling()


class Slot(NamedTuple):
    """A place that a block sees: one frame, or several that were merged. frame: the last of them. frames: how
    many. of: the slots that a merged one is made of, each by its frame and whether it was merged itself."""

    frame: int
    frames: int = 1
    of: tuple[tuple[int, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class Merged(Around):
    """memory: the window, with a copy for each level or not: a block sees its sink and its last frames as
    they are. slots: most places between these; where there would be more, `taps` places become one, the
    oldest first. Places are counted from the first one that is seen.

    pooling: weights of the sums. counted: a merged place has the log of the number of its frames as a bias,
    as if each were there.
    begun_with: first frame of a block, and what it sees before itself. The engine fills it in.

    Blocks move one after the other, in videos without given frames.
    """

    memory: Window | PerLevel
    slots: int
    taps: int
    pooling: Pooling = MEAN
    counted: bool = False
    begun_with: tuple[tuple[int, tuple[Slot, ...]], ...] = ()

    def __post_init__(self) -> None:
        window = self._window
        if window.joint or window.stored or window.back:
            raise ConfigError(
                f"memory.Merged({window!r}): use a Window that is not joint, stores as it moves, without back"
            )
        require_size("memory.Merged", "slots", self.slots, 1)
        require_size("memory.Merged", "taps", self.taps, 2)

    @property
    def _window(self) -> Window:
        window = self.memory.memory if isinstance(self.memory, PerLevel) else self.memory
        if not isinstance(window, Window):
            raise ConfigError(f"memory.Merged({self.memory!r}): use a Window, or PerLevel of one")
        return window

    @property
    def chunk(self) -> int:
        return 0

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        self.memory.check(plan, spec)
        if spec.frame_angles is None or spec.grid_angles is None:
            raise ConfigError(
                "memory.Merged with a model whose spec has no frame_angles and grid_angles: keys are merged "
                "without their rotation"
            )
        if plan.prefix:
            raise ConfigError(f"memory.Merged with {plan.prefix} given frames: begin without any")
        if plan.max_live > plan.longest_block:
            raise ConfigError(f"memory.Merged with {plan.rule}: let blocks move one after the other")
        old = self.slots + plan.longest_block
        if -(-old // self.taps) > self.slots:
            raise ConfigError(
                f"memory.Merged with {plan.rule}: {old} places, {self.taps} to one, leave more than "
                f"{self.slots} slots: give more slots or taps"
            )

    def most_frames(self, plan: Plan) -> int:
        window, copies = self._window, plan.num_steps if self.by_level else 1
        seen = window.sink + self.slots + window.size
        # A merged place has a plain copy under the same number, and a block meets what it is merged from.
        return copies * (seen + 2 * self.slots + window.size) + seen

    def view(self, fed: Fed, now: Now) -> View:
        copy, block, held = self.memory.copy(fed), fed.block, self._before(fed.block, now)
        runs = [
            Run(
                own.frame,
                own.frame + 1,
                copy + bool(own.of) * fed.steps,
                place - own.frame,
                log(own.frames) if self.counted else 0.0,
            )
            for place, own in enumerate(held)
        ]
        return (*runs, Run(block.start, block.stop, copy, len(held) - block.start))

    def made(self, fed: Fed, now: Now) -> tuple[Made, ...]:
        copy, steps = self.memory.copy(fed), fed.steps

        def cell(frame: int, merged: bool) -> Copy:
            return frame, copy + merged * steps

        return tuple(
            [
                Made(
                    cell(own.frame, True),
                    tuple([cell(*source) for source in own.of]),
                    place - own.frame,
                    self.pooling,
                )
                for place, own in enumerate(self._before(fed.block, now))
                if own.of
            ]
        )

    def kept(self, oldest: range, now: Now) -> Frames:
        """What the block before `oldest` saw too: it is merged for this one."""
        begun = [own for own in self.begun_with if own[0] <= oldest.start][-2:]
        seen = frames_of(sorted({slot.frame for _, held in begun for slot in held}))
        return union(seen, within(now.started, begun[0][0] if begun else 0, now.newest + 1))

    def stale(self, event: Event, kept: Frames) -> Frames:
        # What was merged cannot be stored again.
        return ()

    def begun(self, block: range, now: Now) -> Merged:
        if dict(self.begun_with).get(block.start) is not None:
            return self
        held: list[Slot] = []
        if self.begun_with:
            start, before = self.begun_with[-1]
            there = (*before, *map(Slot, range(start, block.start)))
            held = [own for own in there if contains(now.started, own.frame)]
        first, recent = self._window.sink, self._window.size - len(block)
        last = max(first, len(held) - recent)
        old, merged = held[first:last], list[Slot]()
        while len(merged) + len(old) > self.slots:
            group, old = old[: self.taps], old[self.taps :]
            of = tuple([(own.frame, bool(own.of)) for own in group])
            merged.append(Slot(group[-1].frame, sum([own.frames for own in group]), of))
        before = (*held[:first], *merged, *old, *held[last:])
        return replace(self, begun_with=(*self.begun_with[-1:], (block.start, before)))

    def _before(self, block: range, now: Now) -> list[Slot]:
        held = dict(self.begun_with).get(block.start, ())
        return [own for own in held if contains(now.started, own.frame)]
