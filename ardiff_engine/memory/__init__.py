# SPDX-License-Identifier: Apache-2.0
"""Pages, and the policies that say which frames stay, which leave and where they are seen."""

from ardiff_engine.memory.full import Full
from ardiff_engine.memory.mean_keys import MeanKeys
from ardiff_engine.memory.merged import Merged, Pooling
from ardiff_engine.memory.page_manager import Lease, PageManager
from ardiff_engine.memory.page_pool import PagePool, choose_page_rows, rows_of_pages
from ardiff_engine.memory.per_layer import PerLayer
from ardiff_engine.memory.per_level import PerLevel
from ardiff_engine.memory.policy import MemoryPolicy
from ardiff_engine.memory.positions import Ahead, Placed
from ardiff_engine.memory.ranges import Ranges
from ardiff_engine.memory.recached import Recached
from ardiff_engine.memory.recomputed_window import RecomputedWindow
from ardiff_engine.memory.restarted import Restarted
from ardiff_engine.memory.routed import Routed, Router, highest, latest
from ardiff_engine.memory.segments import Segments
from ardiff_engine.memory.shots import Shots
from ardiff_engine.memory.view import Fed, Run, View
from ardiff_engine.memory.window import Window
from ardiff_engine.memory.windows import Windows

__all__ = [
    "Ahead",
    "Fed",
    "Full",
    "Lease",
    "MeanKeys",
    "MemoryPolicy",
    "Merged",
    "PageManager",
    "PagePool",
    "PerLayer",
    "PerLevel",
    "Placed",
    "Pooling",
    "Ranges",
    "Recached",
    "RecomputedWindow",
    "Restarted",
    "Routed",
    "Router",
    "Run",
    "Segments",
    "Shots",
    "View",
    "Window",
    "Windows",
    "choose_page_rows",
    "highest",
    "latest",
    "rows_of_pages",
]
