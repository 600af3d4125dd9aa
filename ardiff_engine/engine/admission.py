# SPDX-License-Identifier: Apache-2.0
"""Whether a video can be served, and with how many pages: known before anything is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ardiff_engine.diffusion.guidance import Branch, weight_table
from ardiff_engine.engine.branch_rosters import check_branches, most_frames
from ardiff_engine.engine.rehearsal import rehearse
from ardiff_engine.engine.request import Request
from ardiff_engine.errors import ConfigError, PlanError, explain
from ardiff_engine.memory import MemoryPolicy, rows_of_pages
from ardiff_engine.models.spec import ModelSpec, Size
from ardiff_engine.plan import Plan, Rule, blocks, verify

LAG = 5
"""Where neither request nor engine names a plan; fewer with fewer steps."""


@dataclass(frozen=True, slots=True)
class PageNeed:
    """Pages of one branch (condition, one frame), and the most that the whole stream can ever hold."""

    condition: int
    frame: int
    most: int


@dataclass(frozen=True, slots=True)
class Admission:
    """plan: branches: of guidance; weights: theirs, float32 [branches, levels of all tracks]."""

    plan: Plan
    branches: tuple[Branch, ...]
    weights: np.ndarray
    need: PageNeed


def admit(
    request: Request,
    spec: ModelSpec,
    memory: MemoryPolicy,
    steps: tuple[int, ...],
    page_rows: int | None = None,
    rule: Rule | None = None,
) -> Admission:
    """Check the request against the model and the memory policy; a typed error if it cannot be served.

    steps: of each track. page_rows, rule: of the engine; None: its defaults.
    """
    check_memory(memory)
    request.check(spec)
    plan = plan_of(request, steps, rule)
    check_served(plan, memory, spec)
    branches, rows = request.guidance, rows_of_pages(spec, page_rows)
    check_branches(branches, memory.network(spec), steps)
    need = page_need(plan, spec, memory, branches, request.size, rows)
    return Admission(plan, branches, weight_table(branches, steps), need)


def check_served(plan: Plan, memory: MemoryPolicy, spec: ModelSpec) -> None:
    """PlanError or ConfigError unless the memory keeps, and can show, what the plan's blocks see."""
    memory.check(plan, spec)
    if not memory.proven:
        rehearse(plan, memory, spec)


def plan_of(request: Request, steps: tuple[int, ...], default: Rule | None) -> Plan:
    """What the rule of the request, or else the default, makes of it; an explicit plan is verified."""
    rule, frames, given = request.plan, request.num_frames, request.prefix_frames
    if rule is None and request.lag is None and default is not None:
        rule = default
    if rule is None:
        lag = min(LAG, *steps) if request.lag is None else request.lag
        return blocks(1, lag=lag).plan(frames, steps, given)
    if not isinstance(rule, Plan):
        return rule.plan(frames, steps, given)
    own = (rule.num_frames, rule.num_steps, rule.prefix)
    if own != (frames, max(steps), given):
        raise PlanError(
            f"Request.plan is of (frames, steps, given frames) {own}, and the request of "
            f"{(frames, max(steps), given)}: make the plan for this very video"
        )
    verify(rule)
    return rule


def page_need(
    plan: Plan,
    spec: ModelSpec,
    memory: MemoryPolicy,
    branches: Sequence[Branch],
    size: Size | None,
    page_rows: int,
) -> PageNeed:
    """size: of the frames, as in Request. page_rows: of the pool."""
    condition, frame = sum(spec.condition.pages(page_rows)), -(-spec.tokens(size) // page_rows)
    frames = sum(most_frames(branch, plan, memory) for branch in branches)
    return PageNeed(condition, frame, len(branches) * condition + frames * frame)


def check_model(model: object) -> None:
    if not isinstance(getattr(model, "spec", None), ModelSpec):
        raise ConfigError(
            f"model must be a network with a ModelSpec, got {type(model).__name__} {model!r:.80}"
        )


def check_rule(rule: object) -> None:
    if rule is not None and not isinstance(rule, Rule):
        raise ConfigError(
            f"plan of an engine: got {rule!r}, expected a rule such as plan.blocks(3), or None."
        )


def check_memory(memory: object) -> None:
    if isinstance(memory, type) or not isinstance(memory, MemoryPolicy):
        raise ConfigError(
            explain(
                "memory",
                got=repr(memory),
                expected="memory.Full(), memory.Window(...) or memory.RecomputedWindow(...)",
                fix="Give the window's size to one of them.",
            )
        )
