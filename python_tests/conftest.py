# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: the `gpu` marker, threads of parallel runs, fixed examples, a tiny random model for
what lies above models."""

from __future__ import annotations

import gc
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from effort import COLLECTED, chosen
from helpers.fixed_examples import fix_examples

fix_examples()


def pytest_configure() -> None:
    """Test processes side by side (pytest -n) share the cores; threads of all of them on each would not."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    # A script starts jobs in the background with SIGINT ignored, and tests and what they start inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = list(items)
    kept = _asked_for(config, items)
    staying = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in staying])
    items[:] = kept
    if torch.cuda.is_available():
        return
    reason = f"needs an NVIDIA GPU and a CUDA build of PyTorch; torch {torch.__version__} sees no GPU"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """What collecting has made stays: no search for garbage, also none of a test, need walk through it again,
    and a fork copies less of it."""
    gc.collect()
    gc.freeze()


def _asked_for(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """By ARDIFF_TESTS; what is asked for by -k, -m or its own name runs in full."""
    by_name = config.option.keyword or config.option.markexpr or any("::" in text for text in config.args)
    return list(items) if by_name or torch.cuda.is_available() else chosen(items)


@pytest.fixture(autouse=True, scope="module")
def fixed_draws_of_fixtures() -> None:
    """What a module's own fixtures draw does not depend on the tests before them."""
    seed_all()


@pytest.fixture(autouse=True)
def fixed_draws() -> None:
    """Every test begins with the same random numbers, alone or after others."""
    seed_all()


def seed_all() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture
def dice() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights: 16x16 pictures, 4 tokens a frame, window of 8 frames, 3 classes."""
    import ardiff_engine as ade

    torch.manual_seed(0)
    vae = ade.models.TiTok(
        ade.models.TiTokConfig(
            image_size=16,
            patch_size=4,
            encoder_width=16,
            encoder_layers=1,
            encoder_heads=2,
            decoder_width=16,
            decoder_layers=1,
            decoder_heads=2,
            num_latent_tokens=4,
            token_size=4,
            codebook_logits=16,
            quantized_channels=8,
            hidden_channels=8,
            channel_multipliers=(1, 1, 2),
            res_blocks=1,
            norm_groups=4,
        )
    )
    transformer = ade.models.ARDiffusionTransformer(
        ade.models.ARDiffusionConfig(
            num_frames=8,
            tokens_per_frame=4,
            channels=4,
            width=32,
            depth=2,
            heads=2,
            context_tokens=3,
            context_dim=8,
            num_classes=3,
        )
    )
    # As initialised, the output layer and all modulations are zero, and the autoencoder's pictures hardly
    # depend on its latents: every seed would give the same video.
    with torch.no_grad():
        for model, spread in ((transformer, 0.05), (vae, 0.3)):
            for parameter in model.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("tiny_model")
    schedule = ade.NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)
    ade.Pipeline(transformer, vae, schedule).save_pretrained(folder)
    return folder
