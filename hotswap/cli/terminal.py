"""What the commands print."""

from __future__ import annotations

import sys


def say(*lines: object, error: bool = False) -> None:
    """Print lines, with escapes for what the terminal's encoding lacks."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed before the start
        return
    encoding = stream.encoding or "utf-8"
    for line in lines:
        print(str(line).encode(encoding, "backslashreplace").decode(encoding), file=stream)
    stream.flush()
