# SPDX-License-Identifier: Apache-2.0
"""Prompts as Wan's models were trained on them."""

from __future__ import annotations

import html
import re

from ardiff_engine.errors import ConfigError


def cleaned(prompt: str) -> str:
    """Mended Unicode (ftfy), HTML entities resolved twice, runs of white space as one blank; case is kept.

    ConfigError: no text, or ftfy is missing.
    """
    if not isinstance(prompt, str):
        raise ConfigError(f"prompt: got {type(prompt).__name__}, expected text.")
    try:
        import ftfy
    except ImportError as error:
        raise ConfigError("Prompts need ftfy: pip install ftfy.") from error
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()
