# SPDX-License-Identifier: Apache-2.0
"""Rows per frame, shared by `modulate` and `gate_residual`: token t uses row frame_ids[t] of [M, D]."""

from __future__ import annotations

from functools import reduce

import torch

from ardiff_engine.errors import TensorError, explain
from ardiff_engine.ops import checks


def check_frame_rows(
    x: torch.Tensor, frame_ids: torch.Tensor, tables: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Metadata of x [T, D], frame_ids [T], tables [M, D] of one M; returns the ids as int32.

    `check_range` checks their values."""
    tokens, width = checks.token_rows("x", x, "D")
    if (
        frame_ids.dtype not in (torch.int32, torch.int64)
        or frame_ids.dim() != 1
        or frame_ids.shape[0] != tokens
    ):
        raise TensorError(
            explain(
                "frame_ids",
                got=f"{frame_ids.dtype} {list(frame_ids.shape)}",
                expected=f"torch.int32 or torch.int64 [{tokens}]",
                fix="Pass one row number per token.",
            )
        )
    checks.device("frame_ids", frame_ids, x.device)
    rows = None
    for name, table in tables.items():
        if table.dim() != 2 or table.shape[1] != width or (rows is not None and table.shape[0] != rows):
            raise TensorError(
                explain(
                    f"shape of {name}",
                    got=list(table.shape),
                    expected=f"[{'M' if rows is None else rows}, {width}]",
                    fix="Pass one row per frame, as wide as x.",
                )
            )
        if table.device != x.device or not table.is_floating_point():
            raise TensorError(
                explain(
                    f"dtype and device of {name}",
                    got=f"{table.dtype} on {table.device}",
                    expected=f"floating point on {x.device}",
                    fix="Convert it with .to(x).",
                )
            )
        rows = table.shape[0]
    if frame_ids.dtype == torch.int64:
        # What is out of range stays so: cut to 32 bits as it is, 2^32 would become row 0.
        frame_ids = frame_ids.clamp(-1, rows).to(torch.int32)
    return frame_ids


def check_range(frame_ids: torch.Tensor, rows: int) -> None:
    """Every id names a row. Read on the CPU only: elsewhere it would stall the device queue."""
    if frame_ids.device.type != "cpu" or frame_ids.numel() == 0:
        return
    low, high = torch.aminmax(frame_ids)
    if int(low) < 0 or int(high) >= rows:
        raise range_error(int(low) if int(low) < 0 else int(high), rows)


def range_error(frame_id: int, rows: int) -> TensorError:
    return TensorError(
        explain(
            "frame_ids", got=frame_id, expected=f"0..{rows - 1}", fix="Number the rows of the tables from 0."
        )
    )


def dense_rows(table: torch.Tensor) -> torch.Tensor:
    """A table whose last stride is 1; rows may stay strided (a slice of a larger table)."""
    return table if table.shape[1] == 1 or table.stride(1) == 1 else table.contiguous()


def widen(value: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, all else as it is."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def widest(*tensors: torch.Tensor | None) -> torch.dtype:
    """The dtype that holds all of them: a GPU kernel has one dtype, and narrowing a table would lose bits."""
    return reduce(torch.promote_types, [tensor.dtype for tensor in tensors if tensor is not None])


def sum_rows(values: torch.Tensor, frame_ids: torch.Tensor, rows: int) -> torch.Tensor:
    """values [T, D] -> [rows, D], added per id in token order (deterministic on the CPU)."""
    return values.new_zeros(rows, values.shape[1]).index_add_(0, frame_ids, values)
