# SPDX-License-Identifier: Apache-2.0
"""A page of HTML that holds its pictures, charts and styles itself and asks no other host for anything."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
}
STYLE = """
:root { color-scheme: light dark; --ink: #22222a; --faint: #6c6c78; --line: #d9d9e0; --paper: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ee; --faint: #9a9aa6; --line: #3a3a44; --paper: #17171c; }
}
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .2rem; } h2 { margin: 2.6rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.6rem 0 .4rem; } p { max-width: 46rem; } .faint { color: var(--faint); }
.wide { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
th, td { white-space: nowrap; padding: .25rem .7rem .25rem 0; text-align: left;
  border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--faint); font-weight: 600; } code { font-size: .9em; }
img, video { max-width: 100%; image-rendering: pixelated; }
svg { width: 100%; max-width: 48rem; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .grid { stroke: var(--line); }
figure { margin: 1rem 0; } figcaption { color: var(--faint); font-size: .9rem; }
"""


class Page:
    """Parts in the order in which they are added. Text is escaped; only `figure` takes markup, of our
    charts."""

    def __init__(self, title: str, subtitle: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>", f'<p class="faint">{escape(subtitle)}</p>']

    def heading(self, text: str, level: int = 2) -> None:
        self._parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def paragraph(self, text: str) -> None:
        self._parts.append(f"<p>{escape(text)}</p>")

    def command(self, text: str) -> None:
        """A line that makes what follows again."""
        self._parts.append(f'<p class="faint"><code>{escape(text)}</code></p>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], folded: str = "") -> None:
        """folded: a line that shows the table when it is clicked."""

        def line(cells: Sequence[str], kind: str) -> str:
            return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"

        body = "\n".join(line(row, "td") for row in rows)
        table = f'<div class="wide"><table>\n{line(head, "th")}\n{body}\n</table></div>'
        if folded:
            table = f"<details><summary>{escape(folded)}</summary>{table}</details>"
        self._parts.append(table)

    def figure(self, svg: str, caption: str) -> None:
        """A chart of `chart.line_chart`; nothing where it is empty."""
        if svg:
            self._parts.append(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>")

    def media(self, data: bytes, suffix: str, caption: str) -> None:
        """A picture or a video, suffix one of `KINDS`."""
        kind = KINDS[suffix]
        source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        name = escape(caption, quote=True)
        shown = (
            f'<video controls loop muted aria-label="{name}" src="{source}"></video>'
            if suffix == ".mp4"
            else f'<img alt="{name}" src="{source}">'
        )
        self._parts.append(f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>")

    def html(self) -> str:
        return "\n".join(
            [
                "<!doctype html>",
                '<html lang="en"><head><meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{escape(self._title)}</title>",
                f"<style>{STYLE}</style></head><body>",
                *self._parts,
                "</body></html>",
                "",
            ]
        )
