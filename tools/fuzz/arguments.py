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
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import torch

import ardiff_engine as ade
from ardiff_engine import ops
from ardiff_engine.errors import ArdiffError

SIGNATURE = re.compile(
    r"\(\) (got an unexpected|got multiple values|missing \d+ required|takes \d+ positional)"
)
SECONDS = 10
"""A case that takes longer hangs."""
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


@dataclass(frozen=True)
class Recipe:
    """A public callable, and fresh arguments with which it works."""

    call: Callable[..., object]
    arguments: Callable[[], dict[str, Any]]


def _ops() -> Iterator[tuple[str, Recipe]]:
    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape)

    def longs(*values: int) -> torch.Tensor:
        return torch.tensor(values)

    keys = torch.arange(15).reshape(3, 5)
    frequencies = torch.rand(4, dtype=torch.float64)
    rows = {"frame_ids": longs(0, 1, 1, 0)}
    norm = {"heads": 2, "kv_heads": 1, "norm": "layer", "eps": 1e-5, "q_weight": torch.rand(8)}
    norm |= {"q_bias": None, "k_weight": torch.rand(8), "k_bias": None, "frequencies": frequencies}
    at = {"positions": longs(3, 4, 5)}
    yield (
        "modulate",
        Recipe(
            ops.modulate,
            lambda: {
                "x": rand(4, 6),
                "shift": rand(2, 6),
                "scale": rand(2, 6),
                **rows,
                "norm": "rms",
                "eps": 1e-6,
                "return_normed": True,
            },
        ),
    )
    for name in ("gate_residual", "gate_residual_"):
        yield (
            name,
            Recipe(
                getattr(ops, name),
                lambda: {
                    "residual": rand(4, 6),
                    "branch": rand(4, 6),
                    "gate": rand(2, 6),
                    **rows,
                    "bias": rand(6),
                },
            ),
        )
    yield "bias_gelu", Recipe(ops.bias_gelu, lambda: {"x": rand(4, 6), "bias": rand(6)})
    yield "pack_linear", Recipe(ops.pack_linear, lambda: {"weight": rand(5, 6)})
    packed = ops.pack_linear(torch.rand(5, 6))
    yield (
        "linear",
        Recipe(ops.linear, lambda: {"x": rand(4, 6), "weight": packed, "bias": rand(5), "gelu": True}),
    )
    yield "norm_rope", Recipe(ops.norm_rope, lambda: {"qkv": rand(3, 32), **at, **norm, "qkv_bias": rand(32)})
    yield (
        "norm_rope_pages",
        Recipe(
            ops.norm_rope_pages,
            lambda: {
                "qkv": rand(3, 32),
                "slots": longs(5, -1, 2),
                **at,
                "num_pages": 2,
                "page_rows": 4,
                **norm,
            },
        ),
    )
    yield (
        "norm_rope_write_",
        Recipe(
            ops.norm_rope_write_,
            lambda: {
                "qkv": rand(3, 32),
                "k_pages": rand(2, 1, 4, 8),
                "v_pages": rand(2, 1, 4, 8),
                "slots": longs(5, -1, 2),
                **at,
                **norm,
                "qkv_bias": rand(32),
            },
        ),
    )
    yield (
        "copy_pages_",
        Recipe(
            ops.copy_pages_,
            lambda: {
                "k_pages": rand(2, 3, 1, 4, 8),
                "v_pages": rand(2, 3, 1, 4, 8),
                "src": longs(0),
                "dst": longs(2),
            },
        ),
    )
    yield (
        "pool_pages_",
        Recipe(
            ops.pool_pages_,
            lambda: {
                "pages": rand(2, 3, 1, 4, 8),
                "sources": longs(0, 5, 2, -1).reshape(2, 2),
                "targets": longs(9, 7),
                "weights": rand(2, 2, 1, 8),
            },
        ),
    )
    yield (
        "rotate_pages_",
        Recipe(
            ops.rotate_pages_,
            lambda: {
                "k_pages": rand(2, 3, 1, 4, 8),
                "pages": longs(0, 2),
                "deltas": longs(-3, 9),
                "frequencies": frequencies,
                "source": rand(2, 2, 1, 4, 8),
            },
        ),
    )
    table = ops.FrameTable.build([2, 1], [[0, 1], [1]], [[4, 3], [2]])
    yield (
        "frame_attention",
        Recipe(
            ops.frame_attention,
            lambda: {
                "q": rand(3, 2, 8),
                "k_pages": rand(2, 1, 4, 8),
                "v_pages": rand(2, 1, 4, 8),
                "table": table,
                "scale": 0.3,
                "return_lse": True,
            },
        ),
    )
    yield (
        "FrameTable.build",
        Recipe(
            ops.FrameTable.build,
            lambda: {
                "query_tokens": [2, 1],
                "pages": [[0, 1], [1]],
                "valid": [[4, 3], [2]],
                "seen": [[1], [1]],
                "bias": [[0.5, 1.0], [0.0]],
                "device": "cpu",
            },
        ),
    )
    yield "FrameTable.with_pages", Recipe(table.with_pages, lambda: {"pages": table.pages})
    yield "FrameTable.to", Recipe(table.to, lambda: {"device": "cpu"})
    for given in ({"noise": torch.rand(3, 4)}, {"keys": keys}):
        yield (
            f"add_noise {next(iter(given))}",
            Recipe(
                ops.add_noise,
                lambda given=given: {
                    "x0": rand(3, 4),
                    "signal": rand(3),
                    "sigma": rand(3),
                    **given,
                    "target": "v",
                },
            ),
        )
    yield (
        "solver_step",
        Recipe(
            ops.solver_step,
            lambda: {
                "x": rand(3, 4),
                "outs": rand(2, 3, 4),
                "weights": rand(2, 3),
                "coefficients": rand(3, 9),
                "history1": rand(3, 4),
                "history2": rand(3, 4),
                "history3": rand(3, 4),
                "keys": keys,
                "noise": None,
            },
        ),
    )
    yield "philox_normal", Recipe(ops.philox_normal, lambda: {"keys": keys, "elements": 7})
    yield (
        "sample_timesteps",
        Recipe(
            ops.sample_timesteps,
            lambda: {
                "batch": 2,
                "num_frames": 3,
                "num_timesteps": 10,
                "rule": "fopp",
                "seed": 1,
                "first_sample": 0,
                "device": "cpu",
            },
        ),
    )
    yield "check_device", Recipe(ops.check_device, lambda: {"device": "cpu"})


def _generation() -> Iterator[tuple[str, Recipe]]:
    schedule = ade.NoiseSchedule.sqrt_linear(1e-4, 2e-2, 100)
    flow = ade.FlowSchedule(3.0, 100)
    config = {"num_frames": 4, "tokens_per_frame": 4, "channels": 4, "width": 32, "depth": 1, "heads": 2}
    config |= {"context_tokens": 3, "context_dim": 8, "num_classes": 3}
    yield "models.ARDiffusionConfig", Recipe(ade.models.ARDiffusionConfig, lambda: dict(config))
    model = ade.models.ARDiffusionTransformer(ade.models.ARDiffusionConfig(**config))  # type: ignore[arg-type]
    solver = ade.solvers.DDIM(schedule, num_inference_steps=3)

    def submit(**given: Any) -> object:
        engine = ade.Engine(model, solver=solver, memory=ade.memory.Window(4), max_pages=40)
        return engine.submit(ade.Request(**given)).result()

    yield (
        "Request",
        Recipe(
            submit,
            lambda: {
                "num_frames": 3,
                "lag": 1,
                "condition": 1,
                "negative_condition": None,
                "guidance_scale": 1.5,
                "seed": 3,
                "noise_stream": 0,
                "latents": torch.rand(3, 4, 4),
                "generator": None,
                "prefix": None,
                "on_step": None,
            },
        ),
    )
    yield (
        "Engine",
        Recipe(
            ade.Engine,
            lambda: {
                "model": model,
                "solver": solver,
                "memory": ade.memory.Window(4),
                "max_pages": 40,
                "max_waiting": 1,
                "max_batch_tokens": 64,
                "cuda_graphs": None,
            },
        ),
    )
    yield (
        "NoiseSchedule.sqrt_linear",
        Recipe(
            ade.NoiseSchedule.sqrt_linear,
            lambda: dict(zip(("beta_start", "beta_end", "num_timesteps"), (1e-4, 2e-2, 100), strict=True)),
        ),
    )
    yield "FlowSchedule", Recipe(ade.FlowSchedule, lambda: {"shift": 3.0, "num_timesteps": 100})
    yield (
        "solvers.DDIM",
        Recipe(
            ade.solvers.DDIM,
            lambda: {
                "schedule": schedule,
                "num_inference_steps": 3,
                "eta": 0.5,
                "prediction": "eps",
                "clamp": 1.0,
            },
        ),
    )
    yield "solvers.Euler", Recipe(ade.solvers.Euler, lambda: {"schedule": flow, "num_inference_steps": 3})
    yield "memory.Window", Recipe(ade.memory.Window, lambda: {"size": 4, "sink": 1})
    yield "memory.RecomputedWindow", Recipe(ade.memory.RecomputedWindow, lambda: {"size": 4})
    yield "memory.choose_page_rows", Recipe(ade.memory.choose_page_rows, lambda: {"tokens_per_frame": 32})
    yield "plan.lag", Recipe(ade.plan.lag, lambda: {"num_frames": 4, "num_steps": 3, "lag": 1, "prefix": 0})
    yield "plan.autoregressive", Recipe(ade.plan.autoregressive, lambda: {"num_frames": 4, "num_steps": 3})
    yield (
        "diffusion.noise_keys",
        Recipe(
            ade.diffusion.noise_keys,
            lambda: {
                "seeds": 1,
                "streams": 0,
                "frames": [0, 1],
                "purpose": 1,
                "steps": 0,
            },
        ),
    )
    yield (
        "diffusion.initial_noise",
        Recipe(
            ade.diffusion.initial_noise,
            lambda: {
                "seed": 1,
                "stream": 0,
                "frames": [0, 1],
                "shape": (4, 4),
                "device": "cpu",
            },
        ),
    )


@cache
def recipes() -> dict[str, Recipe]:
    torch.manual_seed(0)
    return {f"ops.{name}": recipe for name, recipe in _ops()} | dict(_generation())


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
        raise TimeoutError(f"took longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


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
