# SPDX-License-Identifier: Apache-2.0
"""Published systems: what their plan, memory and positions do, without a network."""

from ardiff_engine.systems.trace import Trace, trace

__all__ = ["Trace", "trace"]
