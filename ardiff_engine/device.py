# SPDX-License-Identifier: Apache-2.0
"""Devices: one that was asked for by name, usable or one clear error; and values on their way to it."""

from __future__ import annotations

import threading

import torch

from ardiff_engine.available_memory import available_memory
from ardiff_engine.errors import ConfigError, explain

# Held, by one thread at a time, around CUDA calls that concern a device as a whole: recording a graph, and
# waiting for all of its streams. CUDA refuses the second while a stream is being recorded, and the recording
# is lost: that of another engine, or of this one while somebody else asks what its kernels have found.
DEVICE_WIDE_CALLS = threading.RLock()


def usable_device(name: str | torch.device) -> torch.device:
    """`name` as a device that can hold tensors. Raises ConfigError for an unknown or an absent one."""
    try:
        if not isinstance(name, str | torch.device):
            raise RuntimeError("a device is named by a string")
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no values")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            explain(
                "device",
                got=f"{str(name)[:80]!r}, which cannot be used here ({why[:160]})",
                expected="cpu, or the name of a device that this PyTorch sees, such as cuda or cuda:1",
                fix="Use cpu, or install a PyTorch build for the device; `ardiff info` shows what there is.",
            )
        ) from error
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on it."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def upload(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`host` on `device`; what is queued after this on the current stream finds it there.

    A copy of ordinary host memory stops the host until a GPU has done all that was queued before. One of
    page-locked memory does not, and PyTorch hands such memory out again only after the copies that read it.
    """
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
