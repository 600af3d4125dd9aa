# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance of two sets of feature vectors, which are the user's: FVD with the I3D of that name, FID
with Inception.

    d² = |m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½)

with the means and covariances of both sets (Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500). It
is biased by the number of vectors: two sets of one N(0, I) of 400 dimensions are 302 apart at 256 vectors
each and 40 at 2048. So both sides must have as many, and the distance of real from real is always given
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.errors import TensorError

Features = NDArray[np.floating]
"""[vectors, dimensions]"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """distance: of made from real. baseline: of as many other real vectors from the same real ones. vectors:
    on each side of both."""

    distance: float
    baseline: float
    vectors: int

    def __str__(self) -> str:
        return (
            f"Fréchet distance {self.distance:.4g} with {self.vectors} vectors on each side; real against "
            f"real, as many: {self.baseline:.4g}"
        )


def compare(real: Features, made: Features) -> Comparison:
    """made [N, d] against the first N of real [at least 2 N, d], and those against the next N.

    Raises:
        TensorError: fewer than 2 N real vectors, or sets that cannot be compared.
    """
    real, made = _checked(real, "real"), _checked(made, "made")
    vectors = len(made)
    if len(real) < 2 * vectors:
        raise TensorError(
            f"real features: got {len(real)} for {vectors} made ones, expected at least {2 * vectors}: half "
            "of them are the baseline. Take more real clips, or fewer made ones."
        )
    first, second = real[:vectors], real[vectors : 2 * vectors]
    return Comparison(frechet_distance(first, made), frechet_distance(first, second), vectors)


def frechet_distance(first: Features, second: Features) -> float:
    """d² of [N, d] and [N, d], in float64. Covariances are divided by N - 1.

    The trace of the root is the nuclear norm of X1ᵀ X2 of the centred sets / (N - 1), so that no covariance
    is formed and none needs to be of full rank.

    Raises:
        TensorError: unequal numbers of vectors, other dimensions, fewer than two, or values that are not
        finite.
    """
    one, other = _checked(first, "first"), _checked(second, "second")
    if one.shape != other.shape:
        raise TensorError(
            f"features: got {one.shape} and {other.shape}, expected as many vectors of the same dimensions "
            "on both sides. The distance depends on their number."
        )
    centred, centred_other = one - one.mean(axis=0), other - other.mean(axis=0)
    apart = ((one.mean(axis=0) - other.mean(axis=0)) ** 2).sum()
    spread = (centred**2).sum() + (centred_other**2).sum()
    cross = np.linalg.svd(_factor(centred) @ _factor(centred_other).T, compute_uv=False).sum()
    return max(0.0, float(apart + (spread - 2 * cross) / (len(one) - 1)))


def _factor(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """[at most d, d] with the same Gram matrix: smaller where there are many vectors."""
    if len(centred) <= centred.shape[1]:
        return centred
    return np.asarray(np.linalg.qr(centred, mode="r"))


def _checked(features: Features, name: str) -> NDArray[np.float64]:
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
        state = "" if values.ndim != 2 or len(values) < 2 else " with values that are not finite"
        raise TensorError(
            f"{name} features: got {values.shape}{state}, expected two or more finite vectors, [vectors, d]."
        )
    return values
