# SPDX-License-Identifier: Apache-2.0
"""Names for stretches of work, as profilers show them: `with annotate("ardiff.pack"): ...`.

A range goes to torch.profiler while one records this thread, and to NVTX (Nsight Systems) if the environment
variable ARDIFF_NVTX is 1. With neither, it costs one call that asks and one block that does nothing.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

import torch

from ardiff_engine.errors import ConfigError, explain


def annotate(name: str) -> contextlib.AbstractContextManager[object]:
    """A block that profilers show under `name`. Blocks nest; an exception ends them like anything else.

    torch.profiler records the thread that started it: ranges of other threads are seen by NVTX only.
    ConfigError: ARDIFF_NVTX is neither 0 nor 1. It is read once, by the first range of the process.
    """
    marks = _nvtx_marks()
    # Without a profiler record_function would still cost a dispatched op at either end.
    profiled = torch.autograd._profiler_enabled()
    if marks is None and not profiled:
        return _NOTHING
    return _Range(marks, torch.autograd.profiler.record_function(name) if profiled else None, name)


@dataclass(frozen=True, slots=True)
class _Marks:
    """NVTX's stack of ranges of the calling thread."""

    push: Callable[[str], Any]
    pop: Callable[[], Any]


class _Nothing:
    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


_NOTHING = _Nothing()


class _Range:
    __slots__ = ("_marks", "_name", "_record")

    def __init__(
        self, marks: _Marks | None, record: torch.autograd.profiler.record_function | None, name: str
    ) -> None:
        self._marks, self._record, self._name = marks, record, name

    def __enter__(self) -> None:
        if self._record is not None:
            self._record.__enter__()
        if self._marks is not None:
            self._marks.push(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._marks is not None:
            self._marks.pop()
        if self._record is not None:
            self._record.__exit__(kind, error, traceback)


@cache
def _nvtx_marks() -> _Marks | None:
    asked = os.environ.get("ARDIFF_NVTX", "0")
    if asked not in ("0", "1", ""):
        raise ConfigError(
            explain("ARDIFF_NVTX", got=repr(asked), expected="0 or 1", fix="Change or unset it.")
        )
    if asked != "1":
        return None
    try:
        import nvtx

        return _Marks(nvtx.push_range, nvtx.pop_range)
    except ImportError:
        pass
    if torch.cuda.is_available():
        return _Marks(torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop)
    warnings.warn(
        "ARDIFF_NVTX=1 has no effect: the package nvtx is not installed and torch sees no CUDA device. "
        "pip install nvtx.",
        RuntimeWarning,
        stacklevel=3,
    )
    return None
