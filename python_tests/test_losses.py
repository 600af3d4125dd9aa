# SPDX-License-Identifier: Apache-2.0
"""Loss terms against closed forms."""

from __future__ import annotations

import torch

from ardiff_engine.training.discriminator import PatchDiscriminator
from ardiff_engine.training.losses import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    kl_divergence,
)


def test_kl_equals_torch_distributions() -> None:
    mean, log_variance = torch.randn(5, 4, 1, 8).double(), torch.randn(5, 4, 1, 8).double()
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(
        normal(mean, (0.5 * log_variance).exp()), normal(torch.zeros_like(mean), torch.ones_like(mean))
    )
    assert torch.allclose(kl_divergence(mean, log_variance), wanted.mean(), rtol=1e-12)
    assert kl_divergence(torch.zeros(3), torch.zeros(3)) == 0


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert float(hinge_discriminator_loss(real, fake)) == 0.5 * (0.25 + 0.75)
    assert float(hinge_generator_loss(fake)) == 0.75


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    weight = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    reconstruction, generator = weight.square().sum(), weight.sum()
    got = adaptive_weight(reconstruction, generator, weight)
    assert abs(float(got) - 10 / (2**0.5 + 1e-4)) < 1e-12 and not got.requires_grad
    assert float(adaptive_weight(1e9 * reconstruction, 1e-9 * generator, weight)) == 1e4


def test_discriminator_has_the_official_shape() -> None:
    shapes = {
        name: tuple(value.shape) for name, value in PatchDiscriminator().named_parameters() if value.ndim == 4
    }
    assert shapes == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.5.weight": (256, 128, 4, 4),
        "main.8.weight": (512, 256, 4, 4),
        "main.11.weight": (1, 512, 4, 4),
    }
    assert PatchDiscriminator(width=8)(torch.rand(1, 3, 256, 256)).shape == (1, 1, 30, 30)
