# SPDX-License-Identifier: Apache-2.0
"""Streams, and the engine that runs them in one batch."""

from ardiff_engine.engine.decoding import Picture
from ardiff_engine.engine.engine import PASSES, Engine
from ardiff_engine.engine.memory_plan import MemoryPlan
from ardiff_engine.engine.reader import LatentFrame
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.stream import Stream
from ardiff_engine.engine.stream_edits import ConditionReceipt
from ardiff_engine.observe.stats import EngineStats

__all__ = [
    "PASSES",
    "ConditionReceipt",
    "Engine",
    "EngineStats",
    "LatentFrame",
    "MemoryPlan",
    "Picture",
    "Request",
    "Stream",
]
