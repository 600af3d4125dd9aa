# SPDX-License-Identifier: Apache-2.0
"""Passes recorded as CUDA graphs: shapes to pad to, buffers that never move, graphs that are repeated."""
