"""Unloaded, then swapped: there is nothing to replace."""
import torch
from diffusers import FluxPipeline
pipe = FluxPipeline.from_pretrained("f")
pipe.enable_lora_hotswap(target_rank=64)
pipe.load_lora_weights("a", adapter_name="a")
pipe.transformer.compile()
pipe("x")
pipe.unload_lora_weights()
pipe.load_lora_weights("b", adapter_name="a", hotswap=True)  # want HSW209
pipe("x")
