"""A pool of prepared pipelines; each is swapped by its own worker."""
import torch
from typing import NamedTuple
from diffusers import FluxPipeline
class Slot(NamedTuple):
    pipe: object
    device: str
def make(device):
    pipe = FluxPipeline.from_pretrained("flux").to(device)
    pipe.enable_lora_hotswap(target_rank=64)
    pipe.load_lora_weights("a", adapter_name="s")
    pipe.transformer.compile_repeated_blocks()
    return Slot(pipe, device)
pool = [make(f"cuda:{i}") for i in range(2)]
def draw(index, path, prompt):
    slot = pool[index]
    slot.pipe.load_lora_weights(path, adapter_name="s", hotswap=True)
    return slot.pipe(prompt).images[0]
