"""A wrapper that has not run is no obstacle to the first load."""
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-schnell").to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
pipe.transformer = torch.compile(pipe.transformer)
pipe.load_lora_weights("artist/ink", adapter_name="ink")
image = pipe("a pier", num_inference_steps=4).images[0]
pipe.load_lora_weights("artist/oil", adapter_name="ink", hotswap=True)
image = pipe("a pier", num_inference_steps=4).images[0]
