# SPDX-License-Identifier: Apache-2.0
"""What is no trace: Forcing-KV's segments, MCVD's conditioning, Epona's steps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.memory.segments import least_similar, segment_similarity, take_segments
from ardiff_engine.systems.official.epona import times
from ardiff_engine.training.frame_dropout import conditioning_frames

GOLDEN = Path(__file__).parent / "golden" / "systems"


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return {key: torch.as_tensor(value) for key, value in data.items()}


def test_forcing_kv_keeps_the_official_segments() -> None:
    official = golden("forcing_kv_selection")
    tags = [name.removesuffix("__kept_segments") for name in official if name.endswith("__kept_segments")]
    assert len(tags) >= 2
    for tag in tags:
        old, rows, columns, segments = map(int, re.findall(r"T(\d+)_grid(\d+)x(\d+)_P(\d+)", tag)[0])

        def frames(layer: int, what: str, tag=tag, tokens=rows * columns, old=old) -> torch.Tensor:
            """Old frames, then the new ones up to one after the three candidates."""
            both = [official[f"{tag}__layer{layer}_{age}_{what}"] for age in ("old", "new")]
            return torch.cat(both).unflatten(0, (-1, tokens))[:4]

        similarity = segment_similarity(frames(1, "k"), segments)
        torch.testing.assert_close(similarity, official[f"{tag}__segment_scores"], rtol=1e-5, atol=1e-6)
        kept = least_similar(similarity, len(official[f"{tag}__kept_segments"]))
        assert kept.tolist() == official[f"{tag}__kept_segments"].tolist()
        # The choice of layer 1 serves the others.
        for layer in (1, 2):
            for what in ("k", "v"):
                taken = take_segments(frames(layer, what)[:3], kept, segments)
                assert taken.equal(official[f"{tag}__layer{layer}_kept_{what}"])
    with pytest.raises(TensorError):
        segment_similarity(torch.zeros(3, 7, 1, 2), 2)


def test_mcvd_conditioning_is_the_official_one() -> None:
    official = golden("mcvd_conditioning")
    tags = [name.removesuffix("__uniforms") for name in official if name.endswith("__uniforms")]
    assert len(tags) >= 5
    for tag in tags:
        found = re.findall(r"past(\d+)_new(\d+)_future(\d+)_pc([\d.]+)_pf([\d.]+)_sync(\d)", tag)[0]
        past, new, future, sync = (int(found[i]) for i in (0, 1, 2, 5))
        dropped = float(found[3]), float(found[4])
        frames = conditioning_frames(official[f"{tag}__uniforms"], past, new, future, *dropped, bool(sync))
        assert frames.tolist() == official[f"{tag}__condition_frames"].tolist(), tag
        assert official[f"{tag}__new_frames"][0].tolist() == list(range(past, past + new))
    with pytest.raises(ConfigError):
        conditioning_frames(torch.rand(3, 4), 2, 2, 2, 0.5, 0.5)


def test_epona_moves_its_steps_with_the_tokens_of_a_frame() -> None:
    official = golden("epona_free_cf4_new5_S4")
    names = [name for name in official if name.startswith("schedule")]
    assert len(names) >= 6
    for name in names:
        steps, tokens = map(int, re.findall(r"S(\d+)_tokens(\d+)", name)[0])
        np.testing.assert_allclose(times(steps, tokens), official[name], rtol=0, atol=1e-6)
