# SPDX-License-Identifier: Apache-2.0
"""The key tensor of counter-based noise: int64 [N, 5], one row per frame of noise.

Columns: seed (64 bits, as a signed integer), stream (32 bits), frame (32 bits), purpose (8 bits), step (24
bits). Element e of a row's noise is a pure function of the row and of e, whatever else is generated beside
it.
"""

from __future__ import annotations

import torch

from ardiff_engine.errors import TensorError, explain
from ardiff_engine.ops.checks import tensor

KEY_COLUMNS = 5


def check_keys(
    keys: torch.Tensor, rows: int | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """`keys` as contiguous int64 [N, 5]; TensorError for another shape, dtype, row count or device."""
    keys = tensor("noise keys", keys)
    fits = keys.dim() == 2 and keys.shape[1] == KEY_COLUMNS and keys.dtype == torch.int64
    if not fits or (rows is not None and keys.shape[0] != rows):
        raise TensorError(
            explain(
                "noise keys",
                got=f"{keys.dtype} {list(keys.shape)}",
                expected=f"torch.int64 [{'N' if rows is None else rows}, 5], see noise_keys",
                fix="Build them with ardiff_engine.diffusion.noise.noise_keys, one row per frame.",
            )
        )
    if device is not None and keys.device != device:
        raise TensorError(
            explain(
                "device of noise keys",
                got=keys.device,
                expected=device,
                fix=f"Move them with .to('{device}').",
            )
        )
    return keys.contiguous()
