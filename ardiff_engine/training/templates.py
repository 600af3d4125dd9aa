# SPDX-License-Identifier: Apache-2.0
"""Configs to begin with, which come with the package: a folder of them for each purpose."""

from __future__ import annotations

import shutil
from itertools import takewhile
from pathlib import Path

from ardiff_engine.errors import ConfigError
from ardiff_engine.files import staged

TEMPLATES = Path(__file__).parents[1] / "assets" / "templates"


def write_template(name: str, folder: Path) -> list[Path]:
    """Copies the configs of template `name` to a new `folder`; their paths, in the order of use.

    ConfigError: no such template, or something is there already.
    """
    known = sorted(path.name for path in TEMPLATES.iterdir())
    if name not in known:
        raise ConfigError(f"template: got {name!r:.200}, expected one of {', '.join(known)}.")
    if folder.exists():
        raise ConfigError(f"template: {folder} is there already. Remove it, or go to another folder.")
    with staged(folder, error=ConfigError) as (temporary,):
        shutil.copytree(TEMPLATES / name, temporary)
    return sorted(folder.glob("*.toml"))


def first_words(path: Path) -> list[str]:
    """The comment that a config begins with: what it is for, and how it is used."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return [line.removeprefix("#").strip() for line in lines]
