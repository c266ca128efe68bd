"""The contract on the deployment that the options name."""

from __future__ import annotations

from pytest_hotswap import HotswapContract


class TestHotswap(HotswapContract):
    """``--hotswap-subject``, or hotswap's own engine on ``--hotswap-base``."""
