# SPDX-License-Identifier: Apache-2.0
"""Official tensor names with their shapes, and the weights that the golden numbers were made with."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

GOLDEN = Path(__file__).with_name("golden")


def official_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape from golden/keys_{name}.txt, with `{n}` expanded."""
    shapes = {}
    for line in (GOLDEN / f"keys_{name}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        key, shape = line.split(" ", 1)
        repeated = re.search(r"\{(\d+)\}", key)
        for index in range(int(repeated[1]) if repeated else 1):
            shapes[re.sub(r"\{\d+\}", str(index), key)] = tuple(json.loads(shape))
    return shapes


def recipe_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The generated weight of golden/README.md."""
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) >= 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    elif key.endswith(".weight"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return torch.from_numpy(z.astype(np.float32))


@torch.no_grad()
def generate_weights(model: nn.Module) -> None:
    """Overwrites all parameters with the recipe; buffers stay as constructed."""
    for name, parameter in model.named_parameters():
        parameter.copy_(recipe_tensor(name, tuple(parameter.shape)))
