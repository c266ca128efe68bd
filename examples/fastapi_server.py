"""Adapters of one compiled model behind FastAPI: ``uvicorn fastapi_server:app``.

A request waits for its adapter in a fair queue and has it until its completion is there; the event loop
stays free meanwhile, as the model runs in a thread. An adapter is added or replaced while others are served.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel
from serving import Serving

import hotswap
from hotswap.errors import AdapterError, BusyError


class Prompt(BaseModel):
    """What is to be continued, and with which adapter."""

    adapter: str
    tokens: list[int]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load, prepare and compile once; stage every adapter."""
    serving = app.state.serving = await run_in_threadpool(Serving)
    for name, path in serving.paths.items():
        await run_in_threadpool(serving.bank.add, name, path)
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/complete")
async def complete(prompt: Prompt, request: Request) -> dict[str, Any]:
    """Continue a prompt with an adapter of the bank."""
    serving = request.app.state.serving
    if prompt.adapter not in serving.bank:
        raise HTTPException(404, f"no adapter {prompt.adapter!r}; there are {[*serving.bank]}")
    try:
        async with serving.bank.using(prompt.adapter, timeout=30):
            tokens = await run_in_threadpool(serving.complete, prompt.tokens)
    except BusyError as error:
        raise HTTPException(503, str(error)) from None
    return {"tokens": tokens, "digest": serving.bank.digest(prompt.adapter)}


@app.put("/adapters/{name}")
async def add(name: str, path: str, request: Request) -> dict[str, str]:
    """Stage an adapter folder of this machine; one that does not fit changes nothing."""
    try:
        return {"digest": await run_in_threadpool(request.app.state.serving.bank.add, name, path)}
    except AdapterError as error:
        raise HTTPException(422, [str(finding) for finding in error.findings]) from None


@app.get("/health")
def health(request: Request) -> dict[str, Any]:
    """Say what is in place and what is staged."""
    serving = request.app.state.serving
    return {"active": hotswap.active(serving.model), "staged": [*serving.bank]}
