"""Compiled in place before the first load, which is the one that prepares: it raises."""
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-schnell").to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
pipe.transformer.compile(mode="max-autotune")
pipe.load_lora_weights("artist/ink", adapter_name="ink")  # want HSW201
image = pipe("a pier", num_inference_steps=4).images[0]
