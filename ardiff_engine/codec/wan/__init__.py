# SPDX-License-Identifier: Apache-2.0
"""The video autoencoders of the Wan family."""

from ardiff_engine.codec.wan.vae import WanVAE

__all__ = ["WanVAE"]
