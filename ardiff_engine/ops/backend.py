# SPDX-License-Identifier: Apache-2.0
"""Which implementation an op call runs on, and why.

`ARDIFF_BACKEND=reference` forces the PyTorch reference; `ARDIFF_BACKEND=cpu` insists on the native CPU
kernels and raises where they cannot run the call. Unset, the fastest one that fits is taken.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache

import torch

from ardiff_engine._native import native, why_not
from ardiff_engine.errors import BackendNotAvailableError, ConfigError, explain

NAMES = ("reference", "cpu")
OPS = (
    "frame_attention",
    "norm_rope_write_",
    "modulate",
    "gate_residual",
    "add_noise",
    "solver_step",
    "sample_timesteps",
    "philox_normal",
    "copy_pages_",
    "rotate_pages_",
)


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend name, "cpu" or "reference", and the reason why it was chosen."""

    name: str
    reason: str


def choose(op: str, *tensors: torch.Tensor | None) -> Choice:
    """The backend for a call of `op` on these floating-point tensors. None entries are ignored.

    Unless ARDIFF_BACKEND is set, the first call of an op on a device without native kernels warns, once per
    process, and names the reason.

    Raises:
        ConfigError: ARDIFF_BACKEND names no backend.
        BackendNotAvailableError: ARDIFF_BACKEND=cpu and the native kernels cannot take this call.
    """
    if os.environ.get("ARDIFF_BACKEND") is None:
        for tensor in tensors:
            if tensor is not None and tensor.device.type != "cpu":
                _warn_once(op, _elsewhere(tensor))
                break
    return _choice(op, tensors)


def _choice(op: str, tensors: tuple[torch.Tensor | None, ...]) -> Choice:
    forced = os.environ.get("ARDIFF_BACKEND")
    if forced is None:
        misfit = _misfit(tensors)
        return _CPU if misfit is None else Choice("reference", misfit)
    if forced not in NAMES:
        raise ConfigError(
            explain(
                "ARDIFF_BACKEND", got=repr(forced), expected=" or ".join(NAMES), fix="Change or unset it."
            )
        )
    if forced == "reference":
        return Choice("reference", "ARDIFF_BACKEND=reference")
    misfit = _misfit(tensors)
    if misfit is not None:
        raise BackendNotAvailableError(
            explain(
                f"ARDIFF_BACKEND=cpu for {op}",
                got=misfit,
                expected="float32 tensors on the CPU and a built native module",
                fix="Unset ARDIFF_BACKEND to use the PyTorch reference for this call.",
            )
        )
    return Choice("cpu", "ARDIFF_BACKEND=cpu")


def backends() -> dict[str, dict[str, Choice]]:
    """For every op, what float32 tensors run on per device type, and why."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    samples = {device: torch.empty(0, device=device) for device in devices}
    return {op: {device: _choice(op, (sample,)) for device, sample in samples.items()} for op in OPS}


_CPU = Choice("cpu", "float32 on the CPU, native kernels are built")


@cache
def _warn_once(op: str, reason: str) -> None:
    warnings.warn(f"{op} runs on the PyTorch reference: {reason}", RuntimeWarning, stacklevel=4)


def _elsewhere(tensor: torch.Tensor) -> str:
    return f"tensors are on {tensor.device.type}; native kernels exist for the CPU only"


def _misfit(tensors: tuple[torch.Tensor | None, ...]) -> str | None:
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return _elsewhere(tensor)
        if tensor.dtype != torch.float32:
            return f"dtype is {str(tensor.dtype).removeprefix('torch.')}; native kernels take float32"
    if native() is None:
        return why_not()
    return None
