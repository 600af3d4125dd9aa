# SPDX-License-Identifier: Apache-2.0
"""Range checks that all plans share."""

from __future__ import annotations

from ardiff_engine.errors import PlanError, explain


def check_tick(n: int, num_ticks: int | None) -> None:
    """Raise PlanError unless n is a tick of the plan."""
    if n < 0 or (num_ticks is not None and n >= num_ticks):
        raise PlanError(
            explain(
                "no such tick",
                got=n,
                expected="0 or more" if num_ticks is None else f"0..{num_ticks - 1}",
                fix="Ticks count from 0.",
            )
        )


def check_sizes(num_frames: int | None, num_steps: int, prefix: int) -> None:
    """Raise PlanError for a plan without frames to make or without steps."""
    if num_steps < 1:
        raise PlanError(
            explain(
                "a plan needs steps", got=num_steps, expected="num_steps >= 1", fix="50 is the usual choice."
            )
        )
    if prefix < 0:
        raise PlanError(
            explain("bad prefix", got=prefix, expected="prefix >= 0", fix="0 means no given frames.")
        )
    if num_frames is not None and num_frames < 1:
        raise PlanError(
            explain(
                "a plan needs frames",
                got=num_frames,
                expected="num_frames >= 1, or None",
                fix="None is an endless video.",
            )
        )
    if num_frames is not None and num_frames <= prefix:
        raise PlanError(
            explain(
                "nothing left to generate",
                got=f"num_frames={num_frames} with {prefix} given frames",
                expected=f"num_frames > {prefix}",
                fix="num_frames counts the given frames as well.",
            )
        )


def check_window_size(window: int) -> None:
    """Raise PlanError for a window without frames."""
    if window < 1:
        raise PlanError(
            explain("bad window", got=window, expected="1 frame or more", fix="AR-Diffusion uses 16.")
        )
