"""The server that forks processes imports what ranks need, whichever test starts it first."""

import multiprocessing


def pytest_configure() -> None:
    """Say so before there is a server; ranks then start at once."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.set_forkserver_preload(
            ["pytest_hotswap.ranks.worker", "tests.support.rank_models"]
        )
