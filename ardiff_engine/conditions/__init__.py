# SPDX-License-Identifier: Apache-2.0
"""What steers a stream, made from what people give: prompts and pictures."""

from ardiff_engine.conditions.clip import CLIPVision
from ardiff_engine.conditions.clip_tower import CLIPTower
from ardiff_engine.conditions.prompt import cleaned
from ardiff_engine.conditions.umt5 import UMT5

__all__ = ["UMT5", "CLIPTower", "CLIPVision", "cleaned"]
