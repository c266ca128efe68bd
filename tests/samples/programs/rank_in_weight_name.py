"""The second file says its rank, and the slot is too small for it."""
import torch
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-14B-Diffusers").to("cuda")
pipe.enable_lora_hotswap(target_rank=32)  # want HSW204
pipe.load_lora_weights("loras/wan", weight_name="motion_rank16.safetensors", adapter_name="motion")
pipe.transformer.compile()
pipe("waves")
pipe.load_lora_weights("loras/wan", weight_name="speed_rank64.safetensors", adapter_name="motion", hotswap=True)
pipe("waves")
