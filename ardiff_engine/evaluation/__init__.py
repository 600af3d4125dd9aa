# SPDX-License-Identifier: Apache-2.0
"""How good a model of moving digits is: are the digits readable and constant, do they move as they should?"""
