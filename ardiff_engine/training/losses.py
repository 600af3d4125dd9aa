# SPDX-License-Identifier: Apache-2.0
"""Loss terms of stage 1. All are means, so weights do not depend on image size or batch."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Mean over latents of KL(N(mean, exp(log_variance)) || N(0, 1)) = ½ (mean² + var - 1 - log var), per
    element."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """½ [mean relu(1 - D(x)) + mean relu(1 + D(x̂))]."""
    return 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-mean D(x̂)."""
    return -fake.mean()


def adaptive_weight(reconstruction: Tensor, generator: Tensor, last_layer: Tensor) -> Tensor:
    """‖∂L_rec/∂w‖ / (‖∂L_gen/∂w‖ + 1e-4), clamped to [0, 1e4]; w is the last layer of the pixel decoder
    (VQGAN, AR-Diffusion)."""
    (rec,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (gen,) = torch.autograd.grad(generator, last_layer, retain_graph=True)
    return (rec.norm() / (gen.norm() + 1e-4)).clamp(0, 1e4).detach()
