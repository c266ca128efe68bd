"""Wan 2.2 has two transformers; each has a slot of its own, and both are prepared."""
import torch
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.2-T2V-A14B-Diffusers", torch_dtype=torch.bfloat16).to("cuda")
pipe.transformer.enable_lora_hotswap(target_rank=64)
pipe.transformer_2.enable_lora_hotswap(target_rank=64)
pipe.load_lora_weights("loras/wan", weight_name="high.safetensors", adapter_name="high")
pipe.load_lora_weights(
    "loras/wan", weight_name="low.safetensors", adapter_name="low", load_into_transformer_2=True
)
pipe.transformer.compile()
pipe.transformer_2.compile()
pipe("waves")
pipe.load_lora_weights("loras/wan-b", weight_name="high.safetensors", adapter_name="high", hotswap=True)
pipe.load_lora_weights(
    "loras/wan-b", weight_name="low.safetensors", adapter_name="low", hotswap=True,
    load_into_transformer_2=True,
)
pipe("waves")
