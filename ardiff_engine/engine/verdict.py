# SPDX-License-Identifier: Apache-2.0
"""Whether the numbers that a pass computed are finite, stream by stream, as soon as the host can know."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from itertools import compress

import torch

from ardiff_engine.engine.layout import Work
from ardiff_engine.engine.stream import Stream
from ardiff_engine.errors import ArdiffError, NumericalError, explain
from ardiff_engine.host_copy import HostCopy
from ardiff_engine.ops.cuda_launch import check_device


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One stream of a pass. frames: that the pass moved. tick: passes that the stream had done before it.

    Streams are held weakly: a pass that is on its way keeps nobody alive.
    """

    stream: weakref.ref[Stream]
    frames: tuple[int, ...]
    tick: int


def parts_of(work: Work) -> list[Part]:
    return [Part(weakref.ref(stream), feed.roster.updated, stream.ticks_done) for stream, feed in work]


class Verdict:
    """Of one pass. findings: as in tick_graphs.Computed. passes: done by its parts beyond their `tick`."""

    def __init__(self, parts: list[Part], findings: HostCopy, device: torch.device, passes: int = 0) -> None:
        self._parts = parts
        self._findings = findings
        self._device = device
        self._passes = passes

    @property
    def good(self) -> bool:
        """Waits for the pass."""
        finite, *found = self._findings.wait()
        return bool(finite.all()) and not (found and int(found[0]))

    def fail_struck(self) -> None:
        """Streams with a number that is not finite fail; all of them, if a kernel was given ids that do not
        exist, since nobody knows whose they were. Waits for the pass."""
        finite, *found = self._findings.wait()
        if found and int(found[0]):
            self._fail_all()
        if bool(finite.all()):
            return
        rows = finite.split([len(part.frames) for part in self._parts])
        for part, good in zip(self._parts, rows, strict=True):
            bad = list(compress(part.frames, (~good).tolist()))
            if bad:
                self._fail(part, _not_finite(bad[0], part.tick + self._passes))

    def _fail_all(self) -> None:
        try:
            check_device(self._device)
        except ArdiffError as error:
            for part in self._parts:
                self._fail(part, error)

    @staticmethod
    def _fail(part: Part, error: ArdiffError) -> None:
        stream = part.stream()
        if stream is not None:
            stream.fail(error)


def _not_finite(frame: int, tick: int) -> NumericalError:
    return NumericalError(
        explain(
            f"latents of frame {frame} at tick {tick}",
            got="NaN or infinity",
            expected="finite numbers",
            fix="Check the weights and the condition.",
        )
    )
