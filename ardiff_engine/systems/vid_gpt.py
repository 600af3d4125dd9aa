# SPDX-License-Identifier: Apache-2.0
"""ViD-GPT: blocks after clean frames that serve as a prompt, with K/V that all steps share."""

from dataclasses import replace

from ardiff_engine.systems import ca2_vdm

SYSTEM = replace(
    ca2_vdm.SYSTEM,
    name="vid-gpt",
    title="ViD-GPT",
    paper="",
    repository="Dawn-LX/Causal-VideoGen",
    exact="Nothing: no code is public. Sizes and steps are those of Ca2-VDM, which followed it.",
    left_out="Blocks are causal within in the trace, and see all of themselves when served.",
)
