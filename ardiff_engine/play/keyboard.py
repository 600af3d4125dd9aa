# SPDX-License-Identifier: Apache-2.0
"""Keys that are pressed while a picture is shown, from a terminal or from a script."""

from __future__ import annotations

import os
import select
import sys
from types import TracebackType
from typing import Protocol

from ardiff_engine.errors import ConfigError

ARROWS = {"D": "left", "C": "right", "A": "up", "B": "down"}
"""The last letters of what terminals send for them."""
LETTERS = {"l": "left", "r": "right", "u": "up", "d": "down"}
NO_KEY = "."
QUIT = ("q", "\x03")


class Keys(Protocol):
    def pressed(self, frame: int) -> list[str]:
        """Since the last call, before this frame is shown: "left", "right", "up", "down", or a character."""


class Script:
    """One letter for each frame: l, r, u, d for the arrows, a character as it is, a dot for none."""

    def __init__(self, letters: str) -> None:
        """ConfigError: what is no key."""
        if any(not letter.isprintable() for letter in letters):
            raise ConfigError(
                f"keys: got {letters!r:.60}, expected l, r, u, d, characters, and dots for none."
            )
        self._letters = letters

    def pressed(self, frame: int) -> list[str]:
        letter = self._letters[frame : frame + 1] or NO_KEY
        return [] if letter == NO_KEY else [LETTERS.get(letter, letter)]


class Terminal:
    """Standard input, read key by key while the block runs. Its settings are put back at the end."""

    def __enter__(self) -> Terminal:
        import termios
        import tty

        self._file = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import termios

        termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def pressed(self, frame: int) -> list[str]:
        data = b""
        while select.select([self._file], [], [], 0)[0]:
            piece = os.read(self._file, 64)
            if not piece:
                return [*keys_in(data.decode(errors="ignore")), QUIT[0]]  # the terminal is gone
            data += piece
        return keys_in(data.decode(errors="ignore"))


def keys_in(text: str) -> list[str]:
    """What a terminal has sent, as keys; sequences of other keys are passed over."""
    found: list[str] = []
    place = 0
    while place < len(text):
        if text[place] == "\x1b" and text[place + 1 : place + 2] in ("[", "O"):
            end = place + 2
            while end < len(text) and not "@" <= text[end] <= "~":
                end += 1
            found += [ARROWS[letter] for letter in text[end : end + 1] if letter in ARROWS]
            place = end + 1
            continue
        if text[place] != "\x1b":
            found.append(text[place])
        place += 1
    return found
