# SPDX-License-Identifier: Apache-2.0
"""Readers of entries of a golden index: a file for each system, in whose sizes it makes the system."""
