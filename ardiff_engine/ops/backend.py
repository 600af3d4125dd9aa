# SPDX-License-Identifier: Apache-2.0
"""Which implementation an op call runs on, and why.

    cpu        C++ kernels                   float32 tensors on the CPU
    cuda       CUDA kernels                  float32, bfloat16, float16 tensors on an NVIDIA GPU since Ampere
    triton     Triton kernels                the same dtypes on a GPU; the backward passes
    reference  PyTorch                       everything else; the specification

Unset, the first of cuda, triton, reference (on the CPU: cpu, reference) that can run the call is taken, and
the reference on a GPU warns once per op with the reason. `ARDIFF_BACKEND` names one to insist on: it raises
where that one cannot run the call. The CUDA kernels are built ahead of time, or compiled by NVRTC at first
use (`cuda_route`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ardiff_engine._native import native, warn_missing, why_not
from ardiff_engine.errors import BackendNotAvailableError, ConfigError, explain
from ardiff_engine.ops.cuda_launch import DTYPES
from ardiff_engine.ops.cuda_route import cuda, why_cuda, why_no_cuda
from ardiff_engine.ops.dispatch import traced

NAMES = ("reference", "cpu", "cuda", "triton")
OPS = (
    "frame_attention",
    "frame_attention_backward",
    "norm_rope_write_",
    "norm_rope",
    "norm_rope_backward",
    "norm_rope_pages",
    "norm_rope_pages_backward",
    "linear",
    "modulate",
    "modulate_backward",
    "gate_residual",
    "gate_residual_backward",
    "bias_gelu",
    "bias_gelu_backward",
    "add_noise",
    "solver_step",
    "sample_timesteps",
    "philox_normal",
    "copy_pages_",
    "rotate_pages_",
    "pool_pages_",
)
_TRITON = "ardiff_engine.kernels.triton"
# Ops that share a file with another one: file, function.
_TRITON_PLACES = {
    "modulate_backward": ("modulate", "backward"),
    "gate_residual_": ("gate_residual", "run_in_place"),
    "gate_residual_backward": ("gate_residual", "backward"),
    "norm_rope_backward": ("norm_rope", "backward"),
    "norm_rope_pages_backward": ("norm_rope_pages", "backward"),
    "bias_gelu_backward": ("bias_gelu", "backward"),
    "copy_pages_": ("pages", "copy_pages"),
    "rotate_pages_": ("pages", "rotate_pages"),
}
# On the CPU, norm_rope_write_ and norm_rope_pages are what inference and training use instead.
_WITHOUT_CPU_KERNEL = ("norm_rope", "norm_rope_backward")
_CUDA_CAPABILITY = (8, 0)
# Their CUDA kernels copy bytes.
_ANY_DTYPE = ("copy_pages_",)


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend name, one of `NAMES`, and the reason why it was chosen."""

    name: str
    reason: str


def choose(op: str, *tensors: torch.Tensor | None) -> Choice:
    """The backend for a call of `op` on these floating-point tensors. None entries are ignored.

    Raises:
        ConfigError: ARDIFF_BACKEND names no backend.
        BackendNotAvailableError: ARDIFF_BACKEND names one that cannot take this call.
    """
    choice = _choice(op, tensors)
    if choice.name == "reference" and os.environ.get("ARDIFF_BACKEND") is None:
        for tensor in tensors:
            if tensor is not None and tensor.device.type != "cpu":
                _warn_once(op, choice.reason)
                break
        else:
            warn_missing()
    return choice


def on_native_cpu(*tensors: torch.Tensor | None) -> bool:
    """Whether the C++ kernels take these tensors: for what has kernels on the CPU and is PyTorch elsewhere.

    False where ARDIFF_BACKEND names another backend, and where the call is traced. ConfigError: it
    names none.
    """
    if traced(*tensors):
        return False
    forced = os.environ.get("ARDIFF_BACKEND")
    if forced is not None:
        _check_name(forced)
        if forced != "cpu":
            return False
    fits = _cpu_misfit("", tuple(tensor for tensor in tensors if tensor is not None)) is None
    if not fits:
        warn_missing()
    return fits


def triton_kernel(op: str) -> Callable[..., Any]:
    """The Triton kernel of an op: it takes what the op's own `_run` takes, and returns that.

    Usually `run` of ardiff_engine.kernels.triton.<op>. BackendNotAvailableError where there is none."""
    why = _why_no_triton(op)
    if why is not None:
        raise BackendNotAvailableError(why)
    file, function = _triton_place(op)
    kernel: Callable[..., Any] = getattr(importlib.import_module(f"{_TRITON}.{file}"), function)
    return kernel


def backends() -> dict[str, dict[str, Choice]]:
    """For every op, what float32 tensors run on per device type, and why."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    samples = {device: torch.empty(0, dtype=torch.float32, device=device) for device in devices}
    return {op: {device: _choice(op, (sample,)) for device, sample in samples.items()} for op in OPS}


def _choice(op: str, tensors: tuple[torch.Tensor | None, ...]) -> Choice:
    given = tuple(tensor for tensor in tensors if tensor is not None)
    forced = os.environ.get("ARDIFF_BACKEND")
    if forced is not None:
        return _forced(forced, op, given)
    if all(tensor.device.type == "cpu" for tensor in given):
        misfit = _MISFIT["cpu"](op, given)
        return _CPU if misfit is None else Choice("reference", misfit)
    if all(tensor.device.type == "cuda" for tensor in given):
        why: list[str] = []
        for name in ("cuda", "triton"):
            misfit = _MISFIT[name](op, given)
            if misfit is None:
                why.append(why_cuda() if name == "cuda" else "Triton is installed")
                return Choice(name, "; ".join(why))
            why.append(f"not {name}: {misfit}")
        return Choice("reference", "; ".join(why))
    return Choice("reference", _elsewhere(given))


def _forced(name: str, op: str, given: tuple[torch.Tensor, ...]) -> Choice:
    _check_name(name)
    if name == "reference":
        return Choice(name, "ARDIFF_BACKEND=reference")
    misfit = _MISFIT[name](op, given)
    if misfit is not None:
        raise BackendNotAvailableError(
            explain(
                f"ARDIFF_BACKEND={name} for {op}",
                got=misfit,
                expected=_EXPECTED[name],
                fix="Unset ARDIFF_BACKEND to use another backend for this call.",
            )
        )
    return Choice(name, f"ARDIFF_BACKEND={name}")


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise ConfigError(
            explain("ARDIFF_BACKEND", got=repr(name), expected=" or ".join(NAMES), fix="Change or unset it.")
        )


def _cpu_misfit(op: str, given: tuple[torch.Tensor, ...]) -> str | None:
    if any(tensor.device.type != "cpu" for tensor in given):
        return _elsewhere(given)
    if op in _WITHOUT_CPU_KERNEL:
        return f"there is no C++ kernel of {op}"
    for tensor in given:
        if tensor.dtype != torch.float32:
            return f"dtype is {_name(tensor.dtype)}; native kernels take float32"
    return why_not() if native() is None else None


def _cuda_misfit(op: str, given: tuple[torch.Tensor, ...]) -> str | None:
    module = cuda()
    if module is None:
        return why_no_cuda()
    stem = _stem(op)
    if not (hasattr(module, stem) or hasattr(module, f"{stem}_float32")):
        return f"there is no CUDA kernel of {op}"
    misfit = _not_on_gpu(given) or (None if op in _ANY_DTYPE else _dtype_misfit(given))
    if misfit is None and given:
        capability = _capability(given[0].device)
        if capability < _CUDA_CAPABILITY:
            return f"the GPU has compute capability {capability[0]}.{capability[1]}; the kernels need 8.0"
    return misfit


def _triton_misfit(op: str, given: tuple[torch.Tensor, ...]) -> str | None:
    why = _why_no_triton(op)
    if why is not None:
        return why
    # Triton's interpreter runs on the CPU: that is how its kernels are tested without a GPU.
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (None if interpreted else _not_on_gpu(given)) or _dtype_misfit(given)


def _not_on_gpu(given: tuple[torch.Tensor, ...]) -> str | None:
    if any(tensor.device.type != "cuda" for tensor in given):
        return f"tensors are on {', '.join(sorted({tensor.device.type for tensor in given}))}"
    return None


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _dtype_misfit(given: tuple[torch.Tensor, ...]) -> str | None:
    for tensor in given:
        if tensor.dtype not in DTYPES:
            return f"dtype is {_name(tensor.dtype)}; kernels take {', '.join(DTYPES.values())}"
    return None


@cache
def _why_no_triton(op: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not all(map(importlib.util.find_spec, (_TRITON, f"{_TRITON}.{_triton_place(op)[0]}"))):
        return f"there is no Triton kernel of {op}"
    return None


_CPU = Choice("cpu", "float32 on the CPU, native kernels are built")
_MISFIT = {"cpu": _cpu_misfit, "cuda": _cuda_misfit, "triton": _triton_misfit}
_EXPECTED = {
    "cpu": "float32 tensors on the CPU and a built native module",
    "cuda": "float32, bfloat16 or float16 tensors on an NVIDIA GPU; built in, or CuPy and NVRTC",
    "triton": "float32, bfloat16 or float16 tensors on a GPU (or TRITON_INTERPRET=1), and Triton",
}


@cache
def _warn_once(op: str, reason: str) -> None:
    warnings.warn(f"{op} runs on the PyTorch reference: {reason}", RuntimeWarning, stacklevel=4)


def _elsewhere(given: tuple[torch.Tensor, ...]) -> str:
    kinds = ", ".join(sorted({tensor.device.type for tensor in given} - {"cpu"}))
    return f"tensors are on {kinds}; kernels take tensors that are all on the CPU, or all on one NVIDIA GPU"


def _triton_place(op: str) -> tuple[str, str]:
    return _TRITON_PLACES.get(op, (_stem(op), "run"))


def _stem(op: str) -> str:
    """The file name of an op: an in-place op loses its last underscore."""
    return op.removesuffix("_")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
