# SPDX-License-Identifier: Apache-2.0
"""`ardiff serve`: live video from one engine to many people. Needs the extra `serve`.

One process, one engine, one engine thread. The web side only submits, reads, steers and cancels.
"""
