"""A ray actor: the name of the loaded adapter is in a constant, the swap's in another."""
import ray, torch
from diffusers import FluxPipeline
FIRST = "base-style"
SLOT = "style"
@ray.remote(num_gpus=1)
class Painter:
    def __init__(self):
        self.pipe = FluxPipeline.from_pretrained("flux").to("cuda")
        self.pipe.enable_lora_hotswap(target_rank=64)
        self.pipe.load_lora_weights("a", adapter_name=FIRST)
        self.pipe.transformer = torch.compile(self.pipe.transformer, fullgraph=True)
    def swap(self, path):
        self.pipe.load_lora_weights(path, adapter_name=SLOT, hotswap=True)  # want HSW208
    def paint(self, prompt):
        return self.pipe(prompt).images[0]
