"""Adapters of one compiled model behind Ray Serve: ``serve run ray_serve:app``.

The header ``serve_multiplexed_model_id`` names the adapter. Ray sends a request to a replica that has it
staged already; each replica keeps the two that it used last.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from serving import Serving
from starlette.requests import Request

from hotswap import AdapterBank


class Staged:
    """An adapter in a replica's bank, for as long as Ray keeps this object."""

    def __init__(self, bank: AdapterBank, name: str) -> None:
        self.bank: AdapterBank | None = bank
        self.name = name

    def __del__(self) -> None:
        """Called by Ray when the adapter makes room for another, and once more by Python."""
        bank, self.bank = self.bank, None
        if bank is not None and self.name in bank:
            bank.remove(self.name)


@serve.deployment
class Adapters:
    """A replica: a compiled model and a bank."""

    def __init__(self) -> None:
        self.serving = Serving()

    @serve.multiplexed(max_num_models_per_replica=2)
    async def staged(self, name: str) -> Staged:
        """Stage an adapter; Ray calls this once until it is dropped."""
        bank = self.serving.bank
        await asyncio.to_thread(bank.add, name, self.serving.paths[name])
        return Staged(bank, name)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Continue the tokens of a JSON list."""
        adapter = await self.staged(serve.get_multiplexed_model_id())
        tokens = await request.json()
        async with self.serving.bank.using(adapter.name):
            return {
                "adapter": adapter.name,
                "staged": [*self.serving.bank],
                "tokens": await asyncio.to_thread(self.serving.complete, tokens),
            }


app = Adapters.bind()
