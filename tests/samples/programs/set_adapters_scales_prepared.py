"""Setting the strength of the only adapter puts a float back in place of the scaling tensor."""
import torch
from diffusers import StableDiffusionXLPipeline

pipe = StableDiffusionXLPipeline.from_pretrained("base/sdxl", torch_dtype=torch.float16).to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
pipe.load_lora_weights("loras/house", adapter_name="style")
pipe.set_adapters("style", adapter_weights=0.8)  # want HSW210
pipe.unet = torch.compile(pipe.unet, fullgraph=True)
pipe("a house")
pipe.load_lora_weights("loras/garden", adapter_name="style", hotswap=True)
pipe("a garden")
