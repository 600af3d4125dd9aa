# SPDX-License-Identifier: Apache-2.0
"""Class names ("targets") in the official YAML configs, old package names included."""

from __future__ import annotations

import difflib

from ardiff_engine.errors import ConfigError, explain

RENAMED_PACKAGES = (("src.gen_model.", "src.ardiff."), ("src.vae_model.", "src.vae."))
KINDS = {
    "src.ardiff.base.BaseModel": "pipeline",
    "src.ardiff.modules.diffusion.LatentDiffusion": "diffusion",
    "src.ardiff.modules.dit_model.DiT_crossattn": "ar_diffusion",
    "src.vae.titok_kl.TiTok_KL": "titok",
    "src.vae.titok_kl_wt.TiTok_KL_wT": "titok_temporal",
}


def canonical_target(name: str) -> str:
    """The present name: `src.gen_model.*` became `src.ardiff.*`, `src.vae_model.*` became `src.vae.*`."""
    for old, new in RENAMED_PACKAGES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def target_kind(name: str) -> str:
    """What a target is: "pipeline", "diffusion", "ar_diffusion", "titok" or "titok_temporal".

    Raises ConfigError, naming the nearest known target, for any other.
    """
    target = canonical_target(name)
    if target not in KINDS:
        nearest = difflib.get_close_matches(target, KINDS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            explain(
                "target", got=repr(name), expected=f"one of {list(KINDS)}", fix=f"Did you mean {nearest!r}?"
            )
        )
    return KINDS[target]
