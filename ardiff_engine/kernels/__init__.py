# SPDX-License-Identifier: Apache-2.0
"""Kernels that are compiled at first use. Those that are built ahead of time are in csrc."""
