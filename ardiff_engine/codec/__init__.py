# SPDX-License-Identifier: Apache-2.0
"""Video autoencoders: pixels to latents and back, with the state that a stream of frames needs.

The autoencoders are imported when they are first used: models import `codec.protocol`, they import models.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ardiff_engine.codec.taehv import TAEHV
    from ardiff_engine.codec.wan import WanVAE

_HOME = {"TAEHV": "ardiff_engine.codec.taehv", "WanVAE": "ardiff_engine.codec.wan"}

__all__ = ["TAEHV", "WanVAE"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ardiff_engine.codec' has no attribute {name!r}")
