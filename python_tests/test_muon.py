# SPDX-License-Identifier: Apache-2.0
"""Muon against PyTorch's own one, and against singular values in float64."""

from __future__ import annotations

import pytest
import torch

from ardiff_engine.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(5, 5), (24, 7), (7, 24), (1, 6)])
def test_singular_vectors_stay_and_values_become_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(0))
    u, values, v = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(5):  # the same polynomial, of the singular values alone
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonalized(matrix), u @ values.diag() @ v, rtol=1e-9, atol=1e-9)


def test_steps_are_those_of_pytorch_but_for_its_bfloat16() -> None:
    """Weight decay, momentum, both orientations, a changed learning rate."""
    sides = []
    for kind in ("ours", "pytorch"):
        generator = torch.manual_seed(1)
        weights = [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((24, 7), (7, 24))]
        if kind == "ours":
            optimizer: torch.optim.Optimizer = Muon(weights, 0.02, 0.1)
        else:
            optimizer = torch.optim.Muon(weights, 0.02, 0.1, adjust_lr_fn="match_rms_adamw")
        for number in range(4):
            optimizer.param_groups[0]["lr"] = 0.02 / (1 + number)
            for weight in weights:
                weight.grad = torch.randn(*weight.shape, generator=generator)
            optimizer.step()
        sides.append([weight.detach() for weight in weights])
    for ours, theirs in zip(*sides, strict=True):
        # An element moves by some 0.2 · 0.02 in the first step, of which bfloat16 keeps two digits.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=6e-4)
