# SPDX-License-Identifier: Apache-2.0
"""Commands of `ardiff` as a shell would give them, in this process."""

from __future__ import annotations

from pathlib import Path

from ardiff_engine import cli

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> int:
    """The exit code."""
    return cli.main([str(argument) for argument in arguments])
