"""A context manager swaps a style in, and the base style back."""
import torch
from contextlib import contextmanager
from diffusers import StableDiffusionXLPipeline
pipe = StableDiffusionXLPipeline.from_pretrained("x").to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
pipe.load_lora_weights("base", adapter_name="slot")
pipe.unet = torch.compile(pipe.unet)

@contextmanager
def style(path):
    pipe.load_lora_weights(path, adapter_name="slot", hotswap=True)
    try:
        yield pipe
    finally:
        pipe.load_lora_weights("base", adapter_name="slot", hotswap=True)

def gen(path, prompt):
    with style(path) as p:
        return p(prompt).images[0]
