# SPDX-License-Identifier: Apache-2.0
"""The device that was asked for by name: there and usable, or one clear error."""

from __future__ import annotations

import torch

from ardiff_engine.errors import ConfigError, explain


def usable_device(name: str | torch.device) -> torch.device:
    """`name` as a device that can hold tensors. Raises ConfigError for an unknown or an absent one."""
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no values")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            explain(
                "device",
                got=f"{str(name)!r}, which cannot be used here ({why[:160]})",
                expected="cpu, or the name of a device that this PyTorch sees, such as cuda or cuda:1",
                fix="Use cpu, or install a PyTorch build for the device; `ardiff info` shows what there is.",
            )
        ) from error
    return device
