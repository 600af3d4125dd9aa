# SPDX-License-Identifier: Apache-2.0
"""`python -m ardiff_engine`: the command line, where its script is not on the path."""

import sys

from ardiff_engine.cli import console

if __name__ == "__main__":
    sys.exit(console())
