"""The arguments of the swap come out of a dictionary with a wrong name."""
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
options = {"target_rank": 64}
pipe.enable_lora_hotswap(**options)
pipe.load_lora_weights("artist/ink", adapter_name="ink")
pipe.transformer.compile()
pipe("a pier")
swap = dict(adapter_name="oil", hotswap=True)
pipe.load_lora_weights("artist/oil", **swap)  # want HSW208
pipe("a pier")
