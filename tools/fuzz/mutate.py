# SPDX-License-Identifier: Apache-2.0
"""Changes of bytes that any kind of file may suffer."""

from __future__ import annotations

import random

HEADER = 256
RUNS = (0, 255, 32, 91, 123)
WORDS = (0, 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1)
HALF_WORDS = (0, 1, 2**16, 2**31 - 1, 2**32 - 1)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few changes: flips, cuts, copies, runs of one value, and numbers of 4 or 8 bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed) + 1)
        if rng.random() < 0.5:
            at = min(at, rng.randrange(HEADER))
        how = rng.randrange(7)
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del changed[at:]
        elif how == 2:
            del changed[at : at + rng.randrange(1, 64)]
        elif how == 3:
            source = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[source : source + rng.randrange(1, 256)]
        elif how == 4:
            changed[at : at + rng.randrange(1, 32)] = bytes([rng.choice(RUNS)]) * rng.randrange(1, 32)
        elif how == 5:
            changed[at : at + 8] = rng.choice(WORDS).to_bytes(8, "little")
        else:
            changed[at : at + 4] = rng.choice(HALF_WORDS).to_bytes(4, "big")
    return bytes(changed)
