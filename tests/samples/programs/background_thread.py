"""The swap runs in a worker thread, under another name."""
import asyncio

import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
pipe.load_lora_weights("artist/ink", adapter_name="slot")
pipe.transformer.compile()


def _swap(path):
    pipe.load_lora_weights(path, adapter_name="style", hotswap=True)  # want HSW208


async def handle(path, prompt):
    await asyncio.to_thread(_swap, path)
    return await asyncio.to_thread(pipe, prompt)
