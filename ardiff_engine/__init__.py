# SPDX-License-Identifier: Apache-2.0
"""Kernels and inference engine for asynchronous, autoregressive video diffusion."""

from ardiff_engine import diffusion, memory, models, ops, plan, weights
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.errors import ArdiffError
from ardiff_engine.media import export_video, read_video
from ardiff_engine.pipeline import Pipeline

__version__ = "0.1.0"

__all__ = [
    "ArdiffError",
    "Engine",
    "NoiseSchedule",
    "Pipeline",
    "Request",
    "Stream",
    "__version__",
    "diffusion",
    "export_video",
    "memory",
    "models",
    "ops",
    "plan",
    "read_video",
    "solvers",
    "weights",
]
