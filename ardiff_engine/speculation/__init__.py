# SPDX-License-Identifier: Apache-2.0
"""Frames that are made on a guess: kept if it was right, else forgotten and made anew."""

from ardiff_engine.speculation.drafted import Drafted, Judge, at_least
from ardiff_engine.speculation.foreseen import Foreseen

__all__ = ["Drafted", "Foreseen", "Judge", "at_least"]
