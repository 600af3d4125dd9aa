# SPDX-License-Identifier: Apache-2.0
"""Range checks that all plans share."""

from __future__ import annotations

from operator import index

from ardiff_engine.errors import PlanError, explain


def whole(name: str, value: object) -> int:
    """`value` as an int, also from NumPy; PlanError for anything that is not an integer."""
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise PlanError(
            explain(f"bad {name}", got=repr(value), expected="an integer", fix="Round or convert it.")
        ) from error


def check_tick(n: int, num_ticks: int | None) -> int:
    """n as an int; PlanError unless it is a tick of the plan."""
    n = whole("tick", n)
    if n < 0 or (num_ticks is not None and n >= num_ticks):
        raise PlanError(
            explain(
                "no such tick",
                got=n,
                expected="0 or more" if num_ticks is None else f"0..{num_ticks - 1}",
                fix="Ticks count from 0.",
            )
        )
    return n


def check_frame(frame: int, num_frames: int | None) -> int:
    """frame as an int; PlanError unless it is a frame of the video."""
    frame = whole("frame", frame)
    if frame < 0 or (num_frames is not None and frame >= num_frames):
        raise PlanError(
            explain(
                "no such frame",
                got=frame,
                expected="0 or more" if num_frames is None else f"0..{num_frames - 1}",
                fix="Frames count from 0, the given ones included.",
            )
        )
    return frame


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


def check_window_size(window: int) -> int:
    """The window as an int; PlanError for one without frames."""
    window = whole("window", window)
    if window < 1:
        raise PlanError(
            explain("bad window", got=window, expected="1 frame or more", fix="AR-Diffusion uses 16.")
        )
    return window
