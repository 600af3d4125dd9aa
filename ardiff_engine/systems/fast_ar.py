# SPDX-License-Identifier: Apache-2.0
"""TempCache, AnnCA and AnnSA (FAST-AR): Rolling Forcing whose history stays, with attention to a part of it
that is found by nearest neighbours among keys."""

from dataclasses import replace

from ardiff_engine.memory import Full
from ardiff_engine.systems import rolling_forcing

SYSTEM = replace(
    rolling_forcing.SYSTEM,
    name="tempcache",
    title="TempCache",
    paper="2602.01801",
    repository="no public code",
    memory=Full(joint=True),
    num_frames=21,
    not_served="which rows of old frames become one is found by their keys, in each layer and head; "
    "pages keep whole frames for all of them",
    exact="Nothing by numbers: no code is public.",
    left_out="Whole frames that are merged, with the log of their count as a bias, are "
    "`memory.Merged(counted=True)`. The trace is that of its host, with all frames kept.",
)
VARIANTS = (
    replace(
        SYSTEM,
        name="annca",
        title="AnnCA",
        not_served="words that no token of a frame asks for are left out, frame by frame and in each layer: "
        "cross-attention is the network's",
        exact="Nothing by numbers: no code is public.",
        left_out="The choice of words. The trace is that of its host.",
    ),
    replace(
        SYSTEM,
        name="annsa",
        title="AnnSA",
        not_served="tokens attend within buckets that are found by their keys: the kernels read whole pages",
        exact="Nothing by numbers: no code is public.",
        left_out="The buckets. The trace is that of its host.",
    ),
)
