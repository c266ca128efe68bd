"""Two constants that should have been one."""
import torch
from diffusers import AutoPipelineForText2Image

FIRST, SECOND = "house", "garden"
pipeline = AutoPipelineForText2Image.from_pretrained("base/sdxl", torch_dtype=torch.float16).to("cuda")
pipeline.enable_lora_hotswap(target_rank=64)
pipeline.load_lora_weights("loras/house", adapter_name=FIRST)
pipeline.unet = torch.compile(pipeline.unet)
pipeline("a house")
pipeline.load_lora_weights("loras/garden", adapter_name=SECOND, hotswap=True)  # want HSW208
pipeline("a garden")
