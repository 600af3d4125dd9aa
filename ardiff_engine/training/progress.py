# SPDX-License-Identifier: Apache-2.0
"""What a run shows on the standard error stream while it goes on: a bar on a terminal, elsewhere plain lines,
since a bar in a file is one line without an end. Validations are lines of their own in both."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

APART = 10.0
"""Seconds between two plain lines of losses; the log has them all."""
NOT_SHOWN = ("lr", "gradient_norm")


class Progress:
    """steps: of the whole run; done: before this process. shown: by this process, the first of the run. A
    context, at whose end the bar is left as it is."""

    def __init__(
        self, steps: int, done: int, *, shown: bool, file: TextIO | None = None, apart: float = APART
    ) -> None:
        self.steps, self.done, self.shown, self.apart = steps, done, shown, apart
        self.file = sys.stderr if file is None else file
        self.began, self.first, self.last = time.monotonic(), done, -float("inf")
        self.bar = tqdm(
            total=steps,
            initial=done,
            desc="training",
            unit="step",
            disable=not (shown and self.file.isatty()),
            mininterval=1.0,
            file=self.file,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def step(self) -> None:
        self.done += 1
        self.bar.update()

    def losses(self, metrics: Mapping[str, float]) -> None:
        """Means since the line before."""
        text = _text(metrics)
        if not self.bar.disable:
            self.bar.set_postfix_str(text)
        elif self.shown and time.monotonic() >= self.last + self.apart:
            self.last = time.monotonic()
            left = (self.last - self.began) / max(1, self.done - self.first) * (self.steps - self.done)
            self._line(f"{text}, {tqdm.format_interval(left)} left")

    def validation(self, metrics: Mapping[str, float], *, kept: bool) -> None:
        """kept: these weights are the best so far, and lie in `best/`."""
        if self.shown:
            named = {f"validation_{name}": value for name, value in metrics.items() if "_at_" not in name}
            self._line(_text(named) + (", the lowest loss so far: kept in best/" if kept else ""))

    def _line(self, text: str) -> None:
        tqdm.write(f"step {self.done} of {self.steps}: {text}", file=self.file)


def _text(metrics: Mapping[str, float]) -> str:
    """Of several numbers that are the same, such as a loss and its only part, the first alone."""
    shown: dict[str, str] = {}
    for name, value in metrics.items():
        text = f"{value:.4g}"
        if name not in NOT_SHOWN and text not in shown.values():
            shown[name] = text
    return ", ".join(f"{name} {text}" for name, text in shown.items())
