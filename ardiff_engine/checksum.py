# SPDX-License-Identifier: Apache-2.0
"""A number by which weights are told from others."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch


def checksum_of(tensors: Iterable[torch.Tensor]) -> int:
    """CRC-32 of all bytes, in order, each tensor in its dtype."""
    found = 0
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found = zlib.crc32(data.numpy().data, found)
    return found
