"""Fused once and for all; the swap endpoint forgot."""
import torch
from diffusers import FluxPipeline
def boot():
    global pipe
    pipe = FluxPipeline.from_pretrained("f")
    pipe.enable_lora_hotswap(target_rank=32)
    pipe.load_lora_weights("a", adapter_name="s")
    pipe.fuse_lora(lora_scale=0.8)
    pipe.transformer.compile()
boot()
def endpoint(path, prompt):
    pipe.load_lora_weights(path, adapter_name="s", hotswap=True)  # want HSW211
    return pipe(prompt)
