"""Unfuse, swap, fuse again: right, and without a recompile."""
import torch
from diffusers import StableDiffusionXLPipeline

pipe = StableDiffusionXLPipeline.from_pretrained("base/sdxl").to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
pipe.load_lora_weights("loras/house", adapter_name="style")
pipe.fuse_lora(adapter_names=["style"], lora_scale=0.7)
pipe.unet.compile()
pipe("a house")
pipe.unfuse_lora()
pipe.load_lora_weights("loras/garden", adapter_name="style", hotswap=True)
pipe.fuse_lora(adapter_names=["style"], lora_scale=0.7)
pipe("a garden")
