"""One task swaps and runs; requests wait in a queue."""
import asyncio
import torch
from diffusers import FluxPipeline
class Worker:
    def __init__(self):
        self.queue = asyncio.Queue()
        self.pipe = None
        self.active = None
    async def start(self):
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._load)
        asyncio.create_task(self._consume())
    def _load(self):
        self.pipe = FluxPipeline.from_pretrained("flux").to("cuda")
        self.pipe.enable_lora_hotswap(target_rank=128)
        self.pipe.load_lora_weights("loras/base", adapter_name="style")
        self.pipe.transformer.compile_repeated_blocks(fullgraph=True)
    async def _consume(self):
        while True:
            style, prompt, future = await self.queue.get()
            if style != self.active:
                self.pipe.load_lora_weights(f"loras/{style}", adapter_name="style", hotswap=True)
                self.active = style
            image = await asyncio.to_thread(self.pipe, prompt)
            future.set_result(image.images[0])
