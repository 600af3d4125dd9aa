# SPDX-License-Identifier: Apache-2.0
"""Published systems as configuration: a file each. What they do can be traced without a network."""

from ardiff_engine.systems.registry import from_spec, get, names
from ardiff_engine.systems.system import System
from ardiff_engine.systems.trace import Trace, trace

__all__ = ["System", "Trace", "from_spec", "get", "names", "trace"]
