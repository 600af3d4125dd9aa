# SPDX-License-Identifier: Apache-2.0
"""What a library raises while it encodes becomes one typed error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ardiff_engine.errors import MediaError


@contextlib.contextmanager
def encoding(path: Path, shape: Sequence[int]) -> Iterator[None]:
    """Around calls of an encoding library only. An error of the disk stays an OSError, for which there is
    another message; any other becomes a MediaError with the size of the frames [H, W, 3]."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        size = f" with frames of {shape[1]} x {shape[0]}" if shape else ""
        raise MediaError(f"{path.name}{size} cannot be encoded: {error}") from error
