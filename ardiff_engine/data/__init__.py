# SPDX-License-Identifier: Apache-2.0
"""Where training data come from: moving digits, folders of videos, files of latents."""
