"""An article's listing: neither load has a name, so the swap finds no slot."""
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")
pipe.enable_lora_hotswap(target_rank=128)
pipe.load_lora_weights("artist/ink")
pipe.transformer.compile()
image = pipe("a harbour").images[0]
pipe.load_lora_weights("artist/oil", hotswap=True)  # want HSW207
image = pipe("a harbour").images[0]
