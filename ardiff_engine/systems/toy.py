# SPDX-License-Identifier: Apache-2.0
"""The calls of a system with the toy network of the golden numbers, out = 0.3 x + 0.05: one number per frame
goes through the rows of the real solvers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ardiff_engine.diffusion.solvers import Solver
from ardiff_engine.errors import TensorError
from ardiff_engine.systems.calls import Call

Array = npt.NDArray[np.float64]


def toy_network(x: float) -> float:
    return 0.3 * x + 0.05


def run_toy(
    calls: Sequence[Call], solvers: Sequence[Solver], start: npt.ArrayLike, steps: npt.ArrayLike | None
) -> tuple[Array, Array]:
    """x_in [C, F], NaN where not fed, and what is left of each frame in the end [F].

    start: [F], the noise that frames start from, or their clean latents. steps: [F, S], the noise of the
    update at each level, of which only those that the solver draws are read; None: it draws none.
    """
    x = np.array(start, np.float64)
    noise = None if steps is None else np.asarray(steps, np.float64)
    if x.ndim != 1 or (noise is not None and (noise.ndim != 2 or len(noise) != len(x))):
        raise TensorError(
            f"toy latents: got {x.shape} and {None if noise is None else noise.shape}; expected one number "
            "per frame [F], and for each of its steps [F, S]"
        )
    rows = [own.coefficients.tolist() for own in solvers]
    seen: dict[int, list[float]] = {}
    x_in = np.full((len(calls), len(x)), np.nan)
    for call, cells in enumerate(calls):
        for cell in [cell for cell in cells if cell.frame >= 0]:
            x_in[call, cell.frame] = seen[cell.frame][0] if cell.estimate else x[cell.frame]
        for cell in [cell for cell in cells if cell.updates]:
            p, q, a, b, e, *weights, limit = rows[cell.track][cell.level]
            own = x[cell.frame]
            x0 = min(max(p * own + q * toy_network(own), -limit), limit)
            history = seen.setdefault(cell.frame, [])
            drawn = 0.0 if e == 0 or noise is None else e * noise[cell.frame, cell.level]
            x[cell.frame] = (
                a * own + b * x0 + drawn + sum(c * h for c, h in zip(weights, history, strict=False))
            )
            history.insert(0, x0)
    return x_in, x
