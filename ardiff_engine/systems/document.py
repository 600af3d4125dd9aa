# SPDX-License-Identifier: Apache-2.0
"""The page of all systems: what each chooses, what was compared with its own code, what is left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from ardiff_engine.systems.system import System

FRAMES = 24
"""Of the picture of an endless system."""

LONGEST = 240
"""Characters of a field of a memory."""

HEAD = """# Systems

<!-- Written by `python -m ardiff_engine.systems --docs docs`; a test compares. -->

Published systems as configuration of this engine, each a file in `ardiff_engine/systems`.
`ade.systems.get(name)` is one of them; [add a system](add_a_system.md) says what it is made of. What they do
is compared with numbers that their own code made, call by call and exactly: who is fed at which timestep, who
moves, whose K/V are written, who sees whom, where, as computed by which call. Where a row says "latents", so
are those of a toy network, to 1e-6; what is compared less closely is named in `python_tests/test_systems.py`.

| name | who | plan | steps | memory | compared | left out |
|---|---|---|---|---|---|---|
"""

PICTURES = """
## Pictures

Frames across, calls down. The colour of a frame that moves is its timestep, dark for noise; orange ones are
fed and stay as they are, for their K/V or in sight of others; blue ones are seen and not fed. A number says
where a frame is seen, if not at its own.
"""


def page(systems: Iterable[System]) -> str:
    """Markdown."""
    systems = list(systems)
    rows = [_row(system) for system in systems]
    pictures = [f"\n### {own.title}\n\n![{own.name}](images/systems/{own.name}.png)\n" for own in systems]
    return HEAD + "".join(rows) + PICTURES + "".join(pictures)


def _shown(policy: Any) -> str:
    """A memory policy with the fields that are not as usual."""
    given = []
    for own in fields(policy):
        value = getattr(policy, own.name)
        if value != own.default:
            said = repr(value) if len(repr(value)) <= LONGEST else repr(value)[:LONGEST] + "…"
            given.append(_shown(value) if is_dataclass(value) else f"{own.name}={said}")
    return f"{type(policy).__name__}({', '.join(given)})"


def _row(system: System) -> str:
    paper = f", [arXiv {system.paper}](https://arxiv.org/abs/{system.paper})" if system.paper else ""
    who = f"{system.title} (`{system.repository}`{paper})"
    plan = system.plan_of(system.num_frames or FRAMES)
    steps = "/".join(str(own.num_steps) for own in system.tracks)
    noise = "" if system.noise is None else f", noise `{type(system.noise).__name__}`"
    choices = (plan.rule, steps, f"`{_shown(system.memory)}`{noise}")
    served = f"**Traced, not served:** {system.not_served}. " if system.not_served else ""
    cells = [f"`{system.name}`", who, *choices, system.exact, served + system.left_out]
    return "| " + " | ".join(cells) + " |\n"
