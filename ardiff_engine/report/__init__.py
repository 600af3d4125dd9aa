# SPDX-License-Identifier: Apache-2.0
"""`ardiff report`: what was measured, trained and made, on one page that needs nothing beside it."""
