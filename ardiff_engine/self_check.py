# SPDX-License-Identifier: Apache-2.0
"""Every op on every backend that runs here, against its formula in float64, on odd shapes. Takes seconds.

`python -m ardiff_engine.info --check`: needs no compiler and no tests, only what is installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ardiff_engine import ops
from ardiff_engine._native import native
from ardiff_engine.errors import ArdiffError

Tensor = torch.Tensor
LIMIT = 1e-4
"""Relative L2 of float32 results; about 1e-7 is typical."""


@dataclass(frozen=True, slots=True)
class Checked:
    """error: relative L2 of the worst result; None: the op raised. note: why it failed, or where it ran."""

    op: str
    backend: str
    error: float | None
    note: str

    @property
    def good(self) -> bool:
        return self.error is not None and self.error <= LIMIT


def check() -> list[Checked]:
    """All ops on all backends that are available. ARDIFF_BACKEND is set aside meanwhile."""
    results = []
    for name, run, given in _cases():
        op = name.split(" ")[0]
        with _forced("reference"):
            want = _results(run, given, torch.float64, "cpu")
        for backend, device in _backends(op):
            for note in _instruction_sets() if backend == "cpu" else [device]:
                with _forced(backend), _instruction_set(note if backend == "cpu" else None):
                    results.append(_compared(name, backend, note, run, given, device, want))
    return results


def table(results: list[Checked]) -> str:
    """Markdown, one row per op and backend."""
    rows = ["| op | backend | on | relative error | |", "|---|---|---|---|---|"]
    for one in results:
        error = "-" if one.error is None else f"{one.error:.1e}"
        rows.append(f"| {one.op} | {one.backend} | {one.note} | {error} | {'ok' if one.good else 'FAILED'} |")
    return "\n".join(rows)


def _compared(
    name: str,
    backend: str,
    note: str,
    run: Callable[..., Any],
    given: dict[str, Tensor],
    device: str,
    want: list[Tensor],
) -> Checked:
    try:
        got = _results(run, given, torch.float32, device)
    except (ArdiffError, RuntimeError) as error:
        return Checked(name, backend, None, f"{note}: {type(error).__name__}: {error}"[:200])
    errors = [
        float((one.cpu().double() - other.double()).norm() / other.double().norm().clamp_min(1e-12))
        for one, other in zip(got, want, strict=True)
    ]
    worst = max(errors)
    return Checked(name, backend, worst if worst == worst else float("inf"), note)


def _results(
    run: Callable[..., Any], given: dict[str, Tensor], dtype: torch.dtype, device: str
) -> list[Tensor]:
    moved = {}
    for name, value in given.items():
        keeps = name == "frequencies" or not value.is_floating_point()
        moved[name] = value.to(device=device, dtype=value.dtype if keeps else dtype, copy=True)
    made = run(**moved)
    return [made] if isinstance(made, Tensor) else [one for one in made if one is not None]


def _cases() -> Iterator[tuple[str, Callable[..., Any], dict[str, Tensor]]]:
    """(op and variant, function, its tensors); widths and rows are multiples of nothing."""
    random = torch.Generator("cpu").manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float32, device="cpu")

    def longs(*values: int) -> Tensor:
        return torch.tensor(values, device="cpu")

    tokens, width = 5, 37
    frames = {"frame_ids": longs(0, 2, 2, 1, 0).int()}
    for norm in ("none", "layer", "rms"):
        given = {"x": rand(tokens, width), "shift": rand(3, width), "scale": rand(3, width), **frames}
        yield f"modulate {norm}", lambda norm=norm, **k: ops.modulate(**k, norm=norm), given
    gate = {"residual": rand(tokens, width), "branch": rand(tokens, width), "gate": rand(3, width), **frames}
    yield "gate_residual", ops.gate_residual, gate | {"bias": rand(width)}
    yield "gate_residual_", ops.gate_residual_, gate
    yield "bias_gelu", ops.bias_gelu, {"x": rand(tokens, width), "bias": rand(width)}
    yield "linear", _linear, {"x": rand(tokens, width), "weight": rand(53, width), "bias": rand(53)}
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001, 0.5], dtype=torch.float64, device="cpu")
    qkv = {"qkv": rand(tokens, 40), "positions": longs(0, 7, 3, 2**20, 9), "frequencies": frequencies}
    for norm in ("none", "layer", "rms"):
        pool = {"k_pages": rand(3, 1, 4, 10), "v_pages": rand(3, 1, 4, 10), "slots": longs(1, 11, -1, 4, 6)}
        yield f"norm_rope_write_ {norm}", lambda norm=norm, **k: _write(norm, **k), qkv | pool
        yield (
            f"norm_rope {norm}",
            lambda norm=norm, **k: ops.norm_rope(**k, heads=2, kv_heads=1, norm=norm),
            qkv,
        )
    for dim in (8, 40, 64, 72):
        given = {"q": rand(7, 2, dim), "k_pages": rand(4, 1, 13, dim), "v_pages": rand(4, 1, 13, dim)}
        yield f"frame_attention {dim}", _attention, given
    keys = torch.arange(15, device="cpu").reshape(3, 5)
    yield "philox_normal", lambda keys: ops.philox_normal(keys, 37), {"keys": keys}
    drawn = lambda like: ops.sample_timesteps(4, 5, 20, "fopp", 3, device=like.device)  # noqa: E731
    yield "sample_timesteps", drawn, {"like": rand(1)}
    level = {"x0": rand(3, width), "signal": rand(3), "sigma": rand(3), "keys": keys}
    yield "add_noise", lambda **k: ops.add_noise(**k, target="v"), level
    step = {"x": rand(3, width), "outs": rand(2, 3, width), "weights": rand(2, 3), "coefficients": rand(3, 8)}
    step |= {name: rand(3, width) for name in ("history1", "history2", "history3", "noise")}
    yield "solver_step", ops.solver_step, step
    pool = {"k_pages": rand(2, 4, 1, 3, 10), "v_pages": rand(2, 4, 1, 3, 10)}
    yield "copy_pages_", _copied, pool | {"src": longs(0), "dst": longs(3)}
    turn = {"pages": longs(3, 0), "deltas": longs(-5, 12), "frequencies": frequencies}
    rows = {"sources": longs(2, 0, 4, -1).reshape(2, 2), "targets": longs(9, 11)}
    yield "pool_pages_", _pooled, {"pages": rand(2, 4, 1, 3, 10), **rows, "weights": rand(2, 2, 1, 10)}
    yield "rotate_pages_", _rotated, {"k_pages": rand(2, 4, 1, 3, 10), **turn}


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.dtype == torch.float32:
        return ops.linear(x, ops.pack_linear(weight), bias, gelu=True)
    return torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias), approximate="tanh")


def _write(norm: str, k_pages: Tensor, v_pages: Tensor, **given: Any) -> tuple[Tensor, ...]:
    q = ops.norm_rope_write_(k_pages=k_pages, v_pages=v_pages, heads=2, kv_heads=1, norm=norm, **given)
    return q, k_pages, v_pages


def _attention(q: Tensor, k_pages: Tensor, v_pages: Tensor) -> tuple[Tensor, Tensor]:
    seen, bias = [[1, 2], [2]], [[0.5, -1.0], [0.0, 2.0]]
    view = ops.FrameTable.build([[3, 1], [3]], [[2, 0], [3, 2]], [[13, 5], [7, 13]], seen, bias, q.device)
    o, lse = ops.frame_attention(q, k_pages, v_pages, view, return_lse=True)
    return o, lse


def _copied(k_pages: Tensor, v_pages: Tensor, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
    ops.copy_pages_(k_pages, v_pages, src, dst)
    return k_pages, v_pages


def _pooled(pages: Tensor, weights: Tensor, **given: Tensor) -> Tensor:
    ops.pool_pages_(pages, weights=weights.float(), **given)
    return pages


def _rotated(k_pages: Tensor, **given: Tensor) -> Tensor:
    ops.rotate_pages_(k_pages, **given)
    return k_pages


def _backends(op: str) -> list[tuple[str, str]]:
    """(backend, device) of all that can run float32 tensors here."""
    found = []
    for backend, device in (("cpu", "cpu"), ("cuda", "cuda"), ("triton", "cuda"), ("reference", "cpu")):
        if device == "cuda" and (op == "linear" or not torch.cuda.is_available()):
            continue
        sample = torch.empty(0, dtype=torch.float32, device=device)
        with _forced(backend):
            try:
                ops.backend.choose(op, sample)
            except ArdiffError:
                continue
        found.append((backend, device))
    return found


def _instruction_sets() -> list[str]:
    module = native()
    return [] if module is None else list(module.build_info()["isas"])


@contextmanager
def _instruction_set(name: str | None) -> Iterator[None]:
    module = native()
    if name is None or module is None:
        yield
        return
    before = module.isa()
    module.set_isa(name)
    try:
        yield
    finally:
        module.set_isa(before)


@contextmanager
def _forced(backend: str) -> Iterator[None]:
    before = os.environ.get("ARDIFF_BACKEND")
    os.environ["ARDIFF_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["ARDIFF_BACKEND"]
        else:
            os.environ["ARDIFF_BACKEND"] = before
