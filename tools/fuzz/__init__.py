# SPDX-License-Identifier: Apache-2.0
"""Hostile input by the thousand: `runner` tries it, one module per kind of input makes it."""
