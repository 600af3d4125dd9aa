# SPDX-License-Identifier: Apache-2.0
"""Objectives by name, `[loss] objective = "..."`: a module each, whose `recipe(cast)` says what a step is."""
