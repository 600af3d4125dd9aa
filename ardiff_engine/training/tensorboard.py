# SPDX-License-Identifier: Apache-2.0
"""The numbers of the log for TensorBoard."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.files import unwritable

FOLDER = "tensorboard"


class TensorBoard:
    """Event files in `folder`. A resumed run hides what lies after its checkpoint.

    Raises ConfigError where the package is not installed.
    """

    def __init__(self, folder: Path, finished: int) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        try:
            self.writer: Any = SummaryWriter(str(folder), purge_step=finished + 1)
        except OSError as error:
            raise unwritable(folder, error, CheckpointError) from error

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def check_tensorboard() -> None:
    try:
        importlib.import_module("tensorboard")
    except ImportError as error:
        raise ConfigError(
            "log.tensorboard: the package tensorboard is not installed. Install it with "
            "`pip install 'ardiff-engine[tensorboard]'`, or set log.tensorboard = false."
        ) from error
