# SPDX-License-Identifier: Apache-2.0
"""`ardiff play`: a model in the terminal, steered by keys while it runs."""
