"""``python -m hotswap``: the command line, for an interpreter whose scripts are not on the path."""

from __future__ import annotations

import sys

from hotswap.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
