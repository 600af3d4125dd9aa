# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the `gpu` marker's rule."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    reason = f"needs an NVIDIA GPU and a CUDA build of PyTorch; torch {torch.__version__} sees no GPU"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))
