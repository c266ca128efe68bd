"""The server that forks processes imports what ranks need, whichever test starts it first."""

import multiprocessing
import os

COMPILERS = ["torch._functorch.aot_autograd", "torch._inductor.compile_fx"]
"""What the first torch.compile imports, in seconds, which every rank would do by itself."""


def pytest_configure() -> None:
    """Say so before there is a server; ranks then start at once."""
    os.environ.setdefault(
        "TORCH_WARM_POOL", "0"
    )  # no compilers in the server, where there is triton
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.set_forkserver_preload(
            ["pytest_hotswap.ranks.worker", "tests.support.rank_models", *COMPILERS]
        )
