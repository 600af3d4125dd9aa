# SPDX-License-Identifier: Apache-2.0
"""How many videos are kept apart for validation, where `data.held_out` asks for more than there should be."""

from __future__ import annotations

import logging

SHARE = 3

logger = logging.getLogger(__name__)


def most_held_out(videos: int) -> int:
    """A third of them, and one of two."""
    return max(videos // SHARE, int(videos > 1))


def say_if_few(folder: object, wanted: int, held_out: int, videos: int) -> None:
    """Says in the log where not as many are held out as was asked for."""
    if videos == 1 and wanted:
        logger.warning(
            "%s: there is one video only. Its frames are trained on and validated with, so the validation "
            "loss is too good.",
            folder,
        )
    elif held_out < wanted:
        logger.warning(
            "%s: %d of %d videos are held out; with data.held_out, %d, too few were left to train on.",
            folder,
            held_out,
            videos,
            wanted,
        )
