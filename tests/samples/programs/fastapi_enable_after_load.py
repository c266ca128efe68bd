"""A FastAPI server whose start-up enables hot-swapping too late."""
from contextlib import asynccontextmanager

import torch
from diffusers import StableDiffusion3Pipeline
from fastapi import FastAPI

state = {}


@asynccontextmanager
async def lifespan(app):
    pipe = StableDiffusion3Pipeline.from_pretrained("base/sd3", torch_dtype=torch.float16).to("cuda")
    pipe.load_lora_weights("tenants/default", adapter_name="tenant")
    pipe.enable_lora_hotswap(target_rank=128)  # want HSW203
    pipe.transformer.compile(fullgraph=True)
    state["pipe"] = pipe
    yield
    state.clear()


app = FastAPI(lifespan=lifespan)


@app.post("/generate/{tenant}")
def generate(tenant: str, prompt: str):
    pipe = state["pipe"]
    pipe.load_lora_weights(f"tenants/{tenant}", adapter_name="tenant", hotswap=True)
    return pipe(prompt).images[0]
