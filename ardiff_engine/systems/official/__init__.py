# SPDX-License-Identifier: Apache-2.0
"""What the code of a system does in its own way: which calls it makes of a pass, and tables of its solver."""
