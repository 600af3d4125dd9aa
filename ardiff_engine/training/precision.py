# SPDX-License-Identifier: Apache-2.0
"""Numbers and activations of a training step: dtypes, autocast, and what is computed twice to save memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ardiff_engine.training.config import RunConfig


def weights_dtype(run: RunConfig) -> torch.dtype:
    """Of weights, gradients and data."""
    return torch.float64 if run.precision == "float64" else torch.float32


def autocast(run: RunConfig) -> AbstractContextManager[object]:
    """For the network's pass; the loss is computed outside."""
    if run.precision != "bfloat16":
        return nullcontext()
    return torch.autocast(torch.device(run.device).type, torch.bfloat16)


def recompute_blocks(model: nn.Module) -> None:
    """Every module in a list of modules keeps its inputs alone until its gradient is asked for."""
    for blocks in [part for part in model.modules() if isinstance(part, nn.ModuleList)]:
        for block in blocks:
            # As an attribute of the instance: names of parameters stay as they are.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
