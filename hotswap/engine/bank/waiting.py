"""Waiting for a model's adapters as a task of asyncio or trio does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hotswap.engine.layout.uses import Use, Uses


async def take(uses: Uses, use: Use, timeout: float | None) -> None:
    """Wait as a task until a use has its turn; whoever ends the one before may be a thread."""
    import anyio

    if not uses.ask(use, wait=timeout is not None):
        turn = anyio.Event()
        with anyio.move_on_after(timeout):
            if not use.wakes(_setter(turn)):
                await turn.wait()
        uses.require(use, timeout)


async def in_thread(action: Callable[[], object]) -> None:
    """Do in a thread what takes long, while other tasks go on; if the task is cancelled it goes on, too."""
    import anyio.to_thread

    await anyio.to_thread.run_sync(action, abandon_on_cancel=True)


def _setter(event: Any) -> Callable[[], Any]:
    """Give what sets an event of the running event loop from any thread."""
    import anyio.lowlevel

    loop: Any = anyio.lowlevel.current_token().native_token  # of asyncio, or a TrioToken
    soon = (
        loop.call_soon_threadsafe if hasattr(loop, "call_soon_threadsafe") else loop.run_sync_soon
    )
    return lambda: soon(event.set)
