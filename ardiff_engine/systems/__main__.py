# SPDX-License-Identifier: Apache-2.0
"""`python -m ardiff_engine.systems`: names, traces and pictures of the published systems."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ardiff_engine.errors import ArdiffError
from ardiff_engine.systems.document import FRAMES, page
from ardiff_engine.systems.picture import draw
from ardiff_engine.systems.registry import get, names


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ardiff_engine.systems", description=__doc__)
    parser.add_argument("names", nargs="*", help="systems to trace and draw; without any, all are listed")
    parser.add_argument("--all", action="store_true", help="every system")
    parser.add_argument("--out", type=Path, help="folder for the pictures")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of systems that are endless")
    parser.add_argument("--docs", type=Path, help="folder of the documents: the page of all systems")
    asked = parser.parse_args(arguments)
    if asked.docs is not None:
        (asked.docs / "systems.md").write_text(page(map(get, names())), encoding="utf-8")
        asked.all, asked.out = True, asked.docs / "images" / "systems"
    try:
        for name in names() if asked.all or not asked.names else asked.names:
            system = get(name)
            if not (asked.all or asked.names):
                print(f"{name:28}{system.title}")
                continue
            trace = system.trace(system.num_frames or asked.frames)
            calls, frames = trace.fed.shape
            print(f"{name:28}{frames} frames, {calls} calls, {int(trace.fed.sum())} frames fed")
            if asked.out is not None:
                draw(trace, asked.out / f"{name}.png", system.title)
    except ArdiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
