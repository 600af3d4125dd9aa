# SPDX-License-Identifier: Apache-2.0
"""What a memory policy decides: which frames a block sees and where, which stay, and which K/V go stale.

A policy is a small immutable object that answers with views and sets of frames. It owns no page and no
tensor.
"""

from __future__ import annotations

from typing import Literal, Protocol, Self, runtime_checkable

from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory.made import Made
from ardiff_engine.memory.view import Fed, View
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan

Event = Literal["slide", "prompt"]
"""A frame left for good; the condition changed and K/V are to follow it."""


@runtime_checkable
class MemoryPolicy(Protocol):
    @property
    def chunk(self) -> int:
        """Given frames that are stored per pass before the first tick; 0: all of them with that tick."""

    @property
    def by_level(self) -> bool:
        """Whether views, copies and stores differ from level to level of a block."""

    @property
    def by_layer(self) -> bool:
        """Whether layers, or heads of a layer, see differently: then `views` says what."""

    @property
    def back(self) -> int:
        """Finished frames that `Stream.rollback` can forget: what their blocks see is kept so much longer."""

    @property
    def slides_after(self) -> int | None:
        """What it says of frames from this one on moves on with them: all of it follows from how far apart
        they are, and nothing is chosen on the way. Earlier ones stay in views as they are. None: not so."""

    @property
    def proven(self) -> bool:
        """Whether `check` alone is enough. Else each new video is rehearsed: a walk through its plan, before
        anything is taken, finds views of frames that are not there and too small a `most_frames`."""

    def network(self, spec: ModelSpec) -> ModelSpec:
        """The network as this policy uses it: one that could forget may be fed all that it sees."""

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        """Raise PlanError or ConfigError if this policy cannot serve the plan and model exactly."""

    def most_frames(self, plan: Plan) -> int:
        """Most frames of the stream that hold pages at the same time, each copy counted."""

    def view(self, fed: Fed, now: Now) -> View:
        """What a block sees: a run of its own frames included, and only frames that have started."""

    def views(self, fed: Fed, now: Now) -> tuple[View, ...]:
        """What each layer sees of that view, or each kv head of each layer; () where they see alike."""

    def made(self, fed: Fed, now: Now) -> tuple[Made, ...]:
        """What the view of a block shows that no network computes. What it is made of is still kept then."""

    def kept(self, oldest: range, now: Now) -> Frames:
        """The frames that unfinished or later blocks see; oldest: the first of those blocks.

        Besides them, what the views of the blocks that are fed show stays until the next pass.
        """

    def stores(self, fed: Fed) -> bool:
        """Whether a block that has come to this level is fed again for its K/V, with the next tick."""

    def copy(self, fed: Fed) -> int:
        """Which copy of the frames' K/V a pass writes."""

    def stale(self, event: Event, kept: Frames) -> Frames:
        """Finished frames among those kept whose K/V are no longer right, and are computed again."""

    def renewed(self, block: range) -> Frames:
        """Finished frames whose K/V are computed again when this block starts."""

    def begun(self, block: range, now: Now) -> MemoryPolicy:
        """The memory from now on, as this block starts: with what was chosen for it, where it chooses."""

    def prompted(self, frame: int) -> MemoryPolicy | None:
        """The memory from now on; a new prompt holds from `frame`, the first of the next block to start.

        None: it stays the same, and what it calls stale is stored again at once."""


class StoresClean:
    """What most memories do: one copy, stored again once a block is finished and good for ever, and one view
    for all layers. A memory of your own begins here, or at one of the package's, and is rehearsed."""

    __slots__ = ()
    by_level = by_layer = proven = False

    def __init_subclass__(cls) -> None:
        # A subclass answers otherwise than the class that was proven.
        cls.proven = cls.__dict__.get("proven", False)

    @property
    def back(self) -> int:
        return 0

    @property
    def slides_after(self) -> int | None:
        return None

    def network(self, spec: ModelSpec) -> ModelSpec:
        return spec

    def views(self, fed: Fed, now: Now) -> tuple[View, ...]:
        return ()

    def made(self, fed: Fed, now: Now) -> tuple[Made, ...]:
        return ()

    def stores(self, fed: Fed) -> bool:
        return fed.level == fed.steps

    def copy(self, fed: Fed) -> int:
        return 0

    def stale(self, event: Event, kept: Frames) -> Frames:
        return kept if event == "prompt" else ()

    def renewed(self, block: range) -> Frames:
        return ()

    def begun(self, block: range, now: Now) -> Self:
        return self

    def prompted(self, frame: int) -> MemoryPolicy | None:
        return None


def require_rope(policy: str, spec: ModelSpec) -> None:
    if not spec.movable:
        raise ConfigError(
            f"{policy} with a model of absolute positions: only with RoPE do cached keys stay valid while "
            "the video grows; memory.RecomputedWindow computes the window anew when it slides"
        )


def require_cacheable(policy: str, spec: ModelSpec) -> None:
    if not spec.forgets:
        raise ConfigError(
            f"{policy} with a model in which later frames change the K/V of earlier ones (it does not forget "
            "them): memory.RecomputedWindow stays exact"
        )


def require_size(policy: str, name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{policy} {name}={value!r}: give a number of frames, {least} or more")


def require_length(policy: str, plan: Plan, limit: int | None) -> None:
    if limit is not None and (plan.num_frames is None or plan.num_frames > limit):
        length = "an endless video" if plan.num_frames is None else f"{plan.num_frames} frames"
        raise PlanError(
            f"{policy} with {length}: at most {limit} frames. memory.RecomputedWindow and memory.Window take "
            "longer videos"
        )
