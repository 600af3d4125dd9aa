# SPDX-License-Identifier: Apache-2.0
"""To wait for a state of another thread or process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE = 300.0
"""Seconds after which something is taken not to happen, also on a machine with much else to do. A test that
passes never waits that long."""


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ardiff-decode"]


def eventually(true: Callable[[], object]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
