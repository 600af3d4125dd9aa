# SPDX-License-Identifier: Apache-2.0
"""What a memory policy decides: which frames a frame sees, at which position, and which K/V go stale.

A policy is a small immutable object that answers with integers. It owns no page and no tensor. All questions
are asked for a tick whose youngest started frame is `newest`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ardiff_engine.errors import ConfigError, PlanError, explain
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan


@runtime_checkable
class MemoryPolicy(Protocol):
    def check(self, plan: Plan, spec: ModelSpec) -> None:
        """Raise PlanError or ConfigError if this policy cannot serve the plan and model exactly."""

    def max_frames(self, plan: Plan) -> int:
        """Most frames of the stream that hold pages at the same time."""

    def sinks(self) -> int:
        """Leading frames that every later frame sees."""

    def first_seen(self, frame: int, newest: int) -> int:
        """First frame after the sinks that `frame` sees; it sees all from there up to itself."""

    def first_held(self, oldest: int, newest: int) -> int:
        """First frame after the sinks whose pages a tick needs that feeds frames `oldest`..`newest`."""

    def origin(self, newest: int) -> int:
        """The frame that stands at position 0. When it moves, all stored K/V are stale."""

    def prefill(self, prefix: int) -> list[range]:
        """Chunks of given frames to commit before the first tick, in order; none if that tick does it."""


def require_rope(policy: str, spec: ModelSpec) -> None:
    if not spec.movable:
        raise ConfigError(
            explain(
                policy,
                got="a model with absolute positions",
                expected="a model with RoPE, whose cached keys stay valid while the video grows",
                fix="Use memory.RecomputedWindow, which computes the window anew when it slides.",
            )
        )


def require_cacheable(policy: str, spec: ModelSpec) -> None:
    if not spec.forgets:
        raise ConfigError(
            explain(
                policy,
                got="a model in which later frames change the K/V of earlier ones",
                expected="one that forgets (AR-Diffusion: a causal context, each frame its own timestep)",
                fix="Use memory.RecomputedWindow, which stays exact.",
            )
        )


def require_size(policy: str, name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(
            explain(f"{policy} {name}", got=value, expected=f"an integer >= {least}", fix="Give frames.")
        )


def require_length(policy: str, plan: Plan, limit: int | None) -> None:
    if limit is not None and (plan.num_frames is None or plan.num_frames > limit):
        raise PlanError(
            explain(
                policy,
                got=f"{'endless' if plan.num_frames is None else plan.num_frames} frames",
                expected=f"at most {limit} frames",
                fix="Use memory.RecomputedWindow or memory.Window for longer videos.",
            )
        )
