# SPDX-License-Identifier: Apache-2.0
"""What may come in between two lines, at will: Ctrl-C, or the collector with the finalizers of garbage."""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any


def interrupt() -> None:
    raise KeyboardInterrupt


class Strike:
    """Calls `act` once, at the n-th place in files of `roots` where CPython would let a signal or the
    collector in: on entry of a function, after a call or an allocation, at the end of a turn of a loop.

    left: places that were still to come; above 0 if there were fewer than n.
    """

    def __init__(self, place: int, roots: tuple[Path, ...]) -> None:
        self.act: Callable[[], object] = interrupt
        self.left = self.place = place
        self._roots = tuple(str(root) for root in roots)
        self._before: dict[FrameType, str] = {}

    def __enter__(self) -> Strike:
        gc.disable()  # the real one would come in as well
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self._before.clear()
        gc.enable()

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(self._roots):
            return None
        if event == "call":
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            self._count()
        elif event == "opcode":
            if self._before.get(frame, "").startswith(("CALL", "BUILD_", "JUMP_BACKWARD")):
                self._count()
            self._before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        elif event == "return":
            self._before.pop(frame, None)
        return self._trace

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            sys.settrace(None)
            self.act()


def strikes(*roots: Path, least: int, every: int = 1, first: int = 1) -> Iterator[Strike]:
    """A strike at every so-manieth place, up to one that finds no such place any more. Fails where there are
    fewer than `least` places: the test would have looked at next to nothing."""
    place = first
    while True:
        strike = Strike(place, roots)
        yield strike
        if strike.left > 0:
            break
        place += every
    assert place > least, f"only {place} places"
