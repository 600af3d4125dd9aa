# SPDX-License-Identifier: Apache-2.0
"""Training of both stages: the frame autoencoder, and the diffusion transformer on its latents."""
