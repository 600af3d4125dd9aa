# SPDX-License-Identifier: Apache-2.0
"""Whether the numbers that a pass computed are finite, stream by stream, as soon as the host can know."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from itertools import compress

from ardiff_engine.engine.batch import Work
from ardiff_engine.engine.host_copy import HostCopy
from ardiff_engine.engine.stream import Stream
from ardiff_engine.errors import NumericalError, explain


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """frames: that the pass moved. tick: passes that the stream had done before this one."""

    stream: weakref.ref[Stream]
    frames: tuple[int, ...]
    tick: int


class Verdict:
    """Of one pass. finite: bool [U], one per frame that it moved, stream by stream, on its way to the host.

    Streams are held weakly: a pass that is on its way keeps nobody alive.
    """

    def __init__(self, work: Work, finite: HostCopy) -> None:
        self._finite = finite
        self._parts = [
            _Part(weakref.ref(stream), feed.roster.updated, stream.ticks_done) for stream, feed in work
        ]

    def fail_struck(self) -> None:
        """Streams with a number that is not finite fail. Waits for the pass."""
        (finite,) = self._finite.wait()
        if bool(finite.all()):
            return
        rows = finite.split([len(part.frames) for part in self._parts])
        for part, good in zip(self._parts, rows, strict=True):
            bad = list(compress(part.frames, (~good).tolist()))
            stream = part.stream()
            if bad and stream is not None:
                stream.fail(
                    NumericalError(
                        explain(
                            f"latents of frame {bad[0]} at tick {part.tick}",
                            got="NaN or infinity",
                            expected="finite numbers",
                            fix="Check the weights and the condition.",
                        )
                    )
                )
