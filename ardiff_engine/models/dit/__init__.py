# SPDX-License-Identifier: Apache-2.0
"""Parts that diffusion transformers are made of, and their blocks as native calls."""
