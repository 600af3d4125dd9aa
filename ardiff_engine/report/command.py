# SPDX-License-Identifier: Apache-2.0
"""What `ardiff report` does."""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from ardiff_engine.errors import MediaError
from ardiff_engine.files import make_folder, write_atomic
from ardiff_engine.report.page import Page
from ardiff_engine.report.sections import find_section
from ardiff_engine.version import __version__


def report(options: argparse.Namespace) -> int:
    """Writes the page; every input is recognised before the first is read."""
    target = Path(options.out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise MediaError(f"--out: got {options.out}, expected a name that ends in .html.")
    found = [(find_section(Path(name)), Path(name)) for name in options.inputs]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = Page(options.title, f"ardiff-engine {__version__}, {now}")
    page.command(f"ardiff report {shlex.join(options.inputs)} --out {shlex.quote(options.out)}")
    for add, path in found:
        add(page, path)
    make_folder(target.parent, error=MediaError)
    write_atomic(target, page.html().encode(), error=MediaError)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    return 0
