# SPDX-License-Identifier: Apache-2.0
"""What a random number is for. The purpose is part of the key of every counter-based draw, so two purposes
never get the same numbers; that holds only while no two of them are one number, hence one list."""

from __future__ import annotations

import enum


@enum.unique
class Purpose(enum.IntEnum):
    """Numbers are never changed: stored results depend on them. A new purpose takes the next free one."""

    INITIAL = 0  # starting noise of a frame
    STEP = 1  # noise of a solver step
    TRAIN = 2  # noise on a training clip
    RENOISE = 3
    DATA = 4
    TIMESTEPS = 5  # timesteps of a training clip; kernels hold this number as well
    HISTORY = 6  # noise on clean frames: teacher forcing, history guidance
    WARP = 7  # fresh noise where warped noise is spread out
    FILE = 16  # which latent file, and where in it
    WINDOW = 17  # which window of an encoded clip
    KNOWN = 18  # how many first frames are given
    NULL = 19  # whether a clip is trained without its condition
    # 20 is taken: it chose micro-batches for teacher forcing
    VIDEO = 21  # which video, and where in it
    COUPLING = 22  # whether the frames of a clip stand at levels of their own or at one
    EXIT = 23  # at which of its steps a roll-out gets its gradient
    SCORE_LEVEL = 24  # noise level at which a roll-out is scored
    SCORE = 25  # noise on a roll-out that is scored
    POINT = 26  # which point of a teacher's path the student starts from
    CHAIN = 27  # noise on a clip that is predicted from what the network made of it before
    BUCKET = 28  # of which shape the clips of a step are
    GAIN = 29  # how much stronger or weaker a history is than its data
    PASSES = 30  # how many estimates a history of the network's own has been through
    CUT = 31  # whether a clip is cut to its first block
