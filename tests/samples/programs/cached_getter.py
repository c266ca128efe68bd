"""An lru_cache'd getter, and a loader that compiles after the enable and the first load."""
from functools import lru_cache
import torch
from diffusers import DiffusionPipeline
@lru_cache(maxsize=1)
def get():
    pipe = DiffusionPipeline.from_pretrained("f")
    pipe.transformer.compile_repeated_blocks()
    pipe("warm")
    pipe.enable_lora_hotswap(target_rank=32)  # want HSW201
    pipe.load_lora_weights("a", adapter_name="s")
    return pipe
def swap(p):
    get().load_lora_weights(p, adapter_name="s", hotswap=True)
