# SPDX-License-Identifier: Apache-2.0
"""Makes every table of docs/evidence.md again, by the commands that stand above them.

    python -m tools.evidence                     # all, in order; trainings go on where they were stopped
    python -m tools.evidence --only gaussian_bed # commands with this text alone

A block of the document is a command and what it printed:

    ```bash
    python -m ardiff_engine.evaluation.gaussian_bed --steps 10
    ```

    <!-- made:begin -->
    ...
    <!-- made:end -->

The document is written after each command, so that a stop loses one table at most. Prose is not made: read it
again where a table has changed; the tool says which have.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ardiff_engine.errors import ConfigError
from ardiff_engine.files import write_atomic

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "evidence.md"
PACKAGE = "ardiff_engine.evaluation."
BLOCK = re.compile(
    r"```bash\n(?P<command>python -m [^\n]+)\n```\n\n<!-- made:begin -->\n(?P<made>.*?)<!-- made:end -->",
    re.DOTALL,
)


def commands(text: str) -> list[str]:
    """Those that have a table below them, in order."""
    return [found["command"] for found in BLOCK.finditer(text)]


def printed(command: str) -> str:
    """What the command prints, run in this process. ConfigError: another program, or an exit code but 0."""
    _, _, module, *arguments = shlex.split(command, comments=True)
    if not module.startswith(PACKAGE):
        raise ConfigError(f"command: got {module}, expected a module of {PACKAGE}*. Name one.")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = importlib.import_module(module).main(arguments)
    if code:
        raise ConfigError(f"command: {command} ended with {code}, expected 0. What it said stands above.")
    return out.getvalue().strip()


def replaced(text: str, command: str, made: str) -> str:
    """The document with `made` below `command`."""

    def block(found: re.Match[str]) -> str:
        if found["command"] != command:
            return found[0]
        return f"```bash\n{command}\n```\n\n<!-- made:begin -->\n\n{made}\n\n<!-- made:end -->"

    return BLOCK.sub(block, text)


def main(arguments: Sequence[str] | None = None, document: Path = DOCUMENT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="commands that contain this")
    only = parser.parse_args(arguments).only
    for command in commands(document.read_text()):
        if only not in command:
            continue
        print(command, file=sys.stderr, flush=True)
        made = printed(command)
        before = document.read_text()
        after = replaced(before, command, made)
        print(
            "  as it was" if after == before else "  CHANGED: read the prose again",
            file=sys.stderr,
            flush=True,
        )
        write_atomic(document, after.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
