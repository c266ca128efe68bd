"""Without a name diffusers calls the first adapter default_0; who knows that may swap it."""
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")
pipe.enable_lora_hotswap(target_rank=128)
pipe.load_lora_weights("artist/ink")
pipe.transformer.compile()
image = pipe("a harbour").images[0]
pipe.load_lora_weights("artist/oil", hotswap=True, adapter_name="default_0")
image = pipe("a harbour").images[0]
