# SPDX-License-Identifier: Apache-2.0
"""Parts of `transformers` (extra `text`), from folders that it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ardiff_engine.errors import ConfigError
from ardiff_engine.parsing import parsing


def transformers_class(name: str) -> Any:
    """ConfigError: transformers is missing, or too old for it."""
    try:
        import transformers

        return getattr(transformers, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{name} is one of transformers: pip install -U transformers.") from error


def pretrained(name: str, folder: Path, **options: Any) -> Any:
    """What the class of this name reads from a folder; nothing is fetched. CheckpointError: it cannot."""
    kind = transformers_class(name)
    with parsing(f"{name} in {folder}", fix="Expected a folder as transformers write it."):
        return kind.from_pretrained(folder, local_files_only=True, **options)
