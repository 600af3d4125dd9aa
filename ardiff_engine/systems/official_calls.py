# SPDX-License-Identifier: Apache-2.0
"""How the code of single systems makes calls of the engine's passes, where not by kind, block or pass: calls
that it spends for nobody, and what it feeds otherwise than the engine does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ardiff_engine.memory import Run
from ardiff_engine.memory.positions import place
from ardiff_engine.memory.view import View, view_of
from ardiff_engine.plan import Plan
from ardiff_engine.plan.now import frames_of
from ardiff_engine.systems.calls import Call, CallsOf, by_block, by_kind


def estimates(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """HiAR's ablation: what is stored after a step is the estimate of the clean frame, not the next level."""
    for cells in by_kind(plan, walk):
        if not cells[0].updates:
            cells = [cell._replace(level=plan.num_steps, estimate=True) for cell in cells]
        yield cells


def clean_again(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """HiAR: each stage begins with a pass over the block that runs ahead, although its K/V are stored."""
    clean: Call = []
    for cells in by_kind(plan, walk):
        first = cells[0]
        if first.frame == 0 and not first.updates:
            clean = cells
        if first.frame == plan.block(0).stop and first.updates:
            yield clean
        yield cells


def clean_windows(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """Rolling Forcing: a window stores its oldest block as it is. The clean pass over that block follows also
    while the window fills: it then stores an estimate, which nobody reads."""
    for cells in by_kind(plan, walk):
        first, head = cells[0], plan.block(cells[0].frame)
        yield [cell._replace(written=cell.frame in head) for cell in cells]
        if first.updates and first.level + 1 < plan.num_steps:
            alone = (Run(head.start, head.stop),)
            clean = first._replace(updates=False, level=plan.num_steps, view=alone, estimate=True)
            yield [clean._replace(frame=frame) for frame in head]


def with_the_next(knot: int) -> CallsOf:
    """Knot Forcing: the first `knot` frames after a block are made with it, and once more with their own."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in by_kind(plan, walk):
            last = cells[-1]
            stop = last.frame + 1
            ends = min(stop + knot, plan.num_frames or stop)
            if last.updates and ends > stop:
                view = (*last.view[:-1], last.view[-1]._replace(stop=ends))
                own = [cell._replace(view=view) for cell in cells]
                after = [last._replace(frame=frame, view=view, written=False) for frame in range(stop, ends)]
                cells = own + after
            yield cells

    return calls_of


def recached(prompts: tuple[int, ...], reach: int) -> CallsOf:
    """LongLive: before the cache is computed again its last block is stored, for nobody; and all frames
    within reach are fed for it, also those that it has no room for beside a sink that stays."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        last: Call = []
        for cells in walk:
            stored, *moved = by_kind(plan, [cells])
            start = moved[0][0].frame if moved else 0
            if start in prompts and moved[0][0].level == 0:
                yield [cell._replace(updates=False, level=cell.level + 1) for cell in last]
                unused = range(max(0, start - reach), stored[0].frame)
                stored = [stored[0]._replace(frame=frame, written=False) for frame in unused] + stored
            yield stored
            yield from moved
            last = [cell for cell in cells if cell.updates]

    return calls_of


def recomputed(context: int, keep_first: bool) -> CallsOf:
    """Krea Realtime: before each block a call feeds the last `context` frames, also where nothing has
    changed; keep_first: the first frame and the last ones. Blocks of them see themselves and those before."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in walk:
            moved = [cell for cell in cells if cell.updates]
            own = plan.block(moved[0].frame)
            recent = range(max(0, own.start - context + keep_first), own.start)
            frames = [*range(min(recent.start, keep_first)), *recent]
            if moved[0].level == 0 and frames:
                ends = [min(len(frames), (i // len(own) + 1) * len(own)) for i in range(len(frames))]
                clean = moved[0]._replace(updates=False, level=plan.num_steps)
                seen = [_in_a_row(frames[:end]) for end in ends]
                yield [clean._replace(frame=f, view=view) for f, view in zip(frames, seen, strict=True)]
            view = _in_a_row([*frames, *own])
            yield [cell._replace(view=view) for cell in moved]

    return calls_of


def unwritten(frames: Iterable[int]) -> CallsOf:
    """MMPL: K/V of the last group are computed for its own calls alone: nobody comes after it."""
    gone = frozenset(frames)

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in by_kind(plan, walk):
            yield [cell._replace(written=cell.frame not in gone) for cell in cells]

    return calls_of


def rows(prepared: int) -> CallsOf:
    """StreamDiffusionV2: after the prepared frames a row of the batch for every step, also while the pipeline
    fills. It stops without being drained."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in walk:
            first = cells[0].frame
            if first >= prepared and cells[-1].level > 0:
                return
            yield from by_block(plan, [cells])
            if first >= prepared:
                empty = cells[0]._replace(frame=-1, updates=False, view=cells[0].view[:1])
                yield from [[empty]] * (plan.num_steps - len(cells))

    return calls_of


def _in_a_row(frames: Iterable[int]) -> View:
    return place(view_of(frames_of(frames)), "window")
