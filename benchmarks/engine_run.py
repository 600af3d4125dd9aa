# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the engine share: models with random weights, sizes, and the engine around them.

ARDIFF_BENCH_STEPS (default 50) is the number of solver steps S; lags keep their share of S, so the cells of a
tick stay the same and only their number changes. 10 is for quick runs; figures that are reported use 50.
"""

from __future__ import annotations

import os

import torch

from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer

FULL_STEPS = 50


def solver_steps() -> int:
    asked = os.environ.get("ARDIFF_BENCH_STEPS", str(FULL_STEPS))
    if asked not in ("10", "20", "50", "100"):
        raise ConfigError(
            explain(
                "ARDIFF_BENCH_STEPS",
                got=repr(asked),
                expected="10, 20, 50 or 100",
                fix="They divide the 1000 training timesteps, and by 10.",
            )
        )
    return int(asked)


STEPS = solver_steps()


def scaled(lag: int) -> int:
    """A lag for 50 steps, as the same share of STEPS."""
    return lag * STEPS // FULL_STEPS


def random_model(config: ARDiffusionConfig) -> ARDiffusionTransformer:
    """Every weight drawn: as initialised, the output layer and all modulations would be zero."""
    model = ARDiffusionTransformer(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                # Small modulations, or the residual stream of a random network leaves all proportion.
                gain = 0.1 if "adaLN_modulation" in name else 1.0
                parameter.normal_(std=gain * parameter.shape[1] ** -0.5, generator=generator)
    return model


def engine_for(
    model: ARDiffusionTransformer,
    memory: MemoryPolicy,
    *,
    max_pages: int,
    max_batch_tokens: int | None = None,
) -> Engine:
    schedule = NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)
    solver = solvers.DDIM(schedule, num_inference_steps=STEPS)
    return Engine(model, solver=solver, memory=memory, max_pages=max_pages, max_batch_tokens=max_batch_tokens)
