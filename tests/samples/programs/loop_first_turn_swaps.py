"""Every turn swaps, also the first, when there is nothing to replace."""
import torch
from diffusers import FluxPipeline

LORAS = ["artist/ink", "artist/oil", "artist/chalk"]
pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
for lora in LORAS:
    pipe.load_lora_weights(lora, adapter_name="style", hotswap=True)  # want HSW209
    pipe("a pier").images[0].save(f"{lora.replace('/', '_')}.png")
