# SPDX-License-Identifier: Apache-2.0
"""One op on one shape on a GPU: first whether it is right there, then how fast, beside named opponents.

A benchmark lists its cases; `main` runs them and appends one line of JSON for each to a file as soon as it is
known, so that whatever comes later takes nothing away.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from lines import options_of, put
from timing import copy_rate, microseconds

from ardiff_engine import ops
from ardiff_engine.errors import ArdiffError
from ardiff_engine.ops.backend import choose

Result = torch.Tensor | tuple[torch.Tensor, ...]
BFLOAT16_LIMIT, FLOAT_LIMIT = 2e-2, 1e-5


@dataclass(frozen=True, slots=True)
class Case:
    """op, shape: for people; variant: what else tells it apart. call: what is timed.

    written: tensors that `call` changes. expected: the right result; None: what the reference gives for the
    same call. opponents: the same work by others, by name; bars: how many times as fast as each we are to be.
    moved: bytes that must be read and written at least, and the share of the copy rate asked for; flops.
    limit: the most that the result may differ, relative, in the 2-norm.
    """

    op: str
    shape: str
    call: Callable[[], Result]
    variant: str = ""
    written: tuple[torch.Tensor, ...] = ()
    expected: Callable[[], Result] | None = None
    opponents: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    bars: Mapping[str, float] = field(default_factory=dict)
    moved: int = 0
    share_bar: float | None = None
    flops: int = 0
    limit: float = BFLOAT16_LIMIT


def relative_error(case: Case) -> float:
    """Of everything that one call returns and writes."""
    got = _effects(case, case.call)
    if case.expected is None:
        with mock.patch.dict(os.environ, {"ARDIFF_BACKEND": "reference"}):
            want = _effects(case, case.call)
    else:
        want = _effects(case, case.expected)
    return worst(got, want)


def measured(case: Case, copy: float) -> dict[str, Any]:
    """The line of the record. Wrong results are not timed. copy: the copy rate of this GPU, GB/s."""
    row: dict[str, Any] = {"op": case.op, "shape": case.shape, "variant": case.variant}
    row["relative_error"] = error = relative_error(case)
    if error > case.limit:
        row["relative_error"] = str(error)  # JSON has no infinity
        return {**row, "wrong": f"a relative error of {error:.3g}, at most {case.limit} is allowed"}
    with _kept(case.written):
        row["microseconds"] = ours = microseconds(case.call)
    if case.moved:
        row["share_of_copy"], row["share_bar"] = case.moved / ours / 1e3 / copy, case.share_bar
    if case.flops:
        row["teraflops"] = case.flops / ours / 1e6
    for name, opponent in case.opponents.items():
        try:
            with _kept(case.written):
                theirs = microseconds(opponent)
        except RuntimeError as refused:  # SDPA's kernels do not take every shape
            torch.cuda.synchronize()  # what broke the GPU is no refusal
            row[name] = {"refused": str(refused).splitlines()[0]}
            continue
        row[name] = {"microseconds": theirs, "ratio": theirs / ours, "bar": case.bars.get(name)}
    return row


def main(what: str, cases: Callable[[str], Iterable[Case]], variants: tuple[str, ...] = ("",)) -> int:
    """The command line of a benchmark. 1 where a result is wrong."""
    options = options_of(what, variants)
    copy, wrong = copy_rate(), 0
    for case in cases(options.variant):
        try:
            row = measured(case, copy)
            ops.check_device("cuda")
        except (ArdiffError, RuntimeError) as error:
            row = {"op": case.op, "shape": case.shape, "variant": case.variant, "wrong": str(error)}
        wrong += "wrong" in row
        put(row, options.json)
    return 1 if wrong else 0


def backend_of(op: str, like: torch.Tensor) -> str:
    """What a call of the op with such tensors runs on: fallbacks are part of the record."""
    return choose(op, like.detach()).name


def worst(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """The largest relative difference; infinity where values are not finite in one of the two alone."""
    return max(_difference(a, b) for a, b in zip(got, want, strict=True))


def _effects(case: Case, call: Callable[[], Result]) -> list[torch.Tensor]:
    with _kept(case.written):
        result = call()
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        return [tensor.detach().clone() for tensor in (*results, *case.written)]


@contextmanager
def _kept(written: tuple[torch.Tensor, ...]) -> Iterator[None]:
    """Whatever happens, they hold the same values afterwards."""
    before = [tensor.clone() for tensor in written]
    try:
        yield
    finally:
        for tensor, values in zip(written, before, strict=True):
            tensor.copy_(values)


def _difference(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.double(), want.double()
    scale = float(want.norm())
    difference = float((got - want).norm()) / (scale or 1.0)
    return difference if math.isfinite(difference) else math.inf
