# SPDX-License-Identifier: Apache-2.0
"""ViD-GPT in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.systems.specs import ca2_vdm
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System
from ardiff_engine.systems.vid_gpt import SYSTEM


def from_spec(entry: Entry) -> System:
    made = ca2_vdm.from_spec(entry)
    return replace(made, name=SYSTEM.name, title=SYSTEM.title, repository=SYSTEM.repository)
