# SPDX-License-Identifier: Apache-2.0
"""Public callables, each with arguments with which it works: what arguments.py puts odd values into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

import ardiff_engine as ade
from ardiff_engine import ops


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
