# SPDX-License-Identifier: Apache-2.0
"""The one form of pixels in this package: uint8 [T, H, W, 3] or [H, W, 3], RGB."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
