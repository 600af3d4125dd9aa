# SPDX-License-Identifier: Apache-2.0
"""The command line of the benchmarks of this folder, and the lines of JSON that they leave."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def options_of(what: str, variants: tuple[str, ...] = ("",)) -> argparse.Namespace:
    """variant: one of `variants`, the first by default. json: a file, or None."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--variant", choices=variants, default=variants[0])
    parser.add_argument(
        "--json", type=Path, help="append the lines to this file, each as soon as it is known"
    )
    return parser.parse_args()


def put(row: dict[str, Any], target: Path | None) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    if target is not None:
        with target.open("a") as lines:
            lines.write(line + "\n")
