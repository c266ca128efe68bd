"""The task renames the slot on every swap."""
import asyncio
import torch
from diffusers import FluxPipeline
class Worker:
    def __init__(self):
        self.queue = asyncio.Queue()
        self.pipe = FluxPipeline.from_pretrained("flux").to("cuda")
        self.pipe.enable_lora_hotswap(target_rank=128)
        self.pipe.load_lora_weights("loras/base", adapter_name="style")
        self.pipe.transformer.compile_repeated_blocks(fullgraph=True)
    async def serve(self):
        while True:
            path, prompt, future = await self.queue.get()
            self.pipe.load_lora_weights(path, adapter_name="swap", hotswap=True)  # want HSW208
            future.set_result(self.pipe(prompt).images[0])
