# SPDX-License-Identifier: Apache-2.0
"""Odd arguments to the public functions and classes: other types, shapes, dtypes, strides, devices, numbers.

    python -m tools.fuzz.arguments --cases 2000 --seed 1               # a campaign
    python -m tools.fuzz.arguments --seed 1 --case 417                 # one case again, with its traceback
    python -m tools.fuzz.arguments --only ops --cases 500              # recipes whose name starts so

A case is a call that works with one or two of its arguments replaced. It may work, raise an `ArdiffError`, or
raise the TypeError of a call that does not fit the signature. Cases run in this process.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import re
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import torch

from ardiff_engine.errors import ArdiffError
from tools.fuzz.argument_recipes import recipes

SIGNATURE = re.compile(
    r"\(\) (got an unexpected|got multiple values|missing \d+ required|takes \d+ positional)"
)
SECONDS = 10
"""Of processor time: a case that takes longer hangs, and a busy machine is no fault."""
NUMBERS = (
    0,
    1,
    2,
    3,
    -1,
    -(2**31),
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    0.0,
    0.5,
    1.0,
    2.5,
    -1.0,
    1e300,
    1e-300,
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    False,
    Fraction(1, 2),
    1j,
    np.int64(2),
    np.int8(-1),
    np.uint64(2**63),
    np.float32(0.5),
    np.float64("nan"),
    np.bool_(True),
    np.array(2),
)
THINGS = (
    None,
    "",
    "x",
    "layer",
    "3",
    b"x",
    "\0",
    "x" * 5000,
    [],
    [1, 2],
    [[1]],
    (),
    (1,),
    {},
    {"a": 1},
    set(),
    range(3),
    object(),
    int,
    len,
    ...,
    torch.float32,
    torch.device("meta"),
    "cuda:77",
    torch.Generator(),
    np.array([1.0, 2.0]),
    np.array(["a"]),
    np.array([None]),
    np.zeros((0, 3)),
    np.zeros(3, np.complex64),
    memoryview(b"abc"),
)
_KINDS = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
TENSORS: tuple[Callable[[torch.Tensor], object], ...] = (
    *(lambda t, dtype=dtype: t.to(dtype) for dtype in (*_KINDS, torch.complex64)),
    lambda t: t[None],
    lambda t: t[:-1],
    lambda t: t[:0],
    lambda t: t[..., :0],
    lambda t: t.flatten(),
    lambda t: t.mT if t.dim() > 1 else t[::2],
    lambda t: torch.cat([t, t], -1)[..., ::2] if t.dim() else t,
    lambda t: t[:1].expand_as(t) if t.dim() else t,
    lambda t: t.flip(0) if t.dim() else t,
    lambda t: t.to("meta"),
    lambda t: t.to_sparse() if t.dim() else t,
    lambda t: torch._neg_view(t) if t.is_floating_point() else t,
    lambda t: torch.full_like(t, -1),
    lambda t: torch.full_like(t, 2**40 if t.dtype == torch.int64 else 120),
    lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t,
    lambda t: torch.full_like(t, float("inf")) if t.is_floating_point() else t,
    lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
    lambda t: t.numpy(),
    lambda t: t.tolist(),
    lambda t: torch.nested.nested_tensor([t, t]) if t.is_floating_point() else t,
)


def attempt(seed: int, case: int, only: str = "") -> tuple[str, str]:
    """(how the case ended, a description where that must not happen)"""
    rng = random.Random(f"{seed}/{case}")
    torch.manual_seed(case)
    name = rng.choice([name for name in recipes() if name.startswith(only)])
    recipe = recipes()[name]
    given = recipe.arguments()
    for which in rng.sample(list(given), min(len(given), rng.choice((1, 1, 2)))):
        value = given[which]
        how = rng.random()
        if isinstance(value, torch.Tensor) and how < 0.7:
            given[which] = rng.choice(TENSORS)(value)
        else:
            given[which] = rng.choice(NUMBERS if how < 0.9 else THINGS)
    if rng.random() < 0.02:
        given["no_such_argument"] = 1
    what = f"{name}({', '.join(f'{key}={value!r:.60}' for key, value in given.items())})"
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recipe.call(**given)
    except ArdiffError:
        return "typed error", ""
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return "more memory than there is", ""
        return f"WRONG: {name}: {type(error).__name__}", f"{what}\n{traceback.format_exc()}"
    except TypeError as error:
        if SIGNATURE.search(str(error)):
            return "signature", ""
        return f"WRONG: {name}: TypeError", f"{what}\n{traceback.format_exc()}"
    except Exception as error:
        return f"WRONG: {name}: {type(error).__name__}", f"{what}\n{traceback.format_exc()}"
    return "works", ""


def run(cases: int, seed: int, *, only: str = "", show: bool = False) -> Counter[str]:
    """How many cases ended in which way; those with WRONG in their name must not happen."""
    ends: Counter[str] = Counter()
    for case in range(cases):
        end, why = attempt(seed, case, only)
        ends[end] += 1
        if why and show:
            print(f"case {case}: {end}\n{why}", flush=True)
    return ends


@contextmanager
def _limited() -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise TimeoutError(f"took longer than {SECONDS} s of processor time")

    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit code 1 if anything happened that must not."""
    parser = argparse.ArgumentParser(description="Tries odd arguments to public functions and classes.")
    parser.add_argument("--cases", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="recipes whose name starts so")
    parser.add_argument("--case", type=int, help="this case alone, with its traceback")
    options = parser.parse_args(arguments)
    faulthandler.enable()
    if options.case is not None:
        end, why = attempt(options.seed, options.case, options.only)
        print(end, why, sep="\n")
        return 1 if why else 0
    ends = run(options.cases, options.seed, only=options.only, show=True)
    for end, count in sorted(ends.items()):
        print(f"{count:7} {end}")
    return 1 if any("WRONG" in end for end in ends) else 0


if __name__ == "__main__":
    sys.exit(main())
