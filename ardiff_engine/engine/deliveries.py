# SPDX-License-Identifier: Apache-2.0
"""Clean frames between the pass that finished them and the reader that gets them.

Whether a pass gave finite numbers stands in device memory. On the CPU that is known at once. On a GPU, asking
at once would stop the host until the pass is done, and the GPU would then wait for the next one to be
planned. So there the answer is read one pass later, when it has long arrived: streams go on as if all were
well, frames that became clean wait here for the answer, and a stream that was struck fails before any of
them reaches its reader.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ardiff_engine.engine.outbox import Delivery
from ardiff_engine.engine.stream import Stream
from ardiff_engine.engine.verdict import Verdict


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """What the passes of one step finished. Streams are held weakly: one that nobody holds has no reader."""

    verdicts: list[Verdict]
    deliveries: list[tuple[weakref.ref[Stream], Delivery]]


class Deliveries:
    """delay: steps that may be on their way when the next one has been started; 0 on the CPU, 1 on a GPU."""

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self._steps: deque[_Step] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def check(self, verdicts: list[Verdict]) -> None:
        """Fail struck streams now, where that is known at once: they stay at the tick that struck them."""
        if self.delay == 0:
            for verdict in verdicts:
                verdict.fail_struck()

    def begin(self, verdicts: list[Verdict]) -> None:
        """A step: what `add` is given from now on is known to be good when these are."""
        self._steps.append(_Step(verdicts, []))

    def add(self, stream: Stream, delivery: Delivery) -> None:
        """Before the stream moves on: the delivery is due when it has."""
        self._steps[-1].deliveries.append((weakref.ref(stream), delivery))

    def arrived(self, on_their_way: int) -> Iterator[tuple[Stream, Delivery]]:
        """What all steps but the last `on_their_way` finished; waits for them. Struck streams have failed.

        A step is kept until all of it has been handed over: after an interrupt, what is still due comes.
        """
        while len(self._steps) > on_their_way:
            step = self._steps[0]
            for verdict in step.verdicts if self.delay else ():
                verdict.fail_struck()
            for ref, delivery in step.deliveries:
                stream = ref()
                if delivery.due and stream is not None and not stream.done:
                    yield stream, delivery
            # Nobody else has taken it off meanwhile: one whose frames were handed over may have looked here.
            if self._steps and self._steps[0] is step:
                self._steps.popleft()
