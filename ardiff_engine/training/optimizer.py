# SPDX-License-Identifier: Apache-2.0
"""AdamW with named state, its learning rate, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ardiff_engine.errors import NumericalError, explain
from ardiff_engine.training.config import OptimizerConfig

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW over the parameters of `module` that require a gradient; weight decay on the weights of linear
    and convolutional layers.

    All trained parameters, conditions included, are in the optimizer, are zeroed, and are clipped together;
    the official trainer (iva-mzsun/AR-Diffusion @ 7a37b94) clips conditions that it never trains.
    """

    def __init__(self, module: nn.Module, config: OptimizerConfig, steps: int) -> None:
        self.config = config
        self.steps = steps
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        matrices = _matrices(module)
        decayed = [p for name, p in self.parameters.items() if name in matrices]
        others = [p for name, p in self.parameters.items() if name not in matrices]
        self.adam = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
        )

    def lr(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: warm-up · schedule · lr."""
        config = self.config
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        if config.schedule == "constant":
            return config.lr * warm
        progress = min(1.0, max(0.0, (step - config.warmup) / max(1, self.steps - config.warmup)))
        return (
            config.lr
            * warm
            * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))
        )

    def update(self, step: int) -> float:
        """Clip, move, zero. Returns the norm of the gradient before clipping; NumericalError (nothing moved)
        if it is not finite."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise NumericalError(
                explain(
                    f"gradient of step {step}",
                    got=float(norm),
                    expected="a finite norm",
                    fix="Lower optimizer.lr or set optimizer.clip_norm.",
                )
            )
        if self.config.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.clip_norm, norm)
        for group in self.adam.param_groups:
            group["lr"] = self.lr(step)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return float(norm)

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counts, `<parameter>/<moment>`."""
        return {
            f"{name}/{moment}": self.adam.state[parameter][moment]
            for name, parameter in self.parameters.items()
            if parameter in self.adam.state
            for moment in MOMENTS
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            if f"{name}/step" in tensors:
                step, *moments = (tensors[f"{name}/{moment}"] for moment in MOMENTS)
                moved = [moment.to(parameter.device) for moment in moments]
                self.adam.state[parameter] = dict(zip(MOMENTS, [step, *moved], strict=True))


def _matrices(module: nn.Module) -> set[str]:
    """Names of the weights that multiply activations: not biases and norms, and not tables of tokens,
    contexts, classes and modulations, of which decay would shrink rows that no clip of a batch uses."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return {
        name
        for name, parameter in module.named_parameters()
        if name.endswith("weight") and parameter.ndim > 1 and id(parameter) not in tables
    }
