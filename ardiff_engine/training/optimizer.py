# SPDX-License-Identifier: Apache-2.0
"""AdamW or Muon with named state, their learning rate, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ardiff_engine.errors import ConfigError, NumericalError, explain
from ardiff_engine.training.config import OptimizerConfig
from ardiff_engine.training.muon import Muon
from ardiff_engine.training.split_tensors import is_split

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
MUON_MOMENTS = ("momentum_buffer",)


class Optimizer:
    """Moves the parameters of `module` that require a gradient; weight decay on the weights of linear and
    convolutional layers. ConfigError: Muon, and weights that are split over processes.

    All trained parameters, conditions included, are in the optimizer, are zeroed, and are clipped together;
    the official trainer (iva-mzsun/AR-Diffusion @ 7a37b94) clips conditions that it never trains.
    """

    def __init__(self, module: nn.Module, config: OptimizerConfig, steps: int) -> None:
        self.config = config
        self.steps = steps
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        matrices = _matrices(module)
        turned = _turned(module) & self.parameters.keys() if config.kind == "muon" else set()
        self.moments = {name: MUON_MOMENTS if name in turned else MOMENTS for name in self.parameters}
        decayed = [p for name, p in self.parameters.items() if name in matrices - turned]
        others = [p for name, p in self.parameters.items() if name not in matrices | turned]
        self.adam = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
        )
        self.movers: list[torch.optim.Optimizer] = [self.adam]
        if turned:
            if any(is_split(self.parameters[name]) for name in turned):
                raise ConfigError("optimizer.kind: got 'muon' with run.shard. Use 'adamw', or do not shard.")
            self.movers.append(
                Muon([self.parameters[name] for name in sorted(turned)], config.lr, config.weight_decay)
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
        if is_split(norm):
            norm = norm.full_tensor()
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
        for mover in self.movers:
            for group in mover.param_groups:
                group["lr"] = self.lr(step)
            mover.step()
            mover.zero_grad(set_to_none=True)
        return float(norm)

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counts, `<parameter>/<moment>`."""
        return {
            f"{name}/{moment}": state[moment]
            for name, parameter in self.parameters.items()
            if (state := self._state(name).get(parameter))
            for moment in self.moments[name]
        }

    def begin(self, names: Iterable[str]) -> None:
        """Zero moments for the parameters that `tensors` of another run named, to be overwritten."""
        for name in {name.rpartition("/")[0] for name in names} & self.parameters.keys():
            parameter = self.parameters[name]
            self._state(name)[parameter] = {
                moment: torch.zeros(()) if moment == "step" else torch.zeros_like(parameter)
                for moment in self.moments[name]
            }

    def _state(self, name: str) -> dict[Tensor, dict[str, Tensor]]:
        """Of the optimizer that moves that parameter."""
        return self.movers[self.moments[name] is MUON_MOMENTS].state


def _turned(module: nn.Module) -> set[str]:
    """Weights of linear layers: what Muon moves, by the nearest matrix with equal singular values."""
    return {
        f"{name}.weight".lstrip(".") for name, part in module.named_modules() if isinstance(part, nn.Linear)
    }


def _matrices(module: nn.Module) -> set[str]:
    """Names of the weights that multiply activations: not biases and norms, and not tables of tokens,
    contexts, classes and modulations, of which decay would shrink rows that no clip of a batch uses."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return {
        name
        for name, parameter in module.named_parameters()
        if name.endswith("weight") and parameter.ndim > 1 and id(parameter) not in tables
    }
