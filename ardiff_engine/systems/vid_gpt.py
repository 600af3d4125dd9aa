# SPDX-License-Identifier: Apache-2.0
"""ViD-GPT: blocks after clean frames that serve as a prompt, with K/V that all steps share."""

from dataclasses import replace

from ardiff_engine.systems import ca2_vdm
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry

SYSTEM = replace(
    ca2_vdm.SYSTEM,
    name="vid-gpt",
    title="ViD-GPT",
    paper="",
    repository="Dawn-LX/Causal-VideoGen",
    exact="Nothing: no code is public. Sizes and steps are those of Ca2-VDM, which followed it.",
    left_out="Blocks are causal within in the trace, and see all of themselves when served.",
)


def from_spec(entry: Entry) -> System:
    made = ca2_vdm.from_spec(entry)
    return replace(made, name=SYSTEM.name, title=SYSTEM.title, repository=SYSTEM.repository)
