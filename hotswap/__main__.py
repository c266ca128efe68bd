"""``python -m hotswap``: the ``hotswap`` command."""

from __future__ import annotations

import sys

from hotswap.cli.main import main

sys.exit(main())
